"""Which words may be shown, which may still change, and what an utterance finally said."""

from dataclasses import dataclass

from asr.checkpoint import Vocabulary
from asr.search import Hypothesis
from asr.timing import TimedWord
from streaming.endpoint import milliseconds
from streaming.events import Final, Partial, Word


@dataclass(frozen=True)
class Shown:
    """What the newest partial of an utterance said."""

    text: str = ""
    stable: int = 0


def partial(
    hypothesis: Hypothesis, shown: Shown, vocabulary: Vocabulary, utterance: int, audio_ms: int
) -> tuple[Partial | None, Shown]:
    """The partial for a hypothesis, or None where it would say nothing new."""
    text = vocabulary.text(list(hypothesis.tokens)).strip()
    settled = vocabulary.text(list(hypothesis.tokens[: hypothesis.stable])).strip()
    # A character may be spread over tokens, so the settled text need not be a prefix to its last byte.
    stable = max(shown.stable, len(settled)) if text.startswith(settled) else shown.stable
    now = Shown(text, min(stable, len(text)))
    if now == shown:
        return None, shown
    return Partial(utterance, now.text, now.stable, audio_ms), now


def whole(text: str, utterance: int, audio_ms: int) -> Partial:
    """The last partial of an utterance: all of its streaming text, settled."""
    return Partial(utterance, text, len(text), audio_ms)


def final(words: list[TimedWord], utterance: int, start: int, end: int, origin_ms: int) -> Final | None:
    """The final of an utterance heard from sample `start` to `end`; None where nothing was said.

    Args:
        words: times in seconds from `start`.
        origin_ms: of the session's timeline.
    """
    if not words:
        return None
    begin_ms, end_ms = origin_ms + milliseconds(start), origin_ms + milliseconds(end)
    timed = []
    for word in words:
        word_start = min(begin_ms + round(word.start * 1000), end_ms)
        word_end = min(begin_ms + round(word.end * 1000), end_ms)
        timed.append(Word(word.text, word_start, word_end, round(word.confidence, 4)))
    text = " ".join(word.text for word in timed)
    return Final(utterance, text, tuple(timed), timed[0].start_ms, timed[-1].end_ms, end_ms)
