"""The reports of `asr-stream bench`, by name: what each measures, and on how much speech."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from server.house import House

if TYPE_CHECKING:
    from asr.audio import Samples
    from streaming.session import SessionOptions

CHUNKS_MS = (100, 200, 300, 500, 1000)  # that `compute` compares
BEAMS = (1, 4)  # likewise
COMPUTE_S = 30.0  # of audio, for each row of `compute`
MEMORY_STREAMS = 8
SOAK_STREAMS = 4
SOAK_CLIPS = 60  # at most: each is heard once in quiet before
LONG_MINUTES, SOAK_MINUTES = 60.0, 30.0


class Report(StrEnum):
    COMPUTE = "compute"
    STREAMS = "streams"
    MEMORY = "memory"
    LONG = "long"
    SOAK = "soak"
    LOOKAHEAD = "lookahead"


ALL_FOUR = (Report.COMPUTE, Report.STREAMS, Report.MEMORY, Report.LONG)


class Measured(Protocol):
    """A report, or what there is of it so far."""

    def as_json(self) -> dict[str, Any]: ...
    def table(self) -> Any: ...


@dataclass(frozen=True)
class Bench:
    """The reports by name: each yields what it knows, more and more; its last one is the report."""

    house: House
    model: str
    adapter: str | None
    threads: int | None
    device: str
    options: "SessionOptions"
    utterances: Sequence[Any]
    streams: int | None
    most: int
    seconds: float
    minutes: float | None
    seed: int
    given: frozenset[str]  # the options that the user has set: these `compute` does not vary

    @property
    def reports(self) -> dict[Report, Callable[[], Iterator[Measured]]]:
        return {
            Report.COMPUTE: self.compute,
            Report.STREAMS: self.concurrency,
            Report.MEMORY: self.memory,
            Report.LONG: self.long,
            Report.SOAK: self.soak,
        }

    @property
    def compared(self) -> list[dict[str, int]]:
        """The rows of `compute`: several chunks and beams, but the user's own where they were set."""
        chunks_ms = (self.options.chunk_ms,) if "chunk_ms" in self.given else CHUNKS_MS
        beams = [beam for beam in BEAMS if beam > 1 or self.options.final_pass != "rescore"]
        if "beam" in self.given:
            beams = [self.options.beam]
        return [{"chunk_ms": chunk_ms, "beam": beam} for chunk_ms in chunks_ms for beam in beams]

    def compute(self) -> Iterator[Measured]:
        import numpy as np

        from asr.audio import SAMPLE_RATE
        from server.bench_compute import measure_compute
        from server.terminal import progress

        samples = np.concatenate(self._recordings(COMPUTE_S))[: int(COMPUTE_S * SAMPLE_RATE)]
        rows = self.compared
        with progress("compute") as show:
            engine = self._engine()
            for report in measure_compute(engine, samples, self.options, rows):
                show(len(report.rows), len(rows))
                yield report

    def concurrency(self) -> Iterator[Measured]:
        from server.bench import LATE_S, find_capacity, measure
        from server.child import child_server
        from server.dial import ServerError
        from server.terminal import progress

        with progress("streams") as show, child_server(self._server(self.streams or self.most)) as server:
            recordings = self._recordings()
            if self.streams:
                report = measure(server, recordings, self.streams, self.seconds, self.options.chunk_ms)
                yield report
                if not report.load.answered:
                    raise ServerError(
                        "no_answer", "the server answered no chunk: its errors are in the report"
                    )
                return
            for capacity in find_capacity(
                lambda n: measure(
                    server, recordings, n, self.seconds, self.options.chunk_ms, patience_s=LATE_S
                ),
                self.most,
            ):
                load = capacity.trials[-1].load
                show(
                    len(capacity.trials),
                    None,
                    f"{load.streams} streams: 95 % within {load.lag_p95_ms:.0f} ms",
                )
                yield capacity

    def memory(self) -> Iterator[Measured]:
        from server.bench import measure_memory
        from server.child import child_server
        from server.terminal import progress

        most = self.streams or MEMORY_STREAMS
        with progress("memory") as show:
            for report in measure_memory(
                lambda slots: child_server(self._server(slots)),
                self._recordings(),
                most,
                self.seconds,
                self.options.chunk_ms,
            ):
                show(report.points[-1].load.streams, most)
                yield report

    def long(self) -> Iterator[Measured]:
        import os

        from server.processes import memory_mb
        from server.terminal import Interruption, progress

        with Interruption() as interruption, progress("long") as show:
            yield self.house.measure_long(
                self._engine(),
                self.utterances,
                self.options,
                minutes=self.minutes or LONG_MINUTES,
                seed=self.seed,
                memory_mb=lambda: memory_mb(os.getpid()),
                stop=lambda: interruption.asked,
                progress=show,
            )
            if interruption.asked:
                raise KeyboardInterrupt

    def soak(self) -> Iterator[Measured]:
        from asr.audio import read_audio
        from server.child import child_server
        from server.soak import soak
        from server.terminal import Interruption, progress

        streams = self.streams or SOAK_STREAMS
        clips = {one.id: read_audio(one.audio) for one in self.utterances[:SOAK_CLIPS]}
        with (
            Interruption() as interruption,
            progress("soak") as show,
            child_server(self._server(streams)) as server,
        ):
            yield soak(
                server,
                clips,
                streams,
                60 * (self.minutes or SOAK_MINUTES),
                self.seed,
                stop=lambda: interruption.asked,
                progress=show,
            )
            if interruption.asked:
                raise KeyboardInterrupt

    def _engine(self) -> Any:
        return self.house.build_engine(
            self.model,
            slots=1,
            threads=self.threads,
            adapter=self.adapter,
            device=self.device,
            final_pass_thread=False,
        )

    def _server(self, slots: int) -> list[str]:
        return self.house.serve_command(
            self.model,
            self.adapter,
            slots=slots,
            chunk_ms=self.options.chunk_ms,
            delay_ms=self.options.delay_ms,
            beam=self.options.beam,
            final_pass=self.options.final_pass,
            engines=self.threads,
            device=self.device,
        )

    def _recordings(self, seconds: float | None = None) -> "list[Samples]":
        """What the clients say: as many clips as there may be clients, or as fill `seconds`."""
        from asr.audio import SAMPLE_RATE, read_audio

        if seconds is None:
            return [read_audio(one.audio) for one in self.utterances[: self.streams or self.most]]
        recordings: list[Samples] = []
        for one in self.utterances:
            if sum(map(len, recordings)) >= seconds * SAMPLE_RATE:
                break
            recordings.append(read_audio(one.audio))
        return recordings
