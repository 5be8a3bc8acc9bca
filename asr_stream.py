"""The front door: the `asr-stream` command. Rooms are imported inside the commands, so that help comes at once."""

import errno
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from rich.console import RenderableType

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
MOST_ENGINES = 4  # unless asked for: each is a process of some 0.6 GB, and its slots' memory
#: The commands, each in a room: its module, with the command as `app`.
COMMANDS = {
    "transcribe": "server.transcribe_command",
    "mic": "server.mic_command",
    "demo": "server.demo_command",
    "serve": "server.serve_command",
    "models": "adapters.models_command",
    "eval": "eval.command",
    "bench": "server.bench_command",
    "align": "adapters.align_command",
    "train": "adapters.train_command",
}
FAILED, INTERRUPTED = 2, 130  # exit codes


class FrontDoor(TyperGroup):
    """Says in a line what went wrong with a user's input or machine; `--debug` and mistakes of ours show it all."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name  # a group has none of its own, and help would not name it
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:  # then Typer advises one of `self.commands`
            self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("asr-stream: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
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


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"asr-stream {version('asr-stream')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show where an error came from.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show it, and end.")
    ] = False,
) -> None:
    """What all commands share."""
    ctx.obj = sys.modules[__name__]  # the `house` of commands: rooms must not import the front door


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
    recognizer, base = load_models(model, adapter, place(device))
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
    from server.engine_process import EngineProcess
    from streaming.pool import EnginePool

    kind, cores = look_around(device)
    n = min(slots, engines or (min(cores, MOST_ENGINES) if kind == "cpu" else 1))
    shares = [slots // n + (i < slots % n) for i in range(n)]
    build = partial(build_engine, model, threads=1, adapter=adapter, device=device)
    if kind != "cpu":
        return EnginePool([build(slots=share) for share in shares])

    def launch(share: int) -> EngineProcess:
        return EngineProcess(partial(build, slots=share), share, prepare)

    first = launch(shares[0])  # which fetches the weights, if they are not there
    with ThreadPoolExecutor() as launching:
        return EnginePool([first, *launching.map(launch, shares[1:])])


def place(device: str) -> "torch.device":
    """Where a model computes that is asked for on `device`: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: there is no such device here; one line that says what to do.
    """
    from asr.device import choose

    return choose(device)


@cache
def look_around(device: str) -> tuple[str, int]:
    """What `place` says, cpu or cuda, and as how many cores torch sees.

    Asked in a process that ends: torch would take a quarter of a GB of this one, which needs it for nothing else.

    Raises:
        ValueError: see `place`.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        return elsewhere.submit(_what_torch_sees, device).result()


def _what_torch_sees(device: str) -> tuple[str, int]:
    import torch

    return place(device).type, torch.get_num_threads()


def load_models(model: str, adapter: str | None, device: "torch.device") -> "tuple[Recognizer[Any], Whisper]":
    """What hears the stream, and the unmodified model of the second pass, as they serve on `device`."""
    from adapters import loading
    from adapters.shipped import find
    from asr.checkpoint import load
    from asr.precision import for_serving
    from streaming.recognizer import WhisperRecognizer
    from streaming.transducer import TransducerRecognizer

    chosen = find(model, adapter)
    base = load(chosen.base)
    if chosen.head is None:
        causal = loading.causal(base, chosen.adapter)
        base = for_serving(base.to(device))
        return WhisperRecognizer(for_serving(causal.to(device), base.decoder)), base
    transducer = loading.transducer(base, chosen.adapter, chosen.head, chosen.language).to(device)
    rescorer = loading.rescorer(base, chosen.rescorer) if chosen.rescorer else None
    for_serving(transducer.trunk.encoder)  # the head is small, and decides in float32
    base = for_serving(base.to(device))
    if rescorer is not None:
        for_serving(rescorer.decoder.to(device), base.decoder)
    return TransducerRecognizer(transducer, rescorer), base


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


def print_result(*parts: "RenderableType") -> None:
    """A table on stdout, folded only where that is a terminal."""
    from server.terminal import print_result as print_them

    print_them(*parts)


def interruption() -> "Interruption":
    """Ctrl-C as a question that long work answers when it can."""
    from server.terminal import Interruption

    return Interruption()


def writable_folder(path: Path) -> Path:
    """Where long work is to write: made, or refused in one line before the work."""
    from server.outputs import writable_folder as made

    return made(path)


def set_by_user(context: typer.Context) -> set[str]:
    """The parameters that the user has set."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


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
