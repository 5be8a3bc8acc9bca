"""What texts make likely: n-grams of pieces, weighed against what was heard (shallow fusion).

The predictor has seen the few texts of the transcribed speech, and spells by ear. A model of much more text knows
how words are written and what follows what; what the predictor has learnt of that is taken off in part, as it would
count twice (density ratio, McDermott et al., 2019, arXiv 2002.11268). Blank, and so when to speak, is left to the
transducer.

The n-grams are interpolated: p(y | c) = share of y behind c + rest of c * p(y | c without its oldest piece).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from asr.transducer.pieces import Pieces

LANGUAGE, LANGUAGE_CONFIG = "language.safetensors", "language.json"
LEAST = 1e-7  # probability of a piece that no text holds

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Weights:
    """What is added to the log-probability of saying a piece."""

    texts: float  # times its log-probability in the texts
    own: float  # less so much of what the predictor thinks of it
    piece: float  # nats for every piece, since both of the others make it rarer


@dataclass(frozen=True)
class Grams:
    """n-grams of one length; the last context's pieces end with the file."""

    contexts: Tokens  # (C,) sorted, as `code_of` tells
    starts: NDArray[np.int32]  # (C,) where the pieces behind each begin
    pieces: NDArray[np.uint16]  # (N,)
    shares: NDArray[np.float16]  # (N,)
    rest: NDArray[np.float16]  # (C,) what is left to shorter contexts


class Language:
    """Texts as the search asks for them.

    Args:
        grams: of 1 piece, 2 pieces, ... in this order.
        n_pieces: of the vocabulary; the id behind the last stands for "nothing before".
    """

    def __init__(self, grams: Sequence[Grams], n_pieces: int, weights: Weights) -> None:
        self.grams = list(grams)
        self.n_pieces = n_pieces
        self.weights = weights

    @property
    def context(self) -> int:
        """Pieces that it looks at."""
        return len(self.grams) - 1

    def probabilities(self, before: Sequence[int]) -> Floats:
        """(V,) of each piece behind the pieces `before`, as many as are there."""
        held = tuple(before)[max(0, len(before) - self.context) :]
        found = np.zeros(self.n_pieces, np.float32)
        for n in range(len(held) + 1):
            grams, code = self.grams[n], code_of(held[len(held) - n :], self.n_pieces)
            at = int(np.searchsorted(grams.contexts, code))
            if at == len(grams.contexts) or grams.contexts[at] != code:
                break  # longer contexts are unknown, too
            end = grams.starts[at + 1] if at + 1 < len(grams.starts) else len(grams.pieces)
            behind = slice(grams.starts[at], end)
            found *= np.float32(grams.rest[at])
            found[grams.pieces[behind]] += grams.shares[behind]
        return np.maximum(found, np.float32(LEAST))

    def added(self, before: Sequence[int], own: Floats) -> Floats:
        """(V + 1,) to be added to the log-probabilities of what comes next, nothing to that of blank.

        Args:
            own: (V,) log-probabilities of the predictor alone.
        """
        weights, added = self.weights, np.zeros(self.n_pieces + 1, np.float32)
        added[:-1] = weights.texts * np.log(self.probabilities(before)) - weights.own * own + weights.piece
        return added


def code_of(pieces: Sequence[int], n_pieces: int) -> int:
    """A number for a few pieces, the oldest counting most."""
    code = 0
    for piece in pieces:
        code = code * (n_pieces + 1) + piece
    return code


def save_language(language: Language, directory: Path, pieces: Pieces) -> None:
    """Writes a folder: the n-grams, and beside them their weights, and the hash of the pieces that they are of."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{n}.{name}": np.ascontiguousarray(values)
        for n, grams in enumerate(language.grams, 1)
        for name, values in asdict(grams).items()
    }
    of = hashlib.sha256(pieces.model).hexdigest()
    config = json.dumps({"pieces": of, **asdict(language.weights)}, indent=1) + "\n"
    # What names the folder a language is written last: one that is cut short is none.
    for name, content in ((LANGUAGE, save(tensors)), (LANGUAGE_CONFIG, config.encode())):
        part = directory / (name + ".part")
        part.write_bytes(content)
        os.replace(part, directory / name)


def load_language(directory: Path, n_pieces: int) -> Language:
    """What `save_language` wrote.

    Raises:
        OSError, KeyError, TypeError, ValueError: nothing there, or not what it should be.
    """
    config = json.loads((directory / LANGUAGE_CONFIG).read_text())
    tensors = load_file(directory / LANGUAGE)
    lengths = sorted({int(name.partition(".")[0]) for name in tensors})
    names = Grams.__dataclass_fields__
    grams = [Grams(*(tensors[f"{n}.{name}"] for name in names)) for n in lengths]
    return Language(grams, n_pieces, Weights(*(config[name] for name in Weights.__dataclass_fields__)))
