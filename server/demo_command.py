"""`asr-stream demo`. Only the command line is imported with this file, so that help comes at once."""

from pathlib import Path
from typing import Annotated

import typer

from server.house import SAMPLES, Adapter, ChunkMs, House, Model

NO_WORDS = 1  # exit code

app = typer.Typer(add_completion=False)


@app.command("demo")
def demo(
    context: typer.Context,
    clip: Annotated[Path, typer.Option(help="What is said.")] = SAMPLES / "jfk.wav",
    model: Model = "tiny.en",
    adapter: Adapter = None,
    chunk_ms: ChunkMs = 300,
) -> None:
    """Start a server, speak a clip to it at the speed of speech, and show what comes back, and when."""
    import asyncio

    from asr.audio import duration
    from server.child import child_server
    from server.demo import show
    from server.terminal import tell
    from streaming.session import SessionOptions

    SessionOptions(chunk_ms=chunk_ms)
    duration(clip)  # says at once if it is no audio
    house: House = context.obj
    house.base_of(model, adapter)  # likewise if there is no such model
    tell(f"starting a server with {model}")
    command = house.serve_command(model, adapter, slots=1, chunk_ms=chunk_ms, final_pass="full")
    with child_server(command) as server:
        tell(f"speaking {clip.name} to {server.url}")
        came = asyncio.run(show(server, clip, chunk_ms))
    if not came:
        tell("no words came")
        raise typer.Exit(NO_WORDS)
