"""`asr-stream align`. Only the command line is imported with this file, so that help comes at once."""

from pathlib import Path
from typing import Annotated

import typer

from adapters.house import Base, House, device

app = typer.Typer(add_completion=False)


@app.command("align")
def align(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="JSON lines with id, audio and text.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder of the alignment; an interrupted one goes on.")],
    model: Base = "tiny.en",
    batch: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 16,
    words_from: Annotated[
        Path | None, typer.Option(help="Alignment by another model: take its words.", exists=True)
    ] = None,
) -> None:
    """Find out when each word of a training set ends, with the unmodified model."""
    from adapters.align import align_manifest
    from asr.checkpoint import load

    house: House = context.obj
    house.writable_folder(out)
    with house.progress("aligning") as show:
        n_clips = align_manifest(
            manifest, out, load(model, device=device()), batch=batch, words_from=words_from, progress=show
        )
    typer.echo(f"{n_clips} clips are in {out}")
