"""What is in server/deploy, and docs/operations.md, held against the code: images are not built here."""

import ast
import json
import re
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from server.app import LAST_FRAMES_S
from server.config import OTHER_VARIABLES, PREFIX, Settings, read_settings
from server.dialects import CLOSE_CODES
from server.engine_process import ENDING_S
from server.metrics import Metrics
from server.worker import LAST_STEP_S

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "server" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "asr-stream.service").read_text()
PAGE = (ROOT / "docs" / "operations.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
AFTER_DRAIN_S = 2 * LAST_FRAMES_S + LAST_STEP_S + ENDING_S  # at most: of engines that hang
DRAIN_S = read_settings(DEPLOY / "asr-stream.toml").drain_timeout_s + AFTER_DRAIN_S


@cache
def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def kind(name: str) -> dict[str, Any]:
    (found,) = (each for each in documents("kubernetes.yaml") if each["kind"] == name)
    return found["spec"]


def pod() -> dict[str, Any]:
    return kind("Deployment")["template"]["spec"]


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return found


def environments() -> dict[str, dict[str, str]]:
    """What every file sets in the server's environment."""
    image = re.findall(r"\b(ASR_STREAM_\w+)=(\S+)", DOCKERFILE.rpartition("FROM ")[2])
    return {
        "Dockerfile": dict(image),
        "asr-stream.service": dict(re.findall(r"(ASR_STREAM_\w+)=(\S+)", UNIT)),
        "compose.yaml": documents("compose.yaml")[0]["services"]["asr-stream"]["environment"],
        "kubernetes.yaml": {each["name"]: each["value"] for each in container()["env"]},
    }


@pytest.mark.parametrize("name", ["Dockerfile", "asr-stream.service", "compose.yaml", "kubernetes.yaml"])
def test_every_variable_is_a_setting_with_a_value_that_it_takes(name):
    variables = environments()[name]
    assert variables
    for variable, value in variables.items():
        setting = variable.removeprefix(PREFIX).lower()
        assert setting in Settings.model_fields or variable in OTHER_VARIABLES, variable
        path_or_substitution = value.startswith(("/", "%", "${"))
        if setting in Settings.model_fields and not path_or_substitution:
            Settings(**{setting: value})


def test_the_file_of_settings_is_one_and_fits_the_image():
    settings = read_settings(DEPLOY / "asr-stream.toml")
    assert settings.host == "0.0.0.0"
    path = environments()["Dockerfile"]["ASR_STREAM_CONFIG"]
    assert f"COPY server/deploy/asr-stream.toml {path}\n" in DOCKERFILE
    assert environments()["asr-stream.service"]["ASR_STREAM_CONFIG"] == path


def test_the_image_has_every_package():
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    packages = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert copied == packages | {"samples"}
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    assert modules <= set(re.findall(r"^COPY (\S+\.py) ", DOCKERFILE, re.MULTILINE))


def test_whatever_the_image_copies_is_sent_to_its_builder_and_is_there():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    lines = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    sources = {source for *words, _ in lines if not words[0].startswith("--from") for source in words}
    assert all((ROOT / source).exists() for source in sources)
    assert {source.partition("/")[0] for source in sources} == sent


def test_the_image_is_pinned_and_not_root():
    images = re.findall(r"^(?:ARG PYTHON=|FROM (?!\$|packages))(\S+)", DOCKERFILE, re.MULTILINE)
    services = documents("compose.yaml")[0]["services"].values()
    images += [each["image"] for each in services] + [container()["image"]]
    assert len(images) == 5
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images)
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    security = pod()["securityContext"]
    assert user == (str(security["runAsUser"]), str(security["runAsGroup"]))
    assert "0" not in user


def test_the_pins_are_what_is_tested_and_all_that_is_needed():
    lines = [
        line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    ]
    pins = dict(line.split("==") for line in lines)
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
        assert version(requirement.name).partition("+")[0] in requirement.specifier


