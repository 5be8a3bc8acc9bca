"""The reports of `asr-stream bench`: what is made of trials, servers and an engine, and what Ctrl-C leaves."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from asr.checkpoint import Whisper
from server import bench_command
from server.bench import BenchReport, CapacityReport, MemoryPoint, MemoryReport, find_capacity, measure_memory
from server.bench_compute import HOOKS, OTHER, SECOND_PASS, STAGES, StageClock, measure_compute, timed_stages
from server.bench_reports import BEAMS, CHUNKS_MS
from server.child import child_server
from server.load import LoadReport
from streaming.engine import Engine
from streaming.recognizer import WhisperRecognizer
from streaming.session import SessionOptions

PNG = b"\x89PNG\r\n\x1a\n"
FAKE_SERVER = """
import sys
from server.app import serve
from server.config import Settings
from tests.server.fakes import FakeEngine
serve(Settings(port=0), lambda: FakeEngine(slots=int(sys.argv[1])))
"""


def trial(
    streams: int,
    lag_ms: float,
    *,
    answered: int = 10,
    errors: dict[str, int] | None = None,
    skipped: int = 0,
) -> BenchReport:
    load = LoadReport(streams, 3.0, 10, answered, lag_ms / 2, lag_ms, 2 * lag_ms, 2.0, 3.0, 12, errors or {})
    passes = {"heard": streams, "skipped": skipped, "failed": 0}
    return BenchReport(load, chunk_ms=300, cpu_cores=1.5, cpus=2, memory_mb=None, second_passes=passes)


def as_text(report: object) -> str:
    console = Console(width=120)
    with console.capture() as said:
        console.print(report.table())
    return said.get()


@pytest.mark.parametrize(
    ("holds", "most", "tried"),
    [
        (5, 64, [1, 2, 4, 8, 6, 5]),
        (0, 64, [1]),
        (7, 7, [1, 2, 4, 7]),
        (100, 6, [1, 2, 4, 6]),
        (5, 6, [1, 2, 4, 6, 5]),
        (1, 1, [1]),
    ],
)
def test_capacity_is_doubled_then_bisected(holds: int, most: int, tried: list[int]) -> None:
    asked: list[int] = []

    def measure(streams: int) -> BenchReport:
        asked.append(streams)
        return trial(streams, 100 if streams <= holds else 400)

    reports = list(find_capacity(measure, most))
    assert asked == tried
    assert [len(report.trials) for report in reports] == list(range(1, len(tried) + 1))
    assert reports[-1].capacity == min(holds, most)
    assert reports[-1].as_json()["at_least"] == (holds >= most)


@pytest.mark.parametrize(
    ("report", "in_time"),
    [
        (trial(4, 299), True),
        (trial(4, 300), False),
        (trial(4, 10, answered=9), False),
        (trial(4, 10, errors={"full": 1}), False),
    ],
)
def test_in_time_is_every_chunk_answered_within_a_chunk(report: BenchReport, in_time: bool) -> None:
    assert report.in_time is in_time


def test_the_curve_is_in_order_of_streams(tmp_path: Path) -> None:
    report = CapacityReport(
        (trial(1, 50), trial(4, 500, skipped=3), trial(2, 80), trial(3, float("nan"), answered=0)), 64
    )
    values = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert (values["capacity_streams"], values["at_least"]) == (2, False)
    assert [row["streams"] for row in values["curve"]] == [1, 2, 3, 4]
    assert [row["lag_p95_ms"] for row in values["curve"]] == [50, 80, None, 500]
    assert [row["in_time"] for row in values["curve"]] == [True, True, False, False]
    assert not any("memory_mb" in row for row in values["curve"])
    assert values["curve"][3]["second_passes"] == {"heard": 4, "skipped": 3, "failed": 0}
    assert "2 streams in time" in as_text(report)
    assert "3 of 7" in as_text(report)
    report.plot(tmp_path / "streams.png")
    assert [path.read_bytes()[:8] for path in tmp_path.iterdir()] == [PNG]


def test_memory_per_stream_is_the_slope(tmp_path: Path) -> None:
    points = tuple(MemoryPoint(trial(n, 50).load, 500 + 40 * n + (-1) ** n) for n in (2, 4, 6, 8))
    report = MemoryReport(points)
    assert report.line == (pytest.approx(501), pytest.approx(40))
    assert report.as_json() | {"points": 4} == {"server_mb": 501, "stream_mb": 40, "seconds": 3, "points": 4}
    assert re.search(r"the server itself\W+501 MB", as_text(report))
    assert re.search(r"each stream\W+40.0 MB", as_text(report))
    report.plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(PNG)


def test_one_point_has_no_slope(tmp_path: Path) -> None:
    report = MemoryReport((MemoryPoint(trial(1, 50).load, 500),))
    assert report.line is None
    assert set(report.as_json()) == {"seconds", "points"}
    assert "500 MB" in as_text(report)
    report.plot(tmp_path / "memory.png")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_servers_of_so_many_slots_are_measured_while_all_streams_speak() -> None:
    slots: list[int] = []

    def serve(streams: int):
        slots.append(streams)
        return child_server([sys.executable, "-c", FAKE_SERVER, str(streams)])

    *_, report = measure_memory(serve, [np.zeros(16_000, np.float32)], 2, 0.4, 100)
    assert slots == [point.load.streams for point in report.points] == [1, 2]
    assert all(
        point.load.errors == {} and point.load.answered == 4 * n for n, point in enumerate(report.points, 1)
    )
    assert all(point.resident_mb > 10 for point in report.points)


def test_a_stage_within_another_belongs_to_it() -> None:
    clock = StageClock()
    inner = clock.timing("mel", lambda: sum(range(1000)))
    outer = clock.timing("encoder", lambda: inner() + 1)
    assert outer() == sum(range(1000)) + 1
    assert clock.seconds["encoder"] > 0
    assert clock.seconds["mel"] == 0
    inner()
    assert clock.seconds["mel"] > 0


def test_hooks_are_gone_when_it_is_over() -> None:
    def functions() -> list[object]:
        return [vars(owner)[method] for _, owner, method in HOOKS]

    def broken() -> None:
        with timed_stages():
            assert all(now is not then for now, then in zip(functions(), before, strict=True))
            raise ZeroDivisionError

    before = functions()
    with pytest.raises(ZeroDivisionError):
        broken()
    assert functions() == before


def test_compute_is_measured_stage_by_stage(tiny: Whisper, jfk) -> None:
    engine = Engine(WhisperRecognizer(tiny), tiny, "tiny", slots=1, final_pass_thread=False)
    rows = [{"chunk_ms": 500, "beam": 1}, {"chunk_ms": 1000, "beam": 2}]
    opened, open_ = [], engine.open
    engine.open = lambda options: opened.append(options) or open_(options)  # type: ignore[method-assign]
    asked = SessionOptions(delay_ms=400)
    reports = list(measure_compute(engine, jfk[: 4 * 16_000].numpy(), asked, rows))
    engine.close()
    assert set(opened) == {replace(asked, **row) for row in rows}
    assert [len(report.rows) for report in reports] == [1, 2]
    for row, options, chunks in zip(reports[-1].rows, rows, (8, 4), strict=True):
        assert (row.options, row.chunks) == (options, chunks)
        assert 0 < row.p50_ms <= row.p95_ms <= row.max_ms
        assert list(row.stages_ms) == [
            *(stage for stage in STAGES if stage != SECOND_PASS),
            OTHER,
            SECOND_PASS,
        ]
        mean_ms = sum(row.stages_ms.values()) - row.stages_ms[SECOND_PASS]
        assert mean_ms == pytest.approx(row.rtf * 4_000 / chunks)
        # "word times" are the second pass's, where there is one; the others are a transducer's
        idle = {"word times", "adaptive layers", "transducer search"}
        assert {stage for stage, ms in row.stages_ms.items() if ms <= 0} == idle
    values = json.loads(json.dumps(reports[-1].as_json()))
    assert [row["options"] for row in values["rows"]] == rows
    assert re.search(r"1000\W+2\W+\d+\.\d ms", as_text(reports[-1]))


class House:
    """A front door without models: one report is scripted by each test."""

    def __init__(
        self, long: Callable[..., object], *, decides: bool = False, given: Iterable[str] = ()
    ) -> None:
        self.measure_long = long
        self.decides = decides
        self.given = {"delay_ms", *given}

    def set_by_user(self, context: typer.Context) -> set[str]:
        return self.given

    def check_final_pass(self, model: str, adapter: str | None, final_pass: str) -> None:
        assert final_pass in ("full", "none")

    def decides_when_to_wait(self, model: str, adapter: str | None, *, asked: bool) -> bool:
        assert asked
        return self.decides

    def build_engine(self, model: str, **how: object) -> str:
        assert how == {
            "slots": 1,
            "threads": None,
            "adapter": None,
            "device": "cpu",
            "final_pass_thread": False,
        }
        return f"engine of {model}"

    def place(self, device: str) -> str:
        assert device == "auto"
        return "cpu"

    def describe_adapter(self, model: str, adapter: str | None) -> str:
        return "careless 123"

    def describe_machine(self, device: str) -> dict[str, object]:
        return {"cpu": "an abacus"}

    def load_utterances(self, data: Path) -> list[str]:
        return ["clip"]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Result]:
    def run(house: House, *words: object) -> Result:
        arguments = [str(word) for word in (*words, "--out", tmp_path / "out")]
        return CliRunner().invoke(bench_command.app, arguments, obj=house)

    return run


def test_a_report_is_written_with_what_it_depends_on(bench: Callable[..., Result], tmp_path: Path) -> None:
    def long(engine: str, utterances: list[str], options: object, **how: object) -> CapacityReport:
        assert (engine, utterances) == ("engine of base.en", ["clip"])
        assert (options.chunk_ms, options.final_pass) == (500, "none")
        assert (how["minutes"], how["seed"]) == (2, 3)
        assert how["stop"]() is False
        return CapacityReport((trial(1, 50),), 1)

    words = (
        "--model",
        "base.en",
        "--chunk-ms",
        500,
        "--final-pass",
        "none",
        "--beam",
        2,
        "--minutes",
        2,
        "--seed",
        3,
    )
    done = bench(House(long), "long", *words)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "long.json").read_text())
    expected = {
        "report": "long", "model": "base.en", "adapter": "careless 123", "data": "manifest.jsonl",
        "chunk_ms": 500, "delay_ms": 160, "beam": 2, "final_pass": "none", "threads": None,
        "machine": {"cpu": "an abacus"},
    }  # fmt: skip
    assert written == expected | CapacityReport((trial(1, 50),), 1).as_json()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["long.json", "long.png"]
    assert "1 streams or more in time" in done.stdout


def test_a_model_that_decides_when_to_wait_is_asked_for_no_delay(
    bench: Callable[..., Result], tmp_path: Path
) -> None:
    def long(engine: str, utterances: list[str], options: SessionOptions, **how: object) -> CapacityReport:
        assert options.delay_ms == 0
        return CapacityReport((trial(1, 50),), 1)

    done = bench(House(long, decides=True), "long", "--delay-ms", 400)
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "out" / "long.json").read_text())["delay_ms"] == 0


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ((), [(chunk_ms, beam) for chunk_ms in CHUNKS_MS for beam in BEAMS]),
        (("chunk_ms",), [(400, beam) for beam in BEAMS]),
        (("beam",), [(chunk_ms, 2) for chunk_ms in CHUNKS_MS]),
        (("chunk_ms", "beam"), [(400, 2)]),
    ],
)
def test_compute_is_measured_of_what_was_asked_for(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, given: Sequence[str], rows: object
) -> None:
    measured: list[dict[str, int]] = []
    monkeypatch.setattr(
        bench_command.Bench, "compute", lambda self: iter(measured.extend(self.compared) or ())
    )
    words = {"chunk_ms": ("--chunk-ms", 400), "beam": ("--beam", 2)}
    done = bench(
        House(lambda: None, given=given), "compute", *(word for name in given for word in words[name])
    )
    assert done.exit_code == 0, done.exception
    assert [(row["chunk_ms"], row["beam"]) for row in measured] == rows


def test_ctrl_c_keeps_what_was_measured(
    bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> Iterator[CapacityReport]:
        yield CapacityReport((trial(1, 50),), 64)
        yield CapacityReport((trial(1, 50), trial(2, 60)), 64)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command.Bench, "concurrency", interrupted)
    assert bench(House(lambda: None), "streams", "long").exit_code == 130
    written = json.loads((tmp_path / "out" / "streams.json").read_text())
    assert (written["capacity_streams"], len(written["curve"])) == (2, 2)
    assert not (tmp_path / "out" / "long.json").exists()


def test_a_number_of_streams_is_a_report_of_its_own(
    bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_command.Bench, "concurrency", lambda self: iter([trial(self.streams, 50)]))
    done = bench(House(lambda: None), "--streams", 16)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["streams.json"]
    assert json.loads((tmp_path / "out" / "streams.json").read_text())["lag_p95_ms"] == 50
