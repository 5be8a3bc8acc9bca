"""The front door: the `asr-stream` command. Rooms are imported inside the commands, so that help comes at once."""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from asr.checkpoint import Whisper
    from asr.transducer.model import Transducer
    from eval.datasets import Utterance
    from eval.document import Page
    from eval.longform import LongForm
    from server.terminal import Interruption, Show
    from streaming.engine import Engine
    from streaming.pool import EnginePool
    from streaming.recognizer import Recognizer
    from streaming.session import SessionOptions

ROOMS = ("asr", "streaming", "adapters", "kernels", "server", "eval")
MOST_ENGINES = 8  # unless asked for: each is a process of some 0.6 GB
#: Commands that live in a room: its module, with the command as `app`.
COMMANDS = {
    "serve": "server.serve_command",
    "models": "adapters.models_command",
    "eval": "eval.command",
    "bench": "server.bench_command",
    "align": "adapters.align_command",
    "train": "adapters.train_command",
}
SAMPLES = Path(__file__).parent / "samples"
FAILED, INTERRUPTED = 2, 130  # exit codes


class FrontDoor(TyperGroup):
    """Says in a line what went wrong with a user's input or machine; `--debug` and mistakes of ours show it all."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if module := COMMANDS.get(cmd_name):
            command = typer.main.get_command(importlib.import_module(module).app)
            command.name = cmd_name  # a group has none of its own, and help would not name it
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params.get("debug") or not _is_expected(error):
                raise
            typer.echo(f"asr-stream: {_in_words(error)}", err=True)
            raise typer.Exit(FAILED) from error


def _is_expected(error: Exception) -> bool:
    """Errors that a room defines, the system's, and values that a user gave; a broken pipe is Typer's to handle."""
    if isinstance(error, OSError):
        return error.errno != errno.EPIPE
    return isinstance(error, ValueError) or type(error).__module__.partition(".")[0] in ROOMS


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


app = typer.Typer(
    name="asr-stream",
    cls=FrontDoor,
    help="Streaming speech recognition: Whisper made causal, and a server around it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


FinalPass = Literal["full", "rescore", "none"]
Model = Annotated[
    str, typer.Option(help="tiny.en, base.en, a checkpoint's path, or a transducer as in `models list`.")
]
Adapter = Annotated[
    str | None,
    typer.Option(help="Folder of an adapter or a head instead of the shipped one; `none` for experiments."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of the model; torch decides if not given.")]
Device = Annotated[
    str, typer.Option(help="Where models compute: auto (a GPU if there is one), cpu, cuda, cuda:1.")
]
ChunkMs = Annotated[int, typer.Option(help="Audio per step: 100 to 1000 in steps of 20.")]
DelayMs = Annotated[
    int, typer.Option(help="How long after its end a word is due, 0 to 600: waiting avoids guesses.")
]
SecondPass = Annotated[
    FinalPass,
    typer.Option(
        "--final-pass",
        help="Of each utterance: `full`, the base model hears it again; `rescore`, for transducers with a rescorer "
        "and a beam, Whisper's decoder chooses among the hypotheses; `none`.",
    ),
]
Beam = Annotated[int, typer.Option(help="Hypotheses of the search, 1 to 8; 1 is greedy.")]
Prompt = Annotated[str, typer.Option(help="What was said or written before; the second pass reads it.")]
HotwordList = Annotated[
    str, typer.Option("--hotwords", help="Words likely to be said: `Ada, Mont Blanc`, or @FILE, a line each.")
]


@app.callback()
def options(
    ctx: typer.Context, debug: Annotated[bool, typer.Option(help="Show where an error came from.")] = False
) -> None:
    """What all commands share."""
    ctx.obj = sys.modules[__name__]  # commands that live in rooms: rooms must not import the front door


def build_engine(
    model: str,
    *,
    slots: int,
    threads: int | None = None,
    adapter: str | None = None,
    device: str = "auto",
    final_pass_thread: bool = True,
) -> "Engine":
    """The engine for a model, what we add to it merged into its streaming copy.

    Args:
        model, adapter: see adapters/shipped.py.
        device: see `place`.

    Raises:
        ValueError: there is no such device here.
        WeightsError: the base weights cannot be had.
        AdapterError: there is no adapter, or no head, for this model, or it does not fit.
    """
    import torch

    from streaming.engine import Engine

    if threads is None and final_pass_thread:
        threads = max(1, torch.get_num_threads() - 1)  # the second pass has a core of its own
    if threads is not None:
        torch.set_num_threads(threads)
    recognizer, base = load_models(model, adapter, place(model, adapter, device))
    return Engine(recognizer, base, model, slots, final_pass_thread=final_pass_thread)


def build_pool(
    model: str,
    *,
    slots: int,
    engines: int | None = None,
    adapter: str | None = None,
    device: str = "auto",
    prepare: Callable[[], None] | None = None,
) -> "EnginePool":
    """What a server serves with: `engines` that divide `slots`, on a CPU in a process each, on a GPU in this one.

    Args:
        engines: None: as many as cores that torch sees, MOST_ENGINES at most; on a GPU one, whose batches are the
            larger.
        prepare: what each process does before all else; it is sent there.

    Raises:
        Exception: as `build_engine`.
    """
    import torch

    from server.engine_process import EngineProcess
    from streaming.pool import EnginePool

    on_cpu = place(model, adapter, device).type == "cpu"
    cores = torch.get_num_threads() if on_cpu else 1
    n = min(slots, engines or min(cores, MOST_ENGINES))
    shares = [slots // n + (i < slots % n) for i in range(n)]
    build = partial(build_engine, model, threads=1, adapter=adapter, device=device)
    if not on_cpu:
        return EnginePool([build(slots=share) for share in shares])

    def launch(share: int) -> EngineProcess:
        return EngineProcess(partial(build, slots=share), share, prepare)

    first = launch(shares[0])  # which fetches the weights, if they are not there
    with ThreadPoolExecutor() as launching:
        return EnginePool([first, *launching.map(launch, shares[1:])])


def place(model: str, adapter: str | None, device: str) -> "torch.device":
    """Where a model computes that is asked for on `device`: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: there is no such device here, or this model cannot use it; one line that says what to do.
    """
    import torch

    from adapters.shipped import find
    from asr.device import choose

    chosen = choose(device)
    if chosen.type != "cpu" and find(model, adapter).head is not None:
        if device != "auto":
            raise ValueError(
                f"device {device}: transducers compute on a CPU; `cpu` and `auto` work for {model}"
            )
        return torch.device("cpu")
    return chosen


def load_models(model: str, adapter: str | None, device: "torch.device") -> "tuple[Recognizer[Any], Whisper]":
    """What hears the stream, and the unmodified model of the second pass, as they serve on `device`."""
    from adapters import loading
    from adapters.shipped import find
    from asr.checkpoint import load
    from asr.precision import for_serving
    from streaming.recognizer import Recognizer, WhisperRecognizer
    from streaming.transducer import TransducerRecognizer

    chosen = find(model, adapter)
    base = load(chosen.base)
    recognizer: Recognizer[Any]
    rescorer = None
    if chosen.head is None:
        recognizer = WhisperRecognizer(for_serving(loading.causal(base, chosen.adapter).to(device)))
    else:
        transducer = loading.transducer(base, chosen.adapter, chosen.head)
        rescorer = loading.rescorer(base, chosen.rescorer) if chosen.rescorer else None
        for_serving(transducer.trunk.encoder)  # the head is small, and decides in float32
        recognizer = TransducerRecognizer(transducer, rescorer)
    base = for_serving(base.to(device))
    if rescorer is not None:
        decoder = for_serving(rescorer.decoder)  # its vocabulary is the base's, and held once
        decoder.token_embedding, decoder.unembedding = base.decoder.token_embedding, base.decoder.unembedding
    return recognizer, base


def base_of(model: str, adapter: str | None) -> str:
    """The base model that a model is made of."""
    from adapters.shipped import find

    return find(model, adapter).base


def describe_adapter(model: str, adapter: str | None) -> str:
    """Tells one adapter from another, so that a report is never made of two."""
    from adapters.shipped import find

    return find(model, adapter).description


def decides_when_to_wait(model: str, adapter: str | None, *, asked: bool) -> bool:
    """Whether no delay can be asked of a model; who has `asked` for one is told."""
    from adapters.shipped import find
    from server.terminal import tell

    decides = find(model, adapter).decides_when_to_wait
    if decides and asked:
        tell(f"{model} has learnt when to wait: the delay that was asked for does not apply")
    return decides


def check_final_pass(model: str, adapter: str | None, final_pass: str) -> None:
    """Tells who asks for a second pass that a model does not offer, before it is loaded.

    Raises:
        ValueError: in one line.
    """
    from adapters.shipped import find
    from streaming.session import no_such_pass

    if final_pass == "rescore" and find(model, adapter).rescorer is None:
        raise ValueError(no_such_pass(model, final_pass, ("full", "none")))


def describe_machine(device: str) -> dict[str, Any]:
    """What times depend on; `device` as `place` tells it."""
    from asr.device import described
    from eval.report import describe_machine as describe

    return {**describe(described(device)), "cpus": os.cpu_count()}


def load_utterances(data: Path) -> "list[Utterance]":
    """Clips with transcripts, of a manifest or a LibriSpeech tree."""
    from eval.datasets import load

    return load(data)


def measure_long(
    engine: "Engine", utterances: "Sequence[Utterance]", options: "SessionOptions", **how: Any
) -> "LongForm":
    """Clips joined in one session, see eval/longform.py."""
    from eval.longform import measure

    return measure(engine, utterances, options, **how)


def measure_lookahead(
    models: "Sequence[str]", utterances: "Sequence[Utterance]", out: Path, **how: Any
) -> "Page":
    """Error rates against latencies of transducers, see eval/lookahead.py; `models` as of `build_engine`."""
    import json

    from adapters import loading
    from adapters.shipped import HEAD_FILE, AdapterError, find
    from asr.checkpoint import load
    from asr.precision import for_serving
    from eval.lookahead import Head, measure
    from eval.lookahead_page import page

    def head(name: str) -> Head:
        chosen = find(name)
        folder = chosen.head
        if folder is None:
            raise AdapterError(
                f"{name} is no transducer: name one of `asr-stream models list`, or a head's folder"
            )

        def load_model() -> "Transducer":
            model = loading.transducer(load(chosen.base), chosen.adapter, folder)
            for_serving(model.trunk.encoder)
            return model

        return Head(name, chosen.description, json.loads((folder / HEAD_FILE).read_text()), load_model)

    return page(measure([head(name) for name in models], utterances, out, **how))


def progress(what: str) -> "AbstractContextManager[Show]":
    """A bar on stderr for work that takes long."""
    from server.terminal import progress as bar

    return bar(what)


def interruption() -> "Interruption":
    """Ctrl-C as a question that long work answers when it can."""
    from server.terminal import Interruption

    return Interruption()


def writable_folder(path: Path) -> Path:
    """Where long work is to write: made, or refused in one line before the work."""
    from server.outputs import writable_folder as made

    return made(path)


def _session(
    chunk_ms: int, delay_ms: int, final_pass: str, beam: int, prompt: str, hotwords: str
) -> "SessionOptions":
    """What the options of a command ask for; ValueError with one clear line for what may not be."""
    from asr.biasing import read_hotwords
    from streaming.session import SessionOptions

    return SessionOptions(
        chunk_ms=chunk_ms,
        delay_ms=delay_ms,
        final_pass=final_pass,
        beam=beam,
        prompt=prompt,
        hotwords=read_hotwords(hotwords),
    )


def set_by_user(context: typer.Context) -> set[str]:
    """The parameters that the user has set."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


