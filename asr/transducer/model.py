"""A transducer as one module, and its two halves on disk: the trunk that several share, and a head."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from asr.encoder import Encoder
from asr.transducer.encoder import AdaptiveEncoder, EncoderDims
from asr.transducer.joiner import Joiner, Predictor
from asr.transducer.language import Language
from asr.transducer.pieces import Pieces
from asr.transducer.schedule import Policy, named
from asr.transducer.search import TransducerSearch
from asr.transducer.timing import PUNCTUAL, Lateness
from asr.transducer.trunk import Trunk

HEAD, HEAD_CONFIG, PIECES = "head.safetensors", "head.json", "pieces.model"
_SHARED = "trunk.encoder."


class Transducer(nn.Module):
    """Trunk, adaptive layers, predictor, joiner, and an auxiliary CTC output of training and alignment."""

    policy: Policy | None = None
    """What a head was taught to wait for, where that is not what its schedulers say."""

    lateness: Lateness = PUNCTUAL
    """How late a head says what it hears."""

    language: Language | None = None
    """What texts make likely, if the search is to weigh it."""

    def __init__(self, trunk: Trunk, pieces: Pieces, dims: EncoderDims, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.pieces = pieces
        self.dims = dims
        self.encoder = AdaptiveEncoder(dims, dropout)
        self.predictor = Predictor(len(pieces), dims.width)
        self.joiner = Joiner(dims.width, len(pieces))
        self.ctc = nn.Linear(dims.width, len(pieces) + 1)

    @property
    def blank(self) -> int:
        """The id of blank: the last."""
        return len(self.pieces)

    @property
    def device(self) -> torch.device:
        return self.ctc.weight.device

    def search(self) -> TransducerSearch:
        """A search with these weights, which are not to change any more."""
        return TransducerSearch(self.predictor, self.joiner, self.pieces, self.language)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """What lies behind the trunk."""
        return (p for name, p in self.named_parameters() if not name.startswith("trunk."))

    def head_state(self) -> dict[str, Tensor]:
        """All weights but the trunk's encoder; the mix of its layers belongs to the head's file."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(_SHARED)}

    def load_head(self, state: Mapping[str, Tensor]) -> None:
        missing, unexpected = self.load_state_dict(dict(state), strict=False)
        wrong = [*unexpected, *(name for name in missing if not name.startswith(_SHARED))]
        if wrong:
            raise ValueError(f"the head was made for another model: {wrong[0]}")


def save_head(model: Transducer, directory: Path, facts: Mapping[str, Any]) -> None:
    """Writes a head: half-precision weights, and beside them its sizes, `facts`, and its pieces.

    Args:
        facts: base, trunk, policy, lateness (null where nobody has measured it), and what else one may want to know.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.head_state().items()}
    config = json.dumps({"dims": asdict(model.dims), **facts}, indent=1) + "\n"
    # What names the folder a head is written last: a head that is cut short is none.
    contents = {HEAD: save(weights), PIECES: model.pieces.model, HEAD_CONFIG: config.encode()}
    for name, content in contents.items():
        _write(directory / name, content)


def set_lateness(directory: Path, lateness: Lateness) -> None:
    """Notes in a head that is there how late it says what it hears."""
    config = json.loads((directory / HEAD_CONFIG).read_text()) | {"lateness": asdict(lateness)}
    _write(directory / HEAD_CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def load_head(encoder: Encoder, directory: Path) -> Transducer:
    """The head of `directory` on a trunk made of `encoder`, which streams under the policy that it was taught.

    Raises:
        OSError, ValueError: nothing there, or not what it should be.
    """
    config = json.loads((directory / HEAD_CONFIG).read_text())
    model = Transducer(Trunk(encoder), Pieces.read(directory / PIECES), EncoderDims(**config["dims"]))
    model.policy = named(config.get("policy", "adaptive"), model.dims.layers)
    model.lateness = Lateness(**(config.get("lateness") or {}))
    state = {k: v.float() for k, v in load_file(directory / HEAD).items()}
    model.load_head(state)
    return model.eval().requires_grad_(False)
