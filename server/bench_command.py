"""`asr-stream bench`. Only the command line is imported with this file, so that help comes at once."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

if TYPE_CHECKING:
    from asr.audio import Samples
    from streaming.session import SessionOptions

app = typer.Typer(add_completion=False)

CHUNKS_MS = (100, 200, 300, 500, 1000)  # that `compute` compares
BEAMS = (1, 4)  # likewise
COMPUTE_S = 30.0  # of audio, for each row of `compute`
MEMORY_STREAMS = 8
SOAK_STREAMS = 4
SOAK_CLIPS = 60  # at most: each is heard once in quiet before
LONG_MINUTES, SOAK_MINUTES = 60.0, 30.0
CHECK_FAILED = 1  # exit code
SAMPLES = Path(__file__).parent.parent / "samples"


class Report(StrEnum):
    COMPUTE = "compute"
    STREAMS = "streams"
    MEMORY = "memory"
    LONG = "long"
    SOAK = "soak"
    LOOKAHEAD = "lookahead"


ALL_FOUR = (Report.COMPUTE, Report.STREAMS, Report.MEMORY, Report.LONG)


class House(Protocol):
    """What the front door hands to a command that lives in a room (asr_stream.py)."""

    def build_engine(self, model: str, **how: Any) -> Any: ...
    def place(self, model: str, adapter: str | None, device: str) -> Any: ...
    def set_by_user(self, context: typer.Context) -> set[str]: ...
    def check_final_pass(self, model: str, adapter: str | None, final_pass: str) -> None: ...
    def decides_when_to_wait(self, model: str, adapter: str | None, *, asked: bool) -> bool: ...
    def describe_adapter(self, model: str, adapter: str | None) -> str: ...
    def describe_machine(self, device: str) -> dict[str, Any]: ...
    def load_utterances(self, data: Path) -> Sequence[Any]: ...
    def measure_lookahead(
        self, models: Sequence[str], utterances: Sequence[Any], out: Path, **how: Any
    ) -> Any: ...
    def measure_long(self, engine: Any, utterances: Sequence[Any], options: Any, **how: Any) -> Any: ...
    def serve_command(self, model: str, adapter: str | None, **flags: object) -> list[str]: ...


class Measured(Protocol):
    """A report, or what there is of it so far."""

    def as_json(self) -> dict[str, Any]: ...
    def table(self) -> Any: ...


@app.command()
def bench(
    context: typer.Context,
    reports: Annotated[
        list[Report] | None,
        typer.Argument(
            metavar="REPORT",
            help="compute: what a chunk costs one stream, and which stage. streams: how many streams at once. "
            "memory: of each stream. long: an hour in one session. All four if none is named. soak: clients "
            "that come, go, vanish, pause and stall; exit code 1 if a word or a slot is lost, or memory grows. "
            "lookahead: error rate against latency of transducers, one after another.",
        ),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1, help="streams: so many, instead of finding the most. memory: up to so many. soak: clients."
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="streams: no more are tried; the server has slots for them.")
    ] = 64,
    seconds: Annotated[
        float, typer.Option(min=1, help="streams, memory: that each client speaks, per trial.")
    ] = 30,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="long: of joined clips, 60 if not given. soak: of clients, 30."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="long: of the pauses between clips. soak: of what clients do. lookahead: of the shuffling."
        ),
    ] = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="lookahead: adaptive, shuffled, causal, layerwise:1,1,0,0 or chunked:9, as often as you like; what "
            "each model was trained for if not given.",
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="A manifest or LibriSpeech tree.")] = SAMPLES / "manifest.jsonl",
    out: Annotated[Path | None, typer.Option(help="Folder of the reports; runs/... if not given.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="tiny.en (if not given), base.en, a checkpoint's path, or a transducer as in `models list`. "
            "lookahead: transducers or folders of heads, as many as you like.",
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter or a head instead of the shipped one.")
    ] = None,
    chunk_ms: Annotated[int, typer.Option(help="Audio per step; `compute` compares several.")] = 300,
    delay_ms: Annotated[int, typer.Option(help="How long after its end a word is due.")] = 160,
    beam: Annotated[int, typer.Option(help="Hypotheses of the search; `compute` compares several.")] = 1,
    final_pass: Annotated[
        Literal["full", "rescore", "none"],
        typer.Option(help="Of each utterance, as in `transcribe`: full, rescore or none."),
    ] = "full",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the model; of a server, its engines.")] = None,
    device: Annotated[
        str, typer.Option(help="Where models compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
    ] = "auto",
) -> None:
    """Measure speed: compute, concurrent streams, memory, an hour without a break. Ctrl-C keeps what there is."""
    from rich.console import Console

    from server.outputs import writable_folder
    from server.terminal import tell
    from streaming.session import SessionOptions

    house: House = context.obj
    if Report.LOOKAHEAD in (reports or ()):
        if len(set(reports or ())) > 1:
            raise ValueError("lookahead is about models of its own: ask for it alone")
        if adapter is not None:
            raise ValueError("lookahead takes no --adapter: name each folder of a head with --model")
        _lookahead(house, models or [], house.load_utterances(data), out, policies or [], seed)
        return
    if policies:
        raise ValueError("--policy is for lookahead")
    model, *others = models or ["tiny.en"]
    if others:
        raise ValueError("these reports are about one --model; lookahead compares several")
    house.check_final_pass(model, adapter, final_pass)
    if house.decides_when_to_wait(model, adapter, asked="delay_ms" in house.set_by_user(context)):
        delay_ms = 0
    device = str(house.place(model, adapter, device))
    bench = Bench(
        house,
        model,
        adapter,
        threads,
        device,
        SessionOptions(chunk_ms=chunk_ms, delay_ms=delay_ms, final_pass=final_pass, beam=beam),
        house.load_utterances(data),
        streams=streams,
        most=most,
        seconds=seconds,
        minutes=minutes,
        seed=seed,
    )
    out = writable_folder(out or Path("runs") / f"bench-{Path(model).name}")
    header = {
        "model": model,
        "adapter": house.describe_adapter(model, adapter),
        "data": data.name,
        "delay_ms": delay_ms,
        "final_pass": final_pass,
        "threads": threads,  # null: as the server chooses
        "machine": house.describe_machine(device),
    }
    passed = True
    compared = {"chunk_ms": chunk_ms, "beam": beam}  # by `compute`, whose rows say which
    for name in dict.fromkeys(reports or ([Report.STREAMS] if streams else ALL_FOUR)):
        measured: Measured | None = None
        try:
            for so_far in bench.reports[name]():
                measured = so_far
        finally:  # Ctrl-C, or a server that gave up: what there is was measured
            if measured is not None:
                own = {} if name == Report.COMPUTE else compared
                _write(out, name, {"report": name.value} | header | own, measured)
                Console().print(measured.table())
                tell(f"{out / name}.json")
                passed = passed and getattr(measured, "passed", True)
    if not passed:
        raise typer.Exit(CHECK_FAILED)


def _lookahead(
    house: House,
    models: Sequence[str],
    utterances: Sequence[Any],
    out: Path | None,
    policies: Sequence[str],
    seed: int,
) -> None:
    from server.outputs import writable_folder
    from server.terminal import progress, tell

    if not models:
        raise ValueError(
            "name one --model or more: transducers, such as ancat-tiny.en-320, or folders of heads"
        )
    out = writable_folder(out or Path("runs") / "bench-lookahead")
    with progress("lookahead") as show:
        page = house.measure_lookahead(models, utterances, out, policies=policies, seed=seed, progress=show)
    page.write(out)
    tell(f"{out / 'report.md'}")


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

    @property
    def reports(self) -> dict[Report, Callable[[], Iterator[Measured]]]:
        return {
            Report.COMPUTE: self.compute,
            Report.STREAMS: self.concurrency,
            Report.MEMORY: self.memory,
            Report.LONG: self.long,
            Report.SOAK: self.soak,
        }

    def compute(self) -> Iterator[Measured]:
        import numpy as np

        from asr.audio import SAMPLE_RATE
        from server.bench_compute import measure_compute
        from server.terminal import progress

        samples = np.concatenate(self._recordings(COMPUTE_S))[: int(COMPUTE_S * SAMPLE_RATE)]
        beams = [beam for beam in BEAMS if beam > 1 or self.options.final_pass != "rescore"]
        rows = [{"chunk_ms": chunk_ms, "beam": beam} for chunk_ms in CHUNKS_MS for beam in beams]
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

        from server.child import process_memory_mb
        from server.terminal import Interruption, progress

        with Interruption() as interruption, progress("long") as show:
            yield self.house.measure_long(
                self._engine(),
                self.utterances,
                self.options,
                minutes=self.minutes or LONG_MINUTES,
                seed=self.seed,
                memory_mb=lambda: process_memory_mb(os.getpid()),
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


def _write(out: Path, name: Report, header: dict[str, Any], measured: Measured) -> None:
    """NAME.json, and NAME.md and NAME.png where the report has a page and draws a plot."""
    from server.outputs import replacing

    with replacing(out / f"{name}.json") as file:
        assert file is not None
        file.write(json.dumps(header | measured.as_json(), indent=1) + "\n")
    if markdown := getattr(measured, "markdown", None):
        with replacing(out / f"{name}.md") as file:
            assert file is not None
            file.write(markdown())
    if plot := getattr(measured, "plot", None):
        plot(out / f"{name}.png")
