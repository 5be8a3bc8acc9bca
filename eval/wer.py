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
from numpy.typing import NDArray
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


def word_key(word: str) -> str:
    """What two spellings of a word have in common; empty for fillers and for punctuation."""
    return normalize(word).strip(" .")


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
    if sum(one.reference_words > 0 for one in edits) < 2:
        return None
    [rates] = _resampled_rates([edits], resamples, seed)
    return _interval(rates, level)


@dataclass(frozen=True)
class Difference:
    """How two error rates over the same utterances differ, B minus A."""

    rate_a: float
    rate_b: float
    interval: tuple[float, float]
    better_b: float  # in how many of the resamples B's rate is the lower one; a tie counts half

    @property
    def rate(self) -> float:
        return self.rate_b - self.rate_a


def paired_bootstrap(
    a: Sequence[Edits], b: Sequence[Edits], *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Difference | None:
    """Compares two systems on the same utterances, in the same order, which are drawn together.

    None where fewer than two utterances have reference words.
    """
    total_a, total_b = pooled(a), pooled(b)
    if sum(one.reference_words > 0 for one in a) < 2 or total_a.rate is None or total_b.rate is None:
        return None
    rates_a, rates_b = _resampled_rates([a, b], resamples, seed)
    better = float(np.mean((rates_b < rates_a) + 0.5 * (rates_b == rates_a)))
    return Difference(total_a.rate, total_b.rate, _interval(rates_b - rates_a, level), better)


def _resampled_rates(
    systems: Sequence[Sequence[Edits]], resamples: int, seed: int
) -> list[NDArray[np.float64]]:
    """Each system's pooled rates over the same draws of utterances; draws without reference words are left out."""
    generator = np.random.default_rng(seed)
    errors = np.array([[one.errors for one in edits] for edits in systems])  # (systems, utterances)
    words = np.array([[one.reference_words for one in edits] for edits in systems])
    n = errors.shape[1]
    weights = generator.multinomial(n, np.full(n, 1 / n), size=resamples)  # how often each one is drawn
    n_errors, n_words = errors @ weights.T, words @ weights.T  # (systems, resamples)
    usable = (n_words > 0).all(axis=0)
    return list(n_errors[:, usable] / n_words[:, usable])


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
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