def test_ports_and_paths_agree():
    port = Settings.model_fields["port"].default
    assert read_settings(DEPLOY / "asr-stream.toml").port == port
    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{port}/healthz" in DOCKERFILE
    compose = documents("compose.yaml")[0]["services"]["asr-stream"]
    assert compose["ports"] == [f"{port}:{port}"]
    assert container()["ports"] == [{"name": "http", "containerPort": port}]
    assert kind("Service")["ports"][0] == {"name": "http", "port": port, "targetPort": "http"}
    (job,) = documents("prometheus/prometheus.yml")[0]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"asr-stream:{port}"]}]
    probes = {
        name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")
    }
    assert probes == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert environments()["kubernetes.yaml"]["ASR_STREAM_API_KEY_FILE"] == f"{mounts['keys']}/keys"
    (provider,) = documents("grafana/provisioning/dashboards/asr-stream.yml")[0]["providers"]
    grafana = documents("compose.yaml")[0]["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in grafana
    for volume in [*grafana, *documents("compose.yaml")[0]["services"]["prometheus"]["volumes"]]:
        assert not volume.startswith("./") or (DEPLOY / volume.partition(":")[0]).is_dir(), volume


def test_nobody_is_killed_while_it_drains():
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(stop_s) > DRAIN_S
    grace = documents("compose.yaml")[0]["services"]["asr-stream"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > DRAIN_S
    _, pause_s = container()["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(environments()["kubernetes.yaml"]["ASR_STREAM_DRAIN_TIMEOUT_S"]) + AFTER_DRAIN_S
    assert pod()["terminationGracePeriodSeconds"] > int(pause_s) + drain_s


def test_engines_have_the_cores_and_the_memory_that_they_need():
    """0.6 GB each, 0.35 GB of the server and of libraries, what slots take, and a quarter for all else."""
    compose = documents("compose.yaml")[0]["services"]["asr-stream"]
    limits = container()["resources"]["limits"]
    in_file, in_pods = read_settings(DEPLOY / "asr-stream.toml"), environments()["kubernetes.yaml"]
    for engines, slots, cpus, memory in (
        (in_file.engines, in_file.slots, compose["cpus"], compose["mem_limit"].removesuffix("g")),
        (
            *(int(in_pods[f"ASR_STREAM_{name}"]) for name in ("ENGINES", "SLOTS")),
            limits["cpu"],
            limits["memory"][:-2],
        ),
    ):
        assert engines == int(cpus)
        assert 1.25 * (0.35 + 0.6 * engines + 0.042 * slots) < float(memory)


def test_kubernetes_does_not_set_settings_by_itself():
    """For a Service called asr-stream it would set ASR_STREAM_PORT=tcp://..."""
    assert pod()["enableServiceLinks"] is False


def test_selectors_select():
    labels = kind("Deployment")["template"]["metadata"]["labels"]
    assert kind("Deployment")["selector"]["matchLabels"] == labels
    assert kind("Service")["selector"] == labels
    assert kind("PodDisruptionBudget")["selector"]["matchLabels"] == labels
    (deployment,) = (each for each in documents("kubernetes.yaml") if each["kind"] == "Deployment")
    assert kind("HorizontalPodAutoscaler")["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


@cache
def sampled() -> set[str]:
    """Names that Prometheus knows after a scrape."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + suffix for family in Metrics().registry.collect() for suffix in suffixes[family.type]
    }


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/asr-stream.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        rule["expr"] for group in documents("prometheus/rules.yml")[0]["groups"] for rule in group["rules"]
    ]
    return [*shown, *rules, *(entry["query"]["query"] for entry in dashboard["templating"]["list"])]


def test_what_is_shown_and_alerted_on_is_measured():
    used = [set(re.findall(r"\b(?:asr_stream|process)_\w+", each)) for each in expressions()]
    assert all(names or "up{" in each for names, each in zip(used, expressions(), strict=True))
    assert set().union(*used) <= sampled()


def test_what_is_alerted_on_by_its_code_is_there_before_the_first():
    """Prometheus sees no increase where a series begins with its first error."""
    page = Metrics().render().decode()
    selected = re.findall(r'asr_stream_\w+\{(?:code|outcome)="\w+"\}', " ".join(expressions()))
    assert len(selected) == 2
    for each in selected:
        assert f"{each} 0.0" in page


def test_the_dashboard_asks_the_source_that_is_there():
    (source,) = documents("grafana/provisioning/datasources/prometheus.yml")[0]["datasources"]
    dashboard = json.loads((DEPLOY / "grafana/dashboards/asr-stream.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


# -- docs/operations.md


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    table = re.search(
        rf"^## {heading}\n.*?^\|[^\n]+\n\|[-| ]+\n((?:\|[^\n]+\n)+)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert table is not None, heading
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in table[1].splitlines()]


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def default(name: str) -> str:
    value = Settings.model_fields[name].default
    return "none" if value in (None, (), "") else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_page_lists_every_setting_with_its_default():
    assert [(cells[0], cells[1]) for cells in rows("Settings")] == [
        (f"`{name}`", default(name)) for name in Settings.model_fields
    ]


def test_the_page_explains_every_metric_and_every_alert():
    ours = {family.name for family in Metrics().registry.collect() if family.name.startswith("asr_stream")}
    assert {name.removesuffix("_total") for name in named([row[0] for row in rows("Metrics")])} == ours
    alerts = {
        rule["alert"] for group in documents("prometheus/rules.yml")[0]["groups"] for rule in group["rules"]
    }
    assert named([row[0] for row in rows("Alerts")]) == alerts


def codes() -> set[str]:
    """The codes of all refusals and faults in the code."""
    places = {
        "Fault": 0,
        "_mistake": 0,
        "AdmissionError": 1,
    }  # some dialects' _mistake begins with its message
    found = set(CLOSE_CODES)
    for path in [*(ROOT / "server").rglob("*.py"), ROOT / "streaming" / "engine.py"]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in places:
                arguments = call.args[places[call.func.id] :]
                if (
                    arguments
                    and isinstance(code := arguments[0], ast.Constant)
                    and str(code.value).isidentifier()
                ):
                    found.add(code.value)
    return found


def test_the_page_explains_every_code():
    assert named([row[0] for row in rows("What clients are told")]) == codes()
    told = {code: cells[2] for cells in rows("What clients are told") for code in named([cells[0]])}
    for code, number in CLOSE_CODES.items():
        assert str(number) in told[code], code


def test_the_page_names_files_and_paths_that_are_there():
    for path in named([PAGE]) | set(re.findall(r"\]\(\.\./([^)#]+)\)", PAGE)):
        if path.startswith(("server/", "docs/", "tests/")):
            assert (ROOT / path).exists(), path
