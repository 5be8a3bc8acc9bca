"""Adapters folded into the weights of a model that serves, without peft.

What peft saves is read as peft folds it, W + s B A, to the bit. Its import, with transformers behind it, would take
130 MB of every process that serves.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters.shipped import ADAPTER_FILE, ADAPTER_WEIGHTS, AdapterError
from asr.limits import LONGEST_DELAY_S
from asr.transducer.trunk import STACK

M = TypeVar("M", bound=nn.Module)

_PREFIX = "base_model.model."  # of peft's names
_SIDES = (".lora_A.weight", ".lora_B.weight")
#: Of peft's options those that change what is folded, none of which we train with.
_REFUSED = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save")


@dataclass(frozen=True)
class Kind:
    """What a stream expects of an adapter, saved beside its weights: one taught otherwise loads, and hears badly."""

    name: str
    taught: dict[str, int]

    @property
    def file(self) -> str:
        return f"{self.name}.json"


#: Of the causal Whisper: encoder and decoder. Some were taught to look more blocks ahead; served, all do.
CARELESS = Kind("careless", {"lookahead_blocks": 1, "longest_delay_ms": round(1000 * LONGEST_DELAY_S)})
#: Of the transducer's trunk (asr/transducer/trunk.py): the encoder alone, which never looks ahead.
TRUNK = Kind("trunk", {"lookahead_blocks": 0, "frames_at_once": STACK})
#: Of the decoder that weighs what a transducer may have said (asr/transducer/rescorer.py): the decoder alone.
RESCORER = Kind("rescorer", {"lookahead_blocks": 0, "whole_utterances": 1})


def check(directory: Path, kind: Kind) -> None:
    """Whether there is an adapter of this kind in `directory`.

    Raises:
        AdapterError: nothing there, or taught what this version does not ask.
    """
    if not (directory / ADAPTER_FILE).is_file():
        raise AdapterError(f"no adapter in {directory}: expected {ADAPTER_FILE} and {ADAPTER_WEIGHTS}")
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(f"the adapter in {directory} has no weights: {ADAPTER_WEIGHTS} is missing")
    if not kind.taught.items() <= _taught(directory, kind).items():
        raise AdapterError(
            f"the adapter in {directory} was not taught what this version asks of a {kind.name} "
            f"({kind.file} differs or is missing): train it again, starting from it (see CONTRIBUTING.md)"
        )


def refusal(directory: Path, error: Exception) -> AdapterError:
    """What is said of an adapter that raised `error`."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return AdapterError(f"the adapter in {directory} cannot be put on this model: {reason}")


@torch.no_grad()
def fold(model: M, directory: Path, kind: Kind) -> M:
    """`model` with the adapter in `directory` in its weights, changed in place, to serve.

    Raises:
        AdapterError: nothing there, made for another model, or taught what this version does not ask.
    """
    check(directory, kind)
    try:
        for name, change in _changes(directory):
            model.get_parameter(f"{name}.weight").add_(change)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise refusal(directory, error) from error
    return model.eval().requires_grad_(False)


def _changes(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Layers by name, and what is added to their weights."""
    config = json.loads((directory / ADAPTER_FILE).read_text())
    if refused := [option for option in _REFUSED if config.get(option)]:
        raise ValueError(f"it was made with {refused[0]}")
    weights = load_file(directory / ADAPTER_WEIGHTS)
    for key in sorted(weights):
        name, side = key.removeprefix(_PREFIX), _SIDES[0]
        if name.endswith(_SIDES[1]):
            continue  # with its other side
        if not name.endswith(side):
            raise ValueError(f"{name} is no low-rank weight")
        name = name.removesuffix(side)
        a, b = (weights[f"{_PREFIX}{name}{side}"].float() for side in _SIDES)
        rank = _of(name, config["rank_pattern"], config["r"])
        if len(a) != rank:
            raise ValueError(f"{name} has rank {len(a)}, not {rank}")
        change = b @ a * (_of(name, config["alpha_pattern"], config["lora_alpha"]) / rank)
        if not bool(change.isfinite().all()):
            raise ValueError(f"{name} has weights that are not finite")
        yield name, change


def _of(name: str, patterns: dict[str, int], default: int) -> int:
    """What peft's patterns say of a layer."""
    own = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(own, default)


def _taught(directory: Path, kind: Kind) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / kind.file).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
