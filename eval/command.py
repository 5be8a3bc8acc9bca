"""`asr-stream eval`. Only the command line is imported with this file, so that help comes at once."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

app = typer.Typer(add_completion=False)


class House(Protocol):
    """What the front door hands to a command that lives in a room (asr_stream.py)."""

    def build_engine(self, model: str, **how: Any) -> Any: ...
    def describe_adapter(self, model: str, adapter: str | None) -> str: ...
    def progress(self, what: str) -> AbstractContextManager[Any]: ...


@app.command("eval")
def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A manifest (JSON lines) or a LibriSpeech tree.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; runs/... if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a tree.")] = None,
    labels: Annotated[Path | None, typer.Option(help="JSON lines with word times.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first utterances.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = True,
    model: Annotated[str, typer.Option(help="Base model: tiny.en, base.en or a checkpoint.")] = "tiny.en",
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter instead of the shipped one.")
    ] = None,
    chunk_ms: Annotated[int, typer.Option(help="Audio per step: 100 to 1000 in steps of 20.")] = 300,
    final_pass: Annotated[
        Literal["full", "none"], typer.Option(help="Whether the base model hears each utterance again.")
    ] = "full",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the model.")] = None,
) -> None:
    """Measure word error rate, delay and compute on transcribed speech. Interrupted, it goes on when run again."""
    from eval.datasets import load
    from eval.report import as_markdown
    from eval.run import evaluate as run

    house: House = context.obj
    utterances = load(data, split, labels=labels)[:limit]
    out = out or Path("runs") / f"{data.stem}-{Path(model).name}-{chunk_ms}ms"
    out.mkdir(parents=True, exist_ok=True)
    engine = house.build_engine(model, slots=1, threads=threads, adapter=adapter, final_pass_thread=False)
    with house.progress("evaluating") as show:
        report = run(
            engine,
            utterances,
            chunk_ms=chunk_ms,
            final_pass=final_pass,
            out=out,
            policy=house.describe_adapter(model, adapter),
            resume=resume,
            progress=show,
        )
    typer.echo(as_markdown(report.summary))
    typer.echo(f"the report is in {out}")
