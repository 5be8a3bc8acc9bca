"""What a chunk costs one stream in this process, and which stage takes it: hooks while it is measured, none else."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table

from asr.audio import SAMPLE_RATE, Samples
from asr.beam import BeamSearch
from asr.decoder import Decoder
from asr.encoder import Encoder
from asr.mel import LogMel
from asr.offline import OfflineDecoder
from asr.search import GreedySearch
from asr.transducer.executor import Executor
from asr.transducer.rescorer import Rescorer
from asr.transducer.search import TransducerSearch
from asr.transducer.trunk import Trunk
from streaming.endpoint import VoiceActivity
from streaming.listen import raise_fatal
from streaming.recognizer import WhisperRecognizer
from streaming.session import SessionOptions
from streaming.transducer import TransducerRecognizer

if TYPE_CHECKING:
    from streaming.engine import Engine

SECOND_PASS = "second pass"
HOOKS: tuple[tuple[str, type, str], ...] = (  # (stage, and a method that does it)
    ("voice activity", VoiceActivity, "step"),
    ("mel", LogMel, "step"),
    ("encoder", Encoder, "step"),
    ("cross keys", Decoder, "listen"),
    ("rescoring", GreedySearch, "_rescore"),
    ("rescoring", BeamSearch, "_rescore"),
    ("extension", GreedySearch, "_extend"),
    ("extension", BeamSearch, "_extend"),
    ("encoder", Trunk, "step"),
    ("adaptive layers", Executor, "step"),
    ("transducer search", TransducerSearch, "step"),
    ("word times", WhisperRecognizer, "words"),
    ("word times", TransducerRecognizer, "words"),
    (SECOND_PASS, OfflineDecoder, "transcribe"),
    (SECOND_PASS, Rescorer, "best"),
)
STAGES = tuple(dict.fromkeys(stage for stage, _, _ in HOOKS))
OTHER = "other"  # of a step: what no stage took
WARM_UP_S = 3.0


class StageClock:
    """How long each stage has taken so far, in seconds. A stage within another one belongs to that."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._within = False

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is put down to `stage`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return function(*args, **kwargs)
            self._within, started_s = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - started_s
                self._within = False

        return timed


@contextmanager
def timed_stages() -> Iterator[StageClock]:
    """Every stage of every engine of this process is timed until the block is left; for one thread only."""
    clock = StageClock()
    with ExitStack() as stack:
        for stage, owner, method in HOOKS:
            function = vars(owner)[method]
            setattr(owner, method, clock.timing(stage, function))
            stack.callback(setattr, owner, method, function)
        yield clock


@dataclass(frozen=True)
class ComputeRow:
    """One stream with one set of options. Times per chunk leave out second passes, which run beside a stream."""

    options: dict[str, object]  # those that differ from row to row
    chunks: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    rtf: float  # compute per audio, without second passes
    second_pass_rtf: float
    stages_ms: dict[str, float]  # per chunk, on average: together the mean, the end of the audio included


@dataclass(frozen=True)
class ComputeReport:
    """The rows, in the order in which they were measured."""

    rows: tuple[ComputeRow, ...]

    def as_json(self) -> dict[str, object]:
        return {"rows": [_rounded(asdict(row)) for row in self.rows]}

    def table(self) -> Group:
        """The numbers for people: times per chunk, then where they go."""
        times = Table(title="Compute per chunk, one stream")
        stages = Table(title="Where it goes: ms per chunk, on average")
        for heading in self.rows[0].options:
            times.add_column(heading, justify="right")
            stages.add_column(heading, justify="right")
        for heading in ("median", "95 %", "longest", "compute / audio", "second pass / audio"):
            times.add_column(heading, justify="right")
        taken = [stage for stage in self.rows[0].stages_ms if any(row.stages_ms[stage] for row in self.rows)]
        for heading in taken:
            stages.add_column(heading, justify="right")
        for row in self.rows:
            options = [str(value) for value in row.options.values()]
            milliseconds = [f"{ms:.1f} ms" for ms in (row.p50_ms, row.p95_ms, row.max_ms)]
            times.add_row(*options, *milliseconds, f"{row.rtf:.3f}", f"{row.second_pass_rtf:.3f}")
            stages.add_row(*options, *(f"{row.stages_ms[stage]:.1f}" for stage in taken))
        return Group(times, stages)


def measure_compute(
    engine: "Engine", samples: Samples, options: SessionOptions, rows: Sequence[dict[str, Any]]
) -> Iterator[ComputeReport]:
    """Streams `samples` (n,) of 16 kHz through `engine` once for each of `rows`, the options to compare.

    engine: used by nobody else, with the second pass inside `step` (final_pass_thread=False).
    options: of every row, but for what the row says.

    Yields what is known after each row. Raises RecognitionError where the engine fails.
    """
    measured: list[ComputeRow] = []
    for row in rows:
        chosen = replace(options, **row)
        _stream(engine, samples[: int(WARM_UP_S * SAMPLE_RATE)], chosen)
        measured.append(_measure_row(engine, samples, chosen, row))
        yield ComputeReport(tuple(measured))


def _measure_row(
    engine: "Engine", samples: Samples, options: SessionOptions, row: dict[str, Any]
) -> ComputeRow:
    with timed_stages() as clock:
        steps_s = _stream(engine, samples, options, lambda: clock.seconds[SECOND_PASS])
    chunks_ms = 1_000 * np.array(steps_s[:-1])
    p50, p95, longest = np.quantile(chunks_ms, [0.5, 0.95, 1.0])
    audio_s, compute_s = len(samples) / SAMPLE_RATE, sum(steps_s)
    stages_s = {stage: seconds for stage, seconds in clock.seconds.items() if stage != SECOND_PASS}
    stages_s |= {
        OTHER: compute_s - sum(stages_s.values()),
        SECOND_PASS: clock.seconds[SECOND_PASS],
    }
    return ComputeRow(
        options=row,
        chunks=len(chunks_ms),
        p50_ms=float(p50),
        p95_ms=float(p95),
        max_ms=float(longest),
        rtf=compute_s / audio_s,
        second_pass_rtf=clock.seconds[SECOND_PASS] / audio_s,
        stages_ms={stage: 1_000 * seconds / len(chunks_ms) for stage, seconds in stages_s.items()},
    )


def _stream(
    engine: "Engine",
    samples: Samples,
    options: SessionOptions,
    second_pass_s: Callable[[], float] = lambda: 0.0,
) -> list[float]:
    """Seconds that each chunk took, second passes left out; the last ones are those of the end of the audio."""
    session = engine.open(options)
    n_chunk = options.chunk_ms * SAMPLE_RATE // 1_000
    steps_s = []
    for start in [*range(0, len(samples), n_chunk), None]:
        if start is None:
            session.finish()
        else:
            session.receive_samples(samples[start : start + n_chunk])
        beside_s, started_s = second_pass_s(), time.perf_counter()
        while engine.step():
            pass
        steps_s.append(time.perf_counter() - started_s - (second_pass_s() - beside_s))
        for event in session.events():
            raise_fatal(event)
    return steps_s


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value
