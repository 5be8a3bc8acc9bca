"""`asr-stream transcribe`. Only the command line is imported with this file, so that help comes at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from server.house import (
    INTERRUPTED,
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

if TYPE_CHECKING:
    from server.sources import Pipe

OF_RAW_PCM = ("encoding", "rate", "channels")

app = typer.Typer(add_completion=False)


@app.command("transcribe")
def transcribe(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="WAV, FLAC, Ogg or MP3; - for raw PCM from stdin.")],
    form: Annotated[
        Literal["text", "json", "srt", "vtt"], typer.Option("--format", help="Of what is written.")
    ] = "text",
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout, all at the end.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Hear it at the speed of speech.")] = False,
    encoding: Annotated[Literal["s16le", "f32le", "mulaw"], typer.Option(help="Of raw PCM.")] = "s16le",
    rate: Annotated[int, typer.Option(help="Of raw PCM, in Hz.")] = 16_000,
    channels: Annotated[int, typer.Option(help="Of raw PCM.")] = 1,
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
    device: Device = "auto",
) -> None:
    """Write down what is said in a recording. Ctrl-C ends it early, with what was recognised so far."""
    from asr.audio import PcmDecoder, duration, stream_audio
    from server import sources, terminal
    from server.outputs import replacing
    from server.transcribe import transcribe as run

    if not file:
        raise ValueError("the file's name is empty: name a recording, or give - for raw PCM from stdin")
    house: House = context.obj
    given = house.set_by_user(context)
    if file != "-" and (wrong := [name for name in OF_RAW_PCM if name in given]):
        raise ValueError(f"--{wrong[0]} is of raw PCM only: leave it out, or give - as the file")
    session = session_options(chunk_ms, delay_ms, pause_ms, final_pass, beam, prompt, hotwords)
    if file == "-":
        decoder = PcmDecoder(encoding, rate, channels)
        length_s, audio = None, sources.read_pcm(cast("Pipe", sys.stdin.buffer), decoder)
    else:
        length_s, audio = duration(file), stream_audio(file, chunk_ms / 1000)
    if realtime:
        audio = sources.at_speed_of_speech(audio)
    house.check_final_pass(model, adapter, final_pass)
    house.decides_when_to_wait(model, adapter, asked="delay_ms" in given)
    with replacing(out) as target:
        engine = house.build_engine(
            model, slots=1, threads=threads, adapter=adapter, device=device, final_pass_thread=False
        )
        made = run(engine, audio, session, length_s=length_s, form=form, target=target)
    if made.interrupted:
        where = f"in {out}" if out else "written"
        terminal.tell(f"interrupted: what was said in the first {made.audio_s:.1f} s is {where}")
        raise typer.Exit(INTERRUPTED)
    if not made.finals:
        terminal.tell(made.why_nothing())