@app.command()
def transcribe(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="WAV, FLAC, Ogg or MP3; - for raw PCM from stdin.")],
    form: Annotated[Literal["text", "json", "srt", "vtt"], typer.Option("--format")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout, all at the end.")] = None,
    realtime: Annotated[bool, typer.Option(help="Hear it at the speed of speech.")] = False,
    encoding: Annotated[Literal["s16le", "f32le", "mulaw"], typer.Option(help="Of raw PCM.")] = "s16le",
    rate: Annotated[int, typer.Option(help="Of raw PCM, in Hz.")] = 16_000,
    channels: Annotated[int, typer.Option(help="Of raw PCM.")] = 1,
    model: Model = "tiny.en",
    adapter: Adapter = None,
    chunk_ms: ChunkMs = 300,
    delay_ms: DelayMs = 160,
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

    session = _session(chunk_ms, delay_ms, final_pass, beam, prompt, hotwords)
    if file == "-":
        length_s, audio = (
            None,
            sources.read_pcm(cast(sources.Pipe, sys.stdin.buffer), PcmDecoder(encoding, rate, channels)),
        )
    else:
        length_s, audio = duration(file), stream_audio(file, chunk_ms / 1000)
    if realtime:
        audio = sources.at_speed_of_speech(audio)
    check_final_pass(model, adapter, final_pass)
    decides_when_to_wait(model, adapter, asked="delay_ms" in set_by_user(context))
    with replacing(out) as target:
        engine = build_engine(
            model, slots=1, threads=threads, adapter=adapter, device=device, final_pass_thread=False
        )
        finals, interrupted = run(engine, audio, session, length_s=length_s, form=form, target=target)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not finals:
        terminal.tell("no speech was recognised")


@app.command()
def mic(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="A server (ws://...) instead of a model here.")] = None,
    device: Annotated[str | None, typer.Option(help="Number or name of the microphone.")] = None,
    list_devices: Annotated[bool, typer.Option(help="Show the microphones and end.")] = False,
    model: Model = "tiny.en",
    adapter: Adapter = None,
    chunk_ms: ChunkMs = 300,
    delay_ms: DelayMs = 160,
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
    given = set_by_user(context)
    if url is not None and (own := sorted(given & {"model", "adapter", "threads", "model_device"})):
        raise ValueError(
            f"--{own[0].replace('_', '-')} is for a model here: with --url it is the server's to choose"
        )
    session = _session(chunk_ms, delay_ms, final_pass, beam, prompt, hotwords)
    chosen = int(device) if device and device.isdecimal() else device
    check_input(chosen)

    async def run() -> None:
        token = os.environ.get("ASR_STREAM_API_KEY")
        if url is not None:
            names = ("chunk_ms", "delay_ms", "final_pass", "beam", "prompt", "hotwords")
            wishes = {name: getattr(session, name) for name in names if name in given}
            async with StreamClient(
                url, token=token, **wishes
            ) as client:  # the others are as the server has them
                await talk(client, chosen)
        else:
            check_final_pass(model, adapter, final_pass)
            decides_when_to_wait(model, adapter, asked="delay_ms" in given)
            engine = build_engine(model, slots=1, threads=threads, adapter=adapter, device=model_device)
            async with LocalClient(engine, session) as local:
                await talk(local, chosen)

    asyncio.run(run())


@app.command()
def demo(
    clip: Annotated[Path, typer.Option(help="What is said.")] = SAMPLES / "jfk.wav",
    model: Model = "tiny.en",
    adapter: Adapter = None,
    chunk_ms: ChunkMs = 300,
    threads: Threads = None,
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
    tell(f"starting a server with {model}")
    command = serve_command(model, adapter, slots=1, chunk_ms=chunk_ms, final_pass="full", engines=threads)
    with child_server(command) as server:
        tell(f"speaking {clip.name} to {server.url}")
        came = asyncio.run(show(server, clip, chunk_ms))
    if not came:
        tell("no words came")
        raise typer.Exit(1)


def serve_command(model: str, adapter: str | None, **flags: object) -> list[str]:
    """The command line of a server on a free port of loopback."""
    given: Iterable[tuple[str, object]] = {"model": model, "adapter": adapter, **flags}.items()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given if value is not None]
    return [
        sys.executable,
        __file__,
        "serve",
        "--host=127.0.0.1",
        "--port=0",
        "--log-level=warning",
        *words,
    ]


def main() -> None:
    """The `asr-stream` command."""
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the disk is full, which was said: Python must not try again, and fail, at its end
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
