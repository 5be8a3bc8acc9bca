"""Word error rate: jiwer's alignment of texts that Whisper's English normalizer has made comparable.

The rate is pooled, edits over reference words of all utterances, and its interval comes from resampling
whole utterances (Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP 2004).
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jiwer
import numpy as np
from whisper.normalizers import EnglishTextNormalizer

with warnings.catch_warnings():  # it leaves closing its spelling table to the garbage collector
    warnings.simplefilter("ignore", ResourceWarning)
    _normalizer = EnglishTextNormalizer()


@dataclass(frozen=True)
class Edits:
    """What turns a reference into a hypothesis, in words; adds up over utterances."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference_words(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per reference word; None where the reference has no words."""
        return self.errors / self.reference_words if self.reference_words else None

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@lru_cache(maxsize=65_536)
def normalize(text: str) -> str:
    """Lower case without punctuation, fillers and spelling variants; numbers as digits.

    Exactly Whisper's, so that rates compare with published ones: a last "..." stays as a word ".".
    """
    normalized: str = _normalizer(text)
    return normalized.strip()


def count_edits(reference: str, hypothesis: str) -> Edits:
    """The fewest word edits between the normalized texts."""
    output = jiwer.process_words(normalize(reference), normalize(hypothesis))
    return Edits(output.hits, output.substitutions, output.deletions, output.insertions)


def pooled(edits: Iterable[Edits]) -> Edits:
    """The edits of all utterances together."""
    return sum(edits, Edits())


def grouped(edits: Sequence[Edits], keys: Sequence[str]) -> dict[str, Edits]:
    """Pooled edits by key, such as the corpus or speaker of each utterance; keys in order of appearance."""
    groups: dict[str, Edits] = defaultdict(Edits)
    for key, one in zip(keys, edits, strict=True):
        groups[key] += one
    return dict(groups)


def bootstrap_interval(
    edits: Sequence[Edits], *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile interval of the pooled rate over utterances drawn with replacement.

    None where fewer than two utterances have reference words: one utterance says nothing about spread.
    """
    errors = np.array([one.errors for one in edits], dtype=np.int64)
    words = np.array([one.reference_words for one in edits], dtype=np.int64)
    if np.count_nonzero(words) < 2:
        return None
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = generator.integers(0, len(words), len(words))
        if n_words := words[drawn].sum():
            rates.append(errors[drawn].sum() / n_words)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def matching_words(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """Index pairs (reference, hypothesis) of the words that the alignment of fewest edits calls equal.

    Words are compared as they are, spaces included: normalize them first.
    """
    ids: dict[str, str] = {}  # jiwer splits at spaces: hand it a number for each word
    numbered = [[ids.setdefault(word, str(len(ids))) for word in words] for words in (reference, hypothesis)]
    [chunks] = jiwer.process_words(" ".join(numbered[0]), " ".join(numbered[1])).alignments
    return [
        (chunk.ref_start_idx + i, chunk.hyp_start_idx + i)
        for chunk in chunks
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]
