"""`asr-stream eval`. Only the command line is imported with this file, so that help comes at once."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

if TYPE_CHECKING:
    from eval.report import Report
    from eval.sweep import Condition

INTERRUPTED = 130  # exit code
WORTH_A_PROCESS = 8  # recognitions: starting a process takes as long as some of them

app = typer.Typer(add_completion=False)


class House(Protocol):
    """What the front door hands to a command that lives in a room (asr_stream.py)."""

    def build_engine(self, model: str, **how: Any) -> Any: ...
    def place(self, device: str) -> Any: ...
    def base_of(self, model: str, adapter: str | None) -> str: ...
    def set_by_user(self, context: typer.Context) -> set[str]: ...
    def check_final_pass(self, model: str, adapter: str | None, final_pass: str) -> None: ...
    def decides_when_to_wait(self, model: str, adapter: str | None, *, asked: bool) -> bool: ...
    def describe_adapter(self, model: str, adapter: str | None) -> str: ...
    def writable_folder(self, path: Path) -> Path: ...
    def progress(self, what: str) -> AbstractContextManager[Any]: ...


@app.command("eval")
def evaluate(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="A manifest (JSON lines), or a LibriSpeech tree as torchaudio lays it out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; runs/... if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a tree, as test-clean.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Get the split, if it is not there.")] = False,
    words: Annotated[
        Path | None,
        typer.Option(
            "--words",
            "--labels",
            help="When words were said: JSON lines with id and words, each word, start s, end s or word, end s.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first utterances.")] = None,
    baselines: Annotated[str, typer.Option(help="To compare with: offline,local-agreement.")] = "",
    chunk_ms: Annotated[
        str, typer.Option(help="Audio per step: 100 to 1000 in steps of 20; 100,300 sweeps.")
    ] = "300",
    beam: Annotated[
        str, typer.Option(help="Hypotheses of the search, 1 to 8; 1 is greedy; 1,4 sweeps.")
    ] = "1",
    delay_ms: Annotated[
        str, typer.Option(help="How long after its end a word is due, 0 to 600; 0,200 sweeps.")
    ] = "160",
    pause_ms: Annotated[
        str, typer.Option(help="Silence that ends an utterance, 100 to 5000; 300,700 sweeps.")
    ] = "700",
    model: Annotated[
        str, typer.Option(help="tiny.en, base.en, a checkpoint's path, or a transducer as in `models list`.")
    ] = "tiny.en",
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Folder of an adapter or a head instead of the shipped one; `none` for experiments."
        ),
    ] = None,
    final_pass: Annotated[
        Literal["full", "rescore", "none"],
        typer.Option(help="Of each utterance, as in `transcribe`: full, rescore or none."),
    ] = "full",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes of one thread each; as many as cores for much work. 1 measures compute alone.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Clips at once in one engine: faster, but no compute figures.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the model; torch decides if not given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where models compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
    ] = "auto",
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Hear the audio at the speed of speech.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = True,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Instead, compare two report.json.")
    ] = None,
) -> None:
    """Measure word error rate, delay and compute on transcribed speech. Interrupted, it goes on when run again."""
    if compare is not None:
        if data is not None:
            raise ValueError("--compare takes two reports and no data")
        from eval.compare import compare as table

        typer.echo(table(*compare))
        return
    if data is None:
        raise ValueError(
            "say what to evaluate: a manifest or a LibriSpeech tree (see `asr-stream eval --help`)"
        )
    if realtime and batch > 1:
        raise ValueError("--realtime and --batch exclude each other: a batch measures no compute")
    from eval import datasets, sweep
    from eval.jobs import Workshop

    house: House = context.obj
    house.check_final_pass(model, adapter, final_pass)
    own_delay = house.decides_when_to_wait(model, adapter, asked="delay_ms" in house.set_by_user(context))
    settings = sweep.conditions(
        chunk_ms=_numbers("chunk-ms", chunk_ms),
        beam=_numbers("beam", beam),
        delay_ms=(0,) if own_delay else _numbers("delay-ms", delay_ms),
        pause_ms=_numbers("pause-ms", pause_ms),
        final_pass=final_pass,
        baselines=[name.strip() for name in baselines.split(",") if name.strip()],
    )
    if download:
        if split is None:
            raise ValueError("--download needs --split, as in --split test-clean")
        datasets.download(data, split)
    utterances = datasets.load(data, split, labels=words)[:limit]
    n_recognitions = len(utterances) * len(settings)
    if jobs is None:
        jobs = 1 if realtime else max(1, min(_cores(), n_recognitions // WORTH_A_PROCESS))
    if threads is None and jobs > 1:
        threads = 1
    where = str(house.place(device))
    build = partial(
        house.build_engine,
        model,
        slots=batch,
        threads=threads,
        adapter=adapter,
        device=where,
        final_pass_thread=False,
    )
    name = data.resolve().stem + (f"-{split}" if split else "")
    plan = sweep.Plan(
        utterances,
        settings,
        house.writable_folder(
            out or Path("runs") / f"{name}-{Path(model).name}-{chunk_ms.replace(',', '-')}ms"
        ),
        policy=house.describe_adapter(model, adapter),
        jobs=jobs,
        batch=batch,
        realtime=realtime,
        resume=resume,
    )
    done, total = 0, n_recognitions
    try:
        with house.progress("evaluating") as show:

            def progress(n: int, of: int, what: str) -> None:
                nonlocal done, total
                done, total = n, of
                show(n, of, f"{n} of {of}  {what}")

            workshop = Workshop(build, model, house.base_of(model, adapter), threads, where)
            reports = sweep.evaluate(plan, workshop, progress)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {done} of {total} are done; the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(_tell(plan.out, reports))


def _tell(out: Path, reports: "dict[Condition, Report]") -> str:
    """Writes what people look at, and says the short of it."""
    from eval.document import Page
    from eval.page import headline, page
    from eval.plots import entries
    from eval.sweep import write_overview

    write_overview(out, reports)
    some = entries(reports)
    page(some).write(out)
    table = Page("", (headline(some),)).as_markdown().strip("# \n")
    return f"{table}\n\nthe report is in {out} (report.html, report.md, report.json)"


def _cores() -> int:
    """That this process may use; not every system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbers(name: str, text: str) -> Sequence[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} takes a number, or several with commas between, not {text!r}") from None
