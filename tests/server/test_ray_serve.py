"""What Ray is told, and what is made of what it brings: all that needs no Ray."""

import builtins
import io
import pickle

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import asr_stream
from server.config import Settings, read_settings
from server.metrics import Metrics
from server.ray_serve import (
    Replicas,
    Unprefixed,
    answers_in_time,
    deployment_options,
    merge_metrics,
    portable,
)


def test_replicas_are_a_number_or_a_range():
    assert Replicas.parse("2") == Replicas(2, 2)
    assert Replicas.parse("1:4") == Replicas(1, 4)


@pytest.mark.parametrize("wrong", ["", "0", "0:2", "4:1", "two", "1:", "1:2:3", "-1"])
def test_replicas_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="replicas must be a number"):
        Replicas.parse(wrong)


def test_a_replica_takes_its_slots_and_what_comes_beside_them():
    options = deployment_options(Settings(slots=8, drain_timeout_s=60), Replicas(2, 2), gpu=False)
    assert options["num_replicas"] == 2
    assert "autoscaling_config" not in options
    assert options["max_ongoing_requests"] > 8
    assert options["graceful_shutdown_timeout_s"] > 60
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}


def test_replicas_grow_before_the_last_slot_is_taken():
    options = deployment_options(Settings(slots=8, engines=2), Replicas(1, 4), gpu=True)
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert scaling["target_ongoing_requests"] == 6
    assert "num_replicas" not in options
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 1}


def test_a_replica_needs_no_files_and_no_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\ntwo,three\n")
    monkeypatch.setenv("ASR_STREAM_CHUNK_MS", "500")
    given = Settings(api_key="zero", api_key_file=tmp_path / "keys", host="0.0.0.0")
    (tmp_path / "keys").unlink()
    there = pickle.loads(pickle.dumps(portable(given)))
    assert there.keys == given.keys == ("zero", "one", "two,three")
    assert there.chunk_ms == 500
    assert there.api_key_file is there.tls_cert is there.tls_key is None
    assert not there.exposed
    assert portable(Settings()).keys == ()


def test_settings_of_a_file_travel_too(tmp_path):
    (tmp_path / "settings.toml").write_text("slots = 7\n")
    there = pickle.loads(pickle.dumps(portable(read_settings(tmp_path / "settings.toml", port=1))))
    assert type(there) is Settings
    assert (there.slots, there.port) == (7, 1)


def test_metrics_of_all_replicas_are_one_page_with_a_label():
    pages = {}
    for replica, errors in (("a", 1), ("b", 2)):
        metrics = Metrics()
        metrics.errors.labels("full").inc(errors)
        metrics.stepped(0.02, errors)
        pages[replica] = metrics.render().decode()
    merged = merge_metrics(pages).decode()
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    assert merged.count("# TYPE asr_stream_step_seconds histogram") == 1
    told = {
        sample.labels["replica"]: sample.value
        for sample in families["asr_stream_errors"].samples
        if sample.name == "asr_stream_errors_total" and sample.labels["code"] == "full"
    }
    assert told == {"a": 1, "b": 2}
    assert {sample.labels["replica"] for sample in families["asr_stream_batch_rows"].samples} == {"a", "b"}


class Asked:
    """A broadcast to replicas, as far as it is used."""

    def __init__(self, *answers: object) -> None:
        self._answers = answers

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[object]:
        assert timeout_s > 0
        assert return_exceptions
        if not self._answers:
            raise TimeoutError
        return list(self._answers)


def test_a_replica_that_hangs_does_not_hide_the_others(caplog):
    answers = ("a", "# page\n"), TimeoutError("too late"), ("b", "# page\n")
    assert answers_in_time(Asked(*answers)) == {"a": "# page\n", "b": "# page\n"}
    assert "1 of 3 replicas did not tell their metrics" in caplog.text
    assert answers_in_time(Asked()) == {}


def test_json_lines_of_replicas_stay_json():
    """As Ray writes them, in colours and without."""
    written = io.StringIO()
    stream = Unprefixed(written)
    line = '{"message": "open (a pid=1) {", "session": "b"}'
    for prefix in (
        "(ServeReplica:asr-stream:asr-stream pid=123) ",
        "\x1b[36m(ServeReplica:asr-stream:asr-stream pid=123, ip=10.0.0.2)\x1b[0m ",
        "",
    ):
        print(prefix + line, file=stream)
    print("(raylet) something else", file=stream)
    stream.flush()
    assert written.getvalue().splitlines() == [line, line, line, "(raylet) something else"]


def test_without_ray_one_line_names_the_extra(monkeypatch):
    import_ = builtins.__import__

    def without_ray(name, *rest, **more):
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return import_(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    done = CliRunner().invoke(asr_stream.app, ["serve", "--ray", "--replicas", "2"])
    assert done.exit_code == 2
    assert done.stderr == (
        "asr-stream: --ray needs Ray Serve: pip install --editable '.[ray]' in the project's folder\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "2"], "add --ray"),
        (["--ray", "--replicas", "two"], "replicas must be a number, or least:most as in 1:4, not 'two'"),
        (["--ray", "--port", "0"], "under Ray the port must be chosen"),
    ],
)
def test_what_cannot_be_is_one_line(words, said):
    done = CliRunner().invoke(asr_stream.app, ["serve", *words])
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
