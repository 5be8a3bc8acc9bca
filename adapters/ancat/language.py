"""Plain texts -> the n-grams of pieces that a transducer's search weighs (asr/transducer/language.py)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.ancat.corpus import read_clips
from asr.transducer.hypotheses import MERGED
from asr.transducer.language import Grams, Language, Tokens, Weights
from asr.transducer.pieces import Pieces, normalise

LONGEST = MERGED + 1  # pieces of an n-gram: what the search tells apart, and the next one
# Times that an n-gram of 1, 2, ... pieces was seen at least; rarer ones take space only.
SEEN = (1, 1, 1, 2, 2)
DISCOUNT = 0.75  # Kneser and Ney's, of every count
SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}
_ABBREVIATION = re.compile(r"\b(" + "|".join(SPOKEN) + r")\b\.?", re.IGNORECASE)
_END = re.compile(r"[.;:!?]+[\"')\]]*\s")


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """Sentences as the transducer would write them, of plain texts, and of manifests (.jsonl)."""
    for file in files:
        if file.suffix == ".jsonl":
            yield from (clip.text for clip in read_clips(file))
        else:
            yield from sentences(file.read_text(encoding="utf-8"))


def sentences(text: str) -> Iterator[str]:
    """What is said between two full stops; nothing with digits, as nobody knows how they are said."""
    text = " ".join(text.replace("--", "; ").replace("_", " ").split())
    text = _ABBREVIATION.sub(lambda found: SPOKEN[found[1].lower()], text)
    for sentence in _END.split(text):
        said = normalise(sentence)
        if said and not any(map(str.isdigit, sentence)):
            yield said


def learn_language(
    texts: Iterable[str],
    pieces: Pieces,
    weights: Weights,
    *,
    longest: int = LONGEST,
    seen: Sequence[int] = SEEN,
) -> Language:
    """Interpolated Kneser-Ney of up to `longest` pieces.

    Raises:
        ValueError: no texts.
    """
    wait, base = pieces.wait, len(pieces) + 1
    rows = [np.array([wait] * (longest - 1) + pieces.encode(text), np.int64) for text in texts]
    if not rows:
        raise ValueError("no sentence is in these texts")
    said = np.concatenate(rows)
    at = np.flatnonzero(said != wait)
    codes, code = [], np.zeros(len(at), np.int64)
    for n in range(longest):
        code = code + said[at - n] * base**n
        codes.append(code)
    counts = [np.unique(code, return_counts=True) for code in codes]
    grams = []
    for n in range(1, longest + 1):
        known, often = counts[n - 1]
        if n < longest:
            often = _continuations(known, often, counts[n][0], base, n)
        kept = counts[n - 1][1] >= seen[min(n, len(seen)) - 1]
        grams.append(_grams(known, often.astype(np.float64), kept, base, DISCOUNT if n > 1 else 0.0))
    return Language(grams, len(pieces), weights)


def _continuations(
    known: Tokens, often: NDArray[np.int64], longer: Tokens, base: int, n: int
) -> NDArray[np.int64]:
    """How many different pieces stand before each n-gram: it is asked for where the longer one is not known. Nothing
    stands before a beginning: there it stays at how often it was seen."""
    shorter, before = np.unique(longer % base**n, return_counts=True)
    found = np.zeros_like(often)
    found[np.searchsorted(known, shorter)] = before
    begins = known // base ** (n - 1) == base - 1
    return np.where(begins, often, found)


def _grams(
    known: Tokens, often: NDArray[np.float64], kept: NDArray[np.bool_], base: int, discount: float
) -> Grams:
    contexts, first, n_behind = np.unique(known // base, return_index=True, return_counts=True)
    total = np.repeat(np.add.reduceat(often, first), n_behind)
    shares = np.where(kept, (often - discount).clip(min=0) / total, 0)
    rest = (1 - np.add.reduceat(shares, first)).clip(min=0)
    n_kept = np.add.reduceat(kept.astype(np.int64), first)
    some = n_kept > 0
    starts = (n_kept.cumsum() - n_kept)[some]
    return Grams(
        contexts[some],
        starts.astype(np.int32),
        (known % base)[kept].astype(np.uint16),
        shares[kept].astype(np.float16),
        rest[some].astype(np.float16),
    )
