"""The soak against a real server process with the model that hears numbers, sound and broken; and its judgement."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from server import bench_command, bench_reports, soak_report
from server import client as client_module
from server import soak as soak_module
from server.child import ChildServer, child_server
from server.soak import Manner, free_slots, soak, visits
from server.soak_report import SoakReport, compare
from tests.server.fakes import speech
from tests.server.test_bench import PNG

PROGRAM = """
import sys
from server.app import serve
from server.config import Settings
from tests.server.fakes import FakeEngine
engine = FakeEngine(slots=3)
{change}
serve(Settings(port=0, chunk_ms=100, idle_timeout_s=0.5), lambda: engine)
"""
BROKEN = """
from tests.server.fakes import FakeSession
left, release, hear = [], engine.release, FakeSession._hear
engine.release = lambda session: release(session) if left else left.append(session)  # keeps a slot
FakeSession._hear = lambda self, number: None if number == 3 and len(engine.sessions) > 1 else hear(self, number)
"""


def server_of(change: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(change=change)]


def clip(*words: int) -> np.ndarray:
    return np.frombuffer(speech(*words), "<i2").astype(np.float32) / 32_767


CLIPS = {"short": clip(1, 2, 0, 3), "long": clip(*range(4, 10), 0, 10, 11)}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do in seconds what takes minutes."""
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(client_module, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(soak_module, "LOOK_S", 0.1)
    spans = {Manner.VANISH: (0.0, 0.0), Manner.PAUSE: (0.1, 0.3), Manner.STALL: (0.1, 0.4)}
    spans[Manner.FREEZE] = (0.6, 0.8)
    monkeypatch.setattr(soak_module, "SPANS_S", spans)
    monkeypatch.setattr(soak_module, "WAIT_S", (0.0, 0.2))
    monkeypatch.setattr(soak_module, "SILENCE_S", (0.1, 0.3))
    monkeypatch.setattr(soak_report, "MOST_GROWTH", 10.0)  # in so short a time it means nothing


@pytest.fixture(scope="module")
def sound() -> Iterator[ChildServer]:
    with child_server(server_of()) as server:
        yield server


def run(server: ChildServer, seconds: float, stop: Callable[[], bool] = lambda: False) -> SoakReport:
    return soak(server, CLIPS, 3, seconds, seed=1, stop=stop, progress=lambda *_: None)


def failed(report: SoakReport) -> list[str]:
    return [check for check, passed in report.checks.items() if not passed]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_sound_server_passes(sound: ChildServer, tmp_path: Path) -> None:
    report = run(sound, 4)
    assert failed(report) == []
    assert report.seconds >= 4
    assert report.visits == report.closed + report.left > report.left > 0
    assert report.incidents[Manner.VANISH] > 0 and report.incidents[Manner.FREEZE] > 0
    assert report.reconnections >= report.incidents[Manner.VANISH] + report.incidents[Manner.FREEZE]
    assert report.words > report.clips
    values = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert (values["passed"], values["lost"], values["added"]) == (True, 0, 0)
    assert len(values["memory_mb"]) > 10
    report.plot(tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(PNG)


def test_what_was_measured_before_an_interruption_is_kept(sound: ChildServer) -> None:
    asked = itertools.count()
    report = run(sound, 600, stop=lambda: next(asked) > 10)
    assert 0 < report.seconds < 600
    assert report.memory_mb or sys.platform != "linux"
    assert report.slots_free == 3  # also of the conversations that were torn


def test_the_same_seed_does_the_same() -> None:
    def first(seed: int, stream: int) -> list[object]:
        return list(itertools.islice(visits(seed, stream, {"a": 3.0, "b": 5.0}), 40))

    assert first(1, 2) == first(1, 2)
    assert first(1, 2) != first(1, 3)
    assert first(1, 2) != first(2, 2)
    turns = [turn for visit in first(1, 2) for turn in visit.turns]
    assert {incident.manner for turn in turns for incident in turn.incidents} == set(Manner)
    assert {turn.silence_s > 0 for turn in turns} == {visit.closes for visit in first(1, 2)} == {True, False}


@pytest.mark.parametrize(
    ("quiet", "heard", "lost", "added", "otherwise"),
    [
        ("And so, my fellow", "and so my fellow", 0, 0, 0),
        ("and so my fellow", "and my fellow", 1, 0, 0),
        ("and so my fellow", "and so and so my fellow", 0, 2, 0),
        ("and so my fellow", "", 4, 0, 0),
        ("", "and so", 0, 2, 0),
        ("and so my fellow", "and oh my fellow", 0, 0, 1),
        ("come in to town", "come into town", 0, 0, 0),
        ("come in town", "come and sing town", 0, 0, 2),
        ("ask what you can do", "ask dew", 2, 0, 2),
    ],
)
def test_words_are_lost_added_or_worded_otherwise(quiet, heard, lost, added, otherwise) -> None:
    difference = compare("clip", quiet, heard)
    counted = (difference.lost, difference.added, difference.otherwise) if difference else (0, 0, 0)
    assert counted == (lost, added, otherwise)


def of_memory(mb: Sequence[float]) -> SoakReport:
    return SoakReport(2, 0, 100, seconds=len(mb), memory_mb=list(enumerate(mb)))


def test_growth_is_counted_from_after_the_warm_up() -> None:
    report = of_memory([*np.linspace(100, 200, 25), *[200] * 65, *[230] * 10])
    assert report.growth == pytest.approx(0.15)
    assert of_memory([100, 100]).growth is None
    assert SoakReport(2, 0, 100).growth is None


def test_a_server_whose_memory_grows_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_report, "MOST_GROWTH", 0.05)
    report = of_memory([100] * 90 + [120] * 10)
    report.clips, report.slots_free = 1, 2
    assert failed(report) == ["memory grew by 5% at most"]
    report.memory_mb = report.memory_mb[:90]
    assert report.passed


class House:
    """A front door to a server of the fakes, and to clips in a folder."""

    def __init__(self, folder: Path, change: str = "") -> None:
        self.folder, self.change = folder, change

    def serve_command(self, *_: object, **__: object) -> list[str]:
        return server_of(self.change)

    def set_by_user(self, _: typer.Context) -> set[str]:
        return set()

    def check_final_pass(self, *_: object) -> None:
        pass

    def decides_when_to_wait(self, *_: object, **__: object) -> bool:
        return False

    def describe_adapter(self, *_: object) -> str:
        return "careless 123"

    def place(self, *_: object) -> str:
        return "cpu"

    def describe_machine(self, _: str) -> dict[str, object]:
        return {"cpu": "an abacus"}

    def load_utterances(self, _: Path) -> list[object]:
        for name, samples in CLIPS.items():
            soundfile.write(self.folder / f"{name}.wav", samples, 16_000, "PCM_16")
        return [SimpleNamespace(id=name, audio=self.folder / f"{name}.wav") for name in CLIPS]


def test_the_command_writes_its_reports_and_fails_with_a_broken_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_module, "SETTLE_S", 0.5)
    monkeypatch.setattr(bench_reports, "SOAK_MINUTES", 0.05)
    words = ["soak", "--streams", "3", "--seed", "5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(bench_command.app, words, obj=House(tmp_path, BROKEN))
    assert done.exit_code == 1, done.exception
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["soak.json", "soak.md", "soak.png"]
    written = json.loads((tmp_path / "out" / "soak.json").read_text())
    assert (written["report"], written["passed"], written["seed"], written["slots_free"]) == (
        "soak",
        False,
        5,
        2,
    )
    assert written["lost"] == len(written["differences"]) > 0
    story = " ".join(next(each["story"] for each in written["differences"] if each["clip"] == "short"))
    assert "says short" in story
    assert "hears 'w1 w2'" in story
    page = (tmp_path / "out" / "soak.md").read_text()
    assert "| every slot came back | **no** |" in page
    assert "| no word was lost | **no** |" in page
    assert "| short | w1 w2 w3 | w1 w2 |" in page
    assert "no word was doubled" in done.output


def test_the_command_ends_well_where_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = of_memory([100] * 10)
    report.clips, report.slots_free = 1, 2
    monkeypatch.setattr(bench_command.Bench, "soak", lambda self: iter([report]))
    done = CliRunner().invoke(bench_command.app, ["soak", "--out", str(tmp_path)], obj=House(tmp_path))
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "soak.json").read_text())["growth"] == 0


def test_the_slots_are_asked_for(sound: ChildServer) -> None:
    assert free_slots(sound.url) == 3
    assert free_slots("ws://127.0.0.1:9/v1/stream") is None
