"""The demo page without a browser: what is served and how, and that its parts fit together."""

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from starlette.testclient import TestClient

from asr.audio import HIGHEST_RATE
from server import client as twin
from server.app import create_app
from server.config import Settings
from server.dialects.native import Native
from server.page import STATIC
from streaming import transcript
from tests.server.fakes import FakeEngine

ROOT = Path(__file__).parent.parent.parent
LABELLED = {"input", "select", "textarea"}
REFERENCES = ("for", "aria-labelledby", "aria-describedby")


class Document(HTMLParser):
    """Elements in order, each with its attributes and, of buttons, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag in ("button", "style", "script"):
            self._open.append(tag)
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[-1] += data.strip()

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app(FakeEngine(), Settings()))


@pytest.fixture(scope="module")
def document() -> Document:
    return Document((STATIC / "index.html").read_text())


def source(name: str) -> str:
    return (STATIC / name).read_text()


def scripts() -> dict[str, str]:
    return {path.name: path.read_text() for path in STATIC.glob("*.js")}


def references() -> set[str]:
    """The files that the page loads, and those that these load."""
    document = Document(source("index.html"))
    found = set(document.values("src") + document.values("href"))
    for text in scripts().values():
        found |= {
            f"static/{name}"
            for name in re.findall(r'from "\./([\w.]+)"|URL\("([\w.]+)"', text)
            for name in name
            if name
        }
    return found


def test_the_page_and_all_that_it_loads_are_served_as_what_they_are(client):
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert {f"static/{path.name}" for path in STATIC.iterdir()} - {"static/index.html"} == references()
    for path in ["", *references()]:
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].split(";")[0] == types[Path(path).suffix or ".html"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == (STATIC / (Path(path).name or "index.html")).read_bytes()


def test_everything_is_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "server"
    ]
    for path in STATIC.iterdir():
        assert any(fnmatch(f"static/{path.name}", pattern) for pattern in patterns), path


def test_nothing_comes_from_outside():
    for path in STATIC.iterdir():
        addresses = re.findall(r"(?:https?:|wss?:)?//[\w.-]*\w+\.\w[^\s\"')]*", path.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name  # a name, which nobody opens


def test_the_policy_lets_nothing_in_but_our_own_files(client, document):
    policy = dict(
        part.split(" ", 1) for part in client.get("/").headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    # so the page may hold no code or style of its own
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    assert not document.values("style")
    assert all("src" in attributes for tag, attributes in document.elements if tag == "script")
    assert "style" not in {tag for tag, _ in document.elements}
    for name, text in scripts().items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


def test_a_browser_keeps_what_has_not_changed(client):
    first = client.get("/static/page.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/page.js", headers={"If-None-Match": f"W/{first.headers['etag']}"})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]
    assert client.get("/static/page.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head("/").headers["content-length"] == str(len(source("index.html").encode()))


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/../app.py", "/static/%2e%2e/app.py"]
)
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_what_the_scripts_and_labels_name_is_on_the_page(document):
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    named = {name for text in scripts().values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    assert len(named) > 10
    for attribute in REFERENCES:
        named |= {name for value in document.values(attribute) for name in value.split()}
    assert named <= set(ids)


def test_every_control_has_a_name_and_only_finals_are_read_out(document):
    labels = set(document.values("for"))
    controls = [attributes for tag, attributes in document.elements if tag in LABELLED]
    assert controls
    assert [control["id"] for control in controls if control["id"] not in labels] == []
    buttons = [attributes for tag, attributes in document.elements if tag == "button"]
    assert len([text for text in document.texts if text]) == len(buttons)
    assert {button["type"] for button in buttons} == {"button"}
    roles = {
        attributes["role"]: attributes["id"]
        for _, attributes in document.elements
        if "role" in attributes and "id" in attributes
    }
    assert (roles["log"], roles["status"], roles["alert"]) == ("finals", "status", "notice")
    assert document.values("aria-live") == ["off"]  # the partial
    assert [attributes["lang"] for tag, attributes in document.elements if tag == "html"] == ["en"]


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_what_is_written_can_be_read(scheme):
    blocks = re.findall(r":root \{(.*?)\}", source("style.css"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[scheme]))
    for text in ("ink", "soft"):
        for ground in ("sheet", "paper"):
            assert contrast(colours[text], colours[ground]) >= 4.5
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["alarm"], colours["sheet"]) >= 4.5
    for ground in ("sheet", "paper"):
        assert contrast(colours["accent"], colours[ground]) >= 3  # outlines and curves


def constants(name: str) -> dict[str, int]:
    found = re.findall(r"^const ([A-Z_]+) = ([\d_]+);", source(name), re.MULTILINE)
    return {constant: int(value) for constant, value in found}


def test_the_page_has_the_patience_of_its_twin_in_python():
    ours = constants("conversation.js")
    assert ours["MAX_AHEAD_MS"] == twin.MAX_AHEAD_MS
    assert ours["KEEP_MS"] == twin.KEEP_MS
    assert ours["KEEPALIVE_MS"] == twin.KEEPALIVE_S * 1000
    assert ours["FIRST_DELAY_MS"] == twin.FIRST_DELAY_S * 1000
    assert ours["LONGEST_DELAY_MS"] == twin.LONGEST_DELAY_S * 1000
    assert ours["CLOSED_SLACK_MS"] == twin.CLOSED_SLACK_MS
    (hopeless,) = re.findall(r"new Set\(\[([\d, ]+)\]\)", source("conversation.js"))
    assert set(map(int, hopeless.split(","))) == twin.HOPELESS


def test_the_page_asks_for_what_its_twin_in_python_asks_for():
    (asked,) = re.findall(r"new URLSearchParams\(\{(.*)\}\)", source("conversation.js"))
    ours = set(re.findall(r"(\w+): true", asked))
    theirs = {
        name for name, value in parse_qsl(urlsplit(twin.StreamClient("ws://x")._url).query) if value == "true"
    }
    assert ours == theirs == {"words", "progress", "resumes"}


def test_the_page_sends_every_rate_that_the_server_takes():
    assert constants("capture.js")["MOST_RATE"] == HIGHEST_RATE


def test_the_page_cuts_subtitles_as_the_command_does():
    ours = constants("formats.js")
    assert len(ours) == 6
    assert ours == {name: getattr(transcript, name) for name in ours}


def test_models_tells_what_may_be_asked_for():
    app = create_app(FakeEngine(), Settings(chunk_ms=400, delay_ms=200, pause_ms=500, final_pass="none"))
    answer = TestClient(app, "http://localhost").get("/v1/models").json()
    (model,) = answer["data"]
    assert (answer["object"], model["object"], model["id"]) == ("list", "model", "fake.en")
    assert (model["chunk_ms"]["default"], model["delay_ms"]["default"]) == (400, 200)
    assert model["final_pass"]["default"] == "none"
    terms = app.state.house.terms
    for name in ("chunk_ms", "delay_ms"):
        offer = model[name]
        for asked in range(offer["least"], offer["most"] + 1, offer["step"]):
            Native.parse({name: str(asked), "model": model["id"]}, terms)
        for asked in (offer["least"] - offer["step"], offer["most"] + offer["step"], offer["least"] + 1):
            with pytest.raises(ValueError, match=name):
                Native.parse({name: str(asked)}, terms)
    assert model["pause_ms"] == {"least": 100, "most": 5000, "step": 20, "default": 500}
    assert Native.parse({}, terms).options.pause_ms == 500
    for choice in model["final_pass"]["choices"]:
        Native.parse({"final_pass": choice}, terms)


def test_a_model_that_has_learnt_when_to_wait_offers_no_delay():
    app = create_app(FakeEngine(), Settings().model_copy(update={"delay_ms": None}))
    (model,) = TestClient(app, "http://localhost").get("/v1/models").json()["data"]
    assert model["delay_ms"] is None
    terms = app.state.house.terms
    assert Native.parse({}, terms).options.delay_ms == 0
    with pytest.raises(ValueError, match=r"fake\.en has learnt when to wait: leave delay_ms out"):
        Native.parse({"delay_ms": "160"}, terms)


@pytest.mark.parametrize("name", ["fake.en", "/srv/heads/ancat 80"])
def test_one_model_is_the_list_s_and_another_is_not_there(name):
    engine = FakeEngine()
    engine.model_name = name
    client = TestClient(create_app(engine, Settings()), "http://localhost")
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{quote(name, safe='')}").json() == model
    answer = client.get("/v1/models/whisper-1")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "no model 'whisper-1' here: /v1/models tells" in error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer key"}, 200),
        ({"Authorization": "Bearer key", "Origin": "https://evil.example"}, 403),
    ],
)
def test_models_are_told_to_whom_the_door_lets_in(headers, status):
    client = TestClient(create_app(FakeEngine(), Settings(api_key="key")))
    assert client.get("/v1/models", headers=headers).status_code == status
    assert client.get("/").status_code == 200  # the page, on which a key can be typed
