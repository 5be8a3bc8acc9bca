"""How late the words came: pure functions over a trace, computation-unaware and computation-aware.

Unaware, a word is there when the audio that it took has arrived: the delay that the model and its policy
choose, the same on every machine. Aware, the compute is added as a real-time stream would feel it, queues
included (Ma et al., "SimulMT to SimulST", 2020, call the two NCA and CA).

Words are compared by their normalized form, so that a comma that comes later changes nothing.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asr.transducer.trunk import FEATURE_MS, FRONT_END_MS
from eval.datasets import TimedWord
from eval.trace import Trace
from eval.wer import Edits, count_edits, matching_words, word_key
from streaming.events import Final, Partial

LONGEST_WORD_S = 0.6  # where only the end of a word is known


@dataclass(frozen=True)
class Moment:
    """A time, or a delay, on both clocks."""

    audio_ms: float  # computation-unaware
    clock_ms: float  # computation-aware

    def since(self, start_ms: float) -> "Moment":
        return Moment(self.audio_ms - start_ms, self.clock_ms - start_ms)


@dataclass(frozen=True)
class ShownWord:
    """A word of the streaming text, and since when it was shown, and promised, never to change again."""

    text: str
    shown: Moment
    committed: Moment | None  # None: never promised


@dataclass(frozen=True)
class Revisions:
    """Words that were taken back from the screen, and words that stayed."""

    withdrawn: int
    kept: int


@dataclass(frozen=True)
class _View:
    """What one partial, or the final that closes its utterance, let the reader see."""

    step: int
    texts: tuple[str, ...]
    keys: tuple[str, ...]  # normalized; words that normalize to nothing are left out
    n_stable: int  # leading words that will not be revised


def moments(trace: Trace) -> list[Moment]:
    """When the answer of each step was there; a step waits for its audio and for the step before it."""
    done_ms = 0.0
    answered = []
    for step in trace.steps:
        done_ms = max(done_ms, step.audio_ms) + step.compute_s * 1_000
        answered.append(Moment(step.audio_ms, done_ms))
    return answered


def shown_words(trace: Trace) -> list[ShownWord]:
    """The words of the streaming text in order, each with when it settled.

    A word is known by its place in its utterance: it settles with the first partial from which on every
    partial shows it in that place.
    """
    answered = moments(trace)
    words = []
    for views in _views(trace):
        for place, (text, key) in enumerate(zip(views[-1].texts, views[-1].keys, strict=True)):
            settled = len(views)
            while settled and views[settled - 1].keys[place : place + 1] == (key,):
                settled -= 1
            promised = next((view.step for view in views[settled:] if view.n_stable > place), None)
            committed = None if promised is None else answered[promised]
            words.append(ShownWord(text, answered[views[settled].step], committed))
    return words


def spoken_ends_ms(shown: Sequence[ShownWord], reference: Sequence[TimedWord]) -> list[float | None]:
    """For each shown word, when its match in the reference had been said; None where it has no match."""
    spoken = [(key, word.end_s * 1_000) for word in reference if (key := word_key(word.word))]
    ends: list[float | None] = [None] * len(shown)
    pairs = matching_words([key for key, _ in spoken], [word_key(word.text) for word in shown])
    for i_spoken, i_shown in pairs:
        ends[i_shown] = spoken[i_spoken][1]
    return ends


def emission_delays(shown: Sequence[ShownWord], ends_ms: Sequence[float | None]) -> list[Moment]:
    """From a word's end in the reference until it was shown for good; matching words only."""
    return [word.shown.since(end) for word, end in zip(shown, ends_ms, strict=True) if end is not None]


def final_delays(shown: Sequence[ShownWord], ends_ms: Sequence[float | None]) -> list[Moment]:
    """From a word's end in the reference until it was promised not to change; matching words only."""
    return [
        word.committed.since(end)
        for word, end in zip(shown, ends_ms, strict=True)
        if end is not None and word.committed is not None
    ]


