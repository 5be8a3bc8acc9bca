"""`asr-stream mic`. Only the command line is imported with this file, so that help comes at once."""

import os
from typing import Annotated

import typer

from server.house import (
    Adapter,
    Beam,
    ChunkMs,
    DelayMs,
    Device,
    HotwordList,
    House,
    Model,
    PauseMs,
    Prompt,
    SecondPass,
    Threads,
    session_options,
)

#: That a server hears.
WISHES = ("chunk_ms", "delay_ms", "pause_ms", "final_pass", "beam", "prompt", "hotwords")
OURS = {"model", "adapter", "threads", "model_device"}  # of a model here

app = typer.Typer(add_completion=False)


@app.command("mic")
def mic(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="A server (ws://...) instead of a model here.")] = None,
    device: Annotated[str | None, typer.Option(help="Number or name of the microphone.")] = None,
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="Show the microphones and end.")
    ] = False,
    model: Model = "tiny.en",
    adapter: Adapter = None,
    chunk_ms: ChunkMs = 300,
    delay_ms: DelayMs = 160,
    pause_ms: PauseMs = 700,
    final_pass: SecondPass = "full",
    beam: Beam = 1,
    prompt: Prompt = "",
    hotwords: HotwordList = "",
    threads: Threads = None,
    model_device: Device = "auto",
) -> None:
    """Show what is said into the microphone while it is said. A server's key is taken from ASR_STREAM_API_KEY."""
    import asyncio

    from server.client import StreamClient
    from server.local import LocalClient
    from server.mic import check_input, input_devices, talk

    if list_devices:
        typer.echo("\n".join(input_devices()) or "no microphone was found")
        return
    house: House = context.obj
    given = house.set_by_user(context)
    if url is not None and (own := sorted(given & OURS)):
        raise ValueError(
            f"--{own[0].replace('_', '-')} is for a model here: with --url it is the server's to choose"
        )
    session = session_options(chunk_ms, delay_ms, pause_ms, final_pass, beam, prompt, hotwords)
    chosen = int(device) if device and device.isdecimal() else device
    check_input(chosen)

    async def run() -> None:
        if url is not None:
            token = os.environ.get("ASR_STREAM_API_KEY")
            wishes = {name: getattr(session, name) for name in WISHES if name in given}
            async with StreamClient(
                url, token=token, **wishes
            ) as remote:  # the others are as the server has them
                await talk(remote, chosen)
        else:
            house.check_final_pass(model, adapter, final_pass)
            house.decides_when_to_wait(model, adapter, asked="delay_ms" in given)
            engine = house.build_engine(model, slots=1, threads=threads, adapter=adapter, device=model_device)
            async with LocalClient(engine, session) as local:
                await talk(local, chosen)

    asyncio.run(run())
