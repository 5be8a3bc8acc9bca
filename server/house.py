"""What the commands of this room share: the front door's help, and options that several have."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

if TYPE_CHECKING:
    from streaming.session import SessionOptions

INTERRUPTED = 130  # exit code
SAMPLES = Path(__file__).parent.parent / "samples"

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
PauseMs = Annotated[
    int, typer.Option(help="Silence that ends an utterance, 100 to 5000: shorter, and finals come sooner.")
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


class House(Protocol):
    """What the front door hands to a command that lives in a room (asr_stream.py)."""

    def build_engine(self, model: str, **how: Any) -> Any: ...
    def build_pool(self, model: str, **how: Any) -> Any: ...
    def place(self, device: str) -> Any: ...
    def look_around(self, device: str) -> tuple[str, int]: ...
    def set_by_user(self, context: typer.Context) -> set[str]: ...
    def base_of(self, model: str, adapter: str | None) -> str: ...
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


def session_options(
    chunk_ms: int, delay_ms: int, pause_ms: int, final_pass: str, beam: int, prompt: str, hotwords: str
) -> "SessionOptions":
    """What the options of a command ask for; ValueError with one clear line for what may not be."""
    from asr.limits import read_hotwords
    from streaming.session import SessionOptions

    return SessionOptions(
        chunk_ms=chunk_ms,
        delay_ms=delay_ms,
        pause_ms=pause_ms,
        final_pass=final_pass,
        beam=beam,
        prompt=prompt,
        hotwords=read_hotwords(hotwords),
    )