def first_word_delay(trace: Trace, reference: Sequence[TimedWord]) -> Moment | None:
    """From the end of the first reference word until any word was shown; None where either is missing."""
    spoken = [word for word in reference if word_key(word.word)]
    first = min((view.step for views in _views(trace) for view in views if view.keys), default=None)
    if not spoken or first is None:
        return None
    return moments(trace)[first].since(spoken[0].end_s * 1_000)


def errors_so_far(trace: Trace, reference: Sequence[TimedWord]) -> tuple[Edits, Edits]:
    """At every chunk end, what was shown against the words that had begun by then, added up: RWER's edits.

    Returns:
        The edits with the words begun by the chunk's end, and by the end of its compute (ARWER).
    """
    begun_ms = [_start_s(reference, i) * 1_000 for i in range(len(reference))]

    def said_by(time_ms: float) -> str:
        return " ".join(reference[i].word for i in range(len(reference)) if begun_ms[i] <= time_ms)

    shown: dict[int, str] = {}
    unaware, aware = Edits(), Edits()
    for step in trace.steps[:-1]:  # the last is the flush
        shown |= {event.utterance: event.text for event in step.events if isinstance(event, Partial)}
        text = " ".join(shown.values())
        unaware += count_edits(said_by(step.audio_ms), text)
        if not math.isnan(step.compute_s):
            aware += count_edits(said_by(step.audio_ms + step.compute_s * 1_000), text)
    return unaware, aware


def revisions(trace: Trace) -> Revisions:
    """A word is withdrawn when the next partial shows another one, or none, in its place.

    The last word may grow ("recogn", "recognition"): then nothing that was shown is taken back.
    """
    withdrawn = kept = 0
    for views in _views(trace):
        for before, after in itertools.pairwise(views):
            withdrawn += _n_withdrawn(before.keys, after.keys)
        kept += len(views[-1].keys)
    return Revisions(withdrawn, kept)


def percentiles(values: Sequence[float], points: Sequence[int]) -> dict[str, float] | None:
    """{"p50": ...} of the values, interpolated linearly; None of nothing, and where they were not measured."""
    if not values or math.isnan(math.fsum(values)):
        return None
    return {f"p{point}": round(float(np.percentile(values, point)), 3) for point in points}


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """mean, p50, p90, max; None of nothing."""
    points = percentiles(values, (50, 90))
    return points and {"mean": round(float(np.mean(values)), 3), **points, "max": round(max(values), 3)}


def schedule_latency_ms(waits: Sequence[int]) -> list[float]:
    """Of frames by how many each waited for ([n]: those that waited for n): from their own end on, compute apart."""
    return [FRONT_END_MS + FEATURE_MS * n for n, frames in enumerate(waits) for _ in range(frames)]


def _start_s(reference: Sequence[TimedWord], i: int) -> float:
    """When word `i` began; where only ends are known, at the end before it, but not long before its own."""
    word = reference[i]
    if word.start_s is not None:
        return word.start_s
    return max(reference[i - 1].end_s if i else 0.0, word.end_s - LONGEST_WORD_S)


def _n_withdrawn(before: Sequence[str], after: Sequence[str]) -> int:
    changed = sum(a != b for a, b in zip(before, after, strict=False)) + max(len(before) - len(after), 0)
    last = len(before) - 1
    grew = 0 <= last < len(after) and before[last] != after[last] and after[last].startswith(before[last])
    return changed - grew


def _views(trace: Trace) -> Iterator[list[_View]]:
    """The views of each utterance that showed anything, in order."""
    utterances: dict[int, list[_View]] = {}
    for i, step in enumerate(trace.steps):
        for event in step.events:
            if isinstance(event, Partial):
                utterances.setdefault(event.utterance, []).append(_view(i, event))
            elif isinstance(event, Final) and event.utterance in utterances:
                last = utterances[event.utterance][-1]
                utterances[event.utterance].append(_View(i, last.texts, last.keys, len(last.keys)))
    yield from utterances.values()


def _view(step: int, partial: Partial) -> _View:
    texts, keys, n_stable = [], [], 0
    for match in re.finditer(r"\S+", partial.text):
        if key := word_key(match[0]):
            texts.append(match[0])
            keys.append(key)
            n_stable += match.end() <= partial.stable
    return _View(step, tuple(texts), tuple(keys), n_stable)
