"""What a model's name stands for, and what comes with the project.

Kept apart from peft and torch, which take seconds to import.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from asr.weights import WeightsError, catalogue, locate

WEIGHTS = Path(__file__).parent / "weights"
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
HEAD_FILE, HEAD_WEIGHTS = "head.json", ("head.safetensors", "pieces.model")  # asr/transducer/model.py's
LANGUAGE_FILE, LANGUAGE_WEIGHTS = "language.json", "language.safetensors"  # asr/transducer/language.py's
_TRANSDUCER = re.compile(r"ancat-[^-]+-.+")  # ancat-BASE-NAME


class AdapterError(ValueError):
    """What we add to a base model is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class Model:
    """What `--model` and `--adapter` stand for together."""

    base: str  # as asr/weights knows it
    adapter: (
        Path | None
    )  # of the causal Whisper, or of the trunk of a transducer; None leaves the base as it is
    head: Path | None = None  # of a transducer; None: words come from Whisper's own decoder
    rescorer: Path | None = None  # of a transducer: the adapter of the decoder that weighs hypotheses
    language: Path | None = None  # of a transducer: what texts make likely, in the head's pieces

    @property
    def decides_when_to_wait(self) -> bool:
        """Whether no delay can be asked of it: a transducer has learnt when to wait."""
        return self.head is not None

    @property
    def files(self) -> list[Path]:
        """What we add, the most special first."""
        of_head = [self.head / name for name in HEAD_WEIGHTS] if self.head else []
        if self.language:
            of_head += [self.language / LANGUAGE_WEIGHTS, self.language / LANGUAGE_FILE]
        adapters = [folder / ADAPTER_WEIGHTS for folder in (self.adapter, self.rescorer) if folder]
        return [*of_head, *adapters]

    @property
    def description(self) -> str:
        """Tells one from another, so that a report is never made of two."""
        if not self.files:
            return "no adapter"
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()
        return f"{self.files[0].parent.name} {digest[:12]}"


def find(name: str, adapter: str | None = None) -> Model:
    """The model of a name, or of folders that a user has.

    Args:
        name: a base model's name or path, a transducer's name ("ancat-tiny.en-320") or the folder of its head.
        adapter: a folder: of an adapter for the base model; of the trunk's, if `name` is a transducer; or of a
            transducer's head. None takes what comes with the project, "none" leaves the base model as it is.

    Raises:
        WeightsError: there is no such model.
        AdapterError: nothing that was trained for it is where it should be, or nothing is named.
    """
    if not name:
        raise AdapterError("the model's name is empty: name one of `asr-stream models list`")
    if adapter == "":
        raise AdapterError(
            "the adapter's name is empty: name its folder, or leave it out for the shipped one"
        )
    if head := _head(name):
        base = _fact(head, "base")
        locate(base)
        return _transducer(base, _given(adapter) if adapter else _trunk(head), head)
    _prove_name(name)  # a wrong name is a wrong name, and no lack of an adapter
    if adapter is None:
        return Model(name, shipped(name) or _none_shipped(name))
    folder = _given(adapter)
    if folder and (folder / HEAD_FILE).is_file():
        return _transducer(name, _trunk(folder), folder)
    return Model(name, folder)


def shipped(name: str) -> Path | None:
    """The folder of the adapter for the base model `name`, if one comes with the project."""
    folder = WEIGHTS / f"careless-{name}"
    return folder if (folder / ADAPTER_FILE).is_file() else None


def transducers() -> list[str]:
    """The names of those that come with the project."""
    return sorted(file.parent.name for file in WEIGHTS.glob(f"ancat-*-*/{HEAD_FILE}"))


def rescorer_name(trunk: str) -> str:
    """The folder of the rescorer that reads a trunk."""
    return f"{trunk}-rescorer"


def language_name(trunk: str) -> str:
    """The folder of what texts make likely, for the heads of a trunk."""
    return f"{trunk}-language"


def _prove_name(base: str) -> None:
    """Asks for a base model of which nobody knows yet that it was meant as one."""
    try:
        locate(base)
    except WeightsError as error:
        having = "".join(f", {name}" for name in transducers())
        raise WeightsError(
            f"{error}; or a transducer{having}, or the folder of its head (see `asr-stream models list`)"
        ) from None


def _given(adapter: str) -> Path | None:
    return None if adapter == "none" else Path(adapter)


def _head(name: str) -> Path | None:
    """The folder of the transducer called `name`, or at `name`; None where it is the name of something else."""
    for folder in (WEIGHTS / name, Path(name)):
        if (folder / HEAD_FILE).is_file():
            return folder
    if not _TRANSDUCER.fullmatch(name) or Path(name).is_file():
        return None
    having = ", ".join(transducers()) or "none so far"
    raise AdapterError(
        f"no transducer {name} comes with the project (it has: {having}): "
        f"name one of these, or the folder of a head as `train ancat` writes it"
    )


def _trunk(head: Path) -> Path:
    """The adapter of the trunk that a head was trained on: beside it, or with the project."""
    name = _fact(head, "trunk")
    for folder in (head.resolve().parent / name, WEIGHTS / name):
        if (folder / ADAPTER_FILE).is_file():
            return folder
    raise AdapterError(
        f"the head in {head} has no trunk: put the folder {name} beside it, or name it with --adapter DIR"
    )


def _transducer(base: str, trunk: Path | None, head: Path) -> Model:
    """With what the heads of its trunk share, if there is any: beside the head, or beside the trunk."""
    if trunk is None:
        return Model(base, None, head)
    near = [folder.resolve().parent for folder in (head, trunk)]
    rescorers = [place / rescorer_name(trunk.name) for place in near]
    rescorer = next((folder for folder in rescorers if (folder / ADAPTER_FILE).is_file()), None)
    languages = [head, *(place / language_name(trunk.name) for place in near)]  # a head may have its own
    language = next((folder for folder in languages if _of_the_same_pieces(folder, head)), None)
    return Model(base, trunk, head, rescorer, language)


def _of_the_same_pieces(language: Path, head: Path) -> bool:
    """Whether texts are told there in what a head says; where they are in others, they are another head's."""
    config, pieces = language / LANGUAGE_FILE, head / HEAD_WEIGHTS[1]
    if not config.is_file() or not pieces.is_file():
        return False
    try:
        of = json.loads(config.read_text(encoding="utf-8"))["pieces"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{config} does not say which pieces it is of: train the language again"
        ) from error
    return bool(of == hashlib.sha256(pieces.read_bytes()).hexdigest())


def _fact(head: Path, name: str) -> str:
    """What a head says of itself."""
    try:
        return str(json.loads((head / HEAD_FILE).read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{head / HEAD_FILE} does not say which {name} it is for: it is damaged, or of another version"
        ) from error


def _none_shipped(name: str) -> Path:
    having = ", ".join(known.name for known in catalogue() if shipped(known.name)) or "no model so far"
    raise AdapterError(
        f"no adapter for {name} comes with the project (it has those of: {having}): "
        "name your own with --adapter DIR"
    )
