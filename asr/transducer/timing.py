"""Word times and confidences of a transducer, from the frames that said its pieces.

A transducer says a piece once it is sure of it, which is some time after the piece began; how long, is learnt and
about constant. Taken off, it leaves a word's place; where in the audio the word begins and ends, the loudness knows.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asr.timing import HOPS_PER_SECOND, TimedWord, loudness, refine
from asr.transducer.search import TransducerHypothesis
from asr.transducer.trunk import FEATURE_MS
from asr.words import Words

MS_PER_HOP = 1000 // HOPS_PER_SECOND
HOPS_PER_FEATURE = FEATURE_MS // MS_PER_HOP


@dataclass(frozen=True)
class Lateness:
    """How late pieces are said; negative where they come early. Training decides, so every head has its own."""

    first_ms: int = 0  # from where a word begins to the beginning of the frame that says its first piece
    last_ms: int = 0  # from where a word ends to the end of the frame that says its last piece


PUNCTUAL = Lateness()


def timed_words(
    hypothesis: TransducerHypothesis,
    pieces: Words,
    *,
    samples: Tensor | NDArray[np.float32] | None = None,
    lateness: Lateness = PUNCTUAL,
) -> list[TimedWord]:
    """Words with times from the window's beginning; confidences are geometric means of their pieces' posteriors.

    Args:
        samples: (n,) of the window's audio at 16 kHz, to find the words' edges in.
        lateness: of the head that said them.
    """
    words = pieces.words(list(hypothesis.tokens))
    late_first, late_last = (round(ms / MS_PER_HOP) for ms in (lateness.first_ms, lateness.last_ms))
    firsts, lasts, confidences, i = [], [], [], 0
    for _, n in words:
        firsts.append(hypothesis.at[i] * HOPS_PER_FEATURE - late_first)
        lasts.append((hypothesis.at[i + n - 1] + 1) * HOPS_PER_FEATURE - late_last)
        confidences.append(math.exp(sum(hypothesis.logprobs[i : i + n]) / n))
        i += n
    spans = in_order(list(zip(firsts, lasts, strict=True)))
    if samples is not None and spans:
        spans = refine(spans, loudness(samples))
    return [
        TimedWord(text, first / HOPS_PER_SECOND, behind / HOPS_PER_SECOND, confidence, n)
        for (text, n), (first, behind), confidence in zip(words, spans, confidences, strict=True)
    ]


def in_order(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans from 0 on, none empty and none overlapping the next: what two claim is halved."""
    starts, ends = [max(first, 0) for first, _ in spans], [behind for _, behind in spans]
    for i in range(1, len(spans)):
        if ends[i - 1] > starts[i]:
            ends[i - 1] = starts[i] = (ends[i - 1] + starts[i]) // 2
    ordered, before = [], 0
    for first, behind in zip(starts, ends, strict=True):
        first = max(first, before)
        before = max(behind, first + 1)
        ordered.append((first, before))
    return ordered
