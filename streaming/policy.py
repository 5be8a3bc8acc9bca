"""Which words may be shown, which may still change, and what an utterance finally said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from asr.encoder import FRAMES_PER_SECOND
from asr.search import Hypothesis
from asr.timing import TimedWord
from asr.words import Words
from streaming.events import MAX_CARRIED_CHARS, Bookmark, Final, Partial, Word

LONGEST_WORD_S = 0.6  # where nothing better is known of a word's start
#: Less probable words are not shown while they are the newest: more than half of what was taken back began as one.
DOUBTFUL = 0.4
#: Words: a beam leaves many unsettled, and all that follows a doubtful one would have to wait with it.
NEWEST = 2
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # as tokens are written of which a character needs another


@dataclass(frozen=True)
class Shown:
    """What the newest partial of an utterance said."""

    text: str = ""
    stable: int = 0
    words: tuple[str, ...] = field(default=(), compare=False)


def rough_words(hypothesis: Hypothesis, vocabulary: Words, delay_s: float) -> list[TimedWord]:
    """The words of a hypothesis, timed by when their tokens were put out: at once, and good to about a chunk.

    Args:
        delay_s: how long after a word's end the model was asked to say it.
    """
    words: list[TimedWord] = []
    i, spoken = 0, 0.0
    for text, n in vocabulary.words(list(hypothesis.tokens)):
        end = max(spoken, hypothesis.frames[i + n - 1] / FRAMES_PER_SECOND - delay_s)
        confidence = math.exp(sum(hypothesis.logprobs[i : i + n]) / n)
        words.append(TimedWord(text, max(spoken, end - LONGEST_WORD_S), end, confidence, n))
        i, spoken = i + n, end
    return words


def presentable(words: Sequence[TimedWord], stable: int, shown: Sequence[str]) -> int:
    """How many of `words` may be shown: those before the first doubtful one among the newest.

    What has settled is shown whatever its probability, and nothing is taken back only because it became doubtful. Nor
    is a screen emptied by doubt: another first word takes the place of the one that stands there.

    Args:
        stable: tokens that are never revised again; a word that begins with one of them is shown.
        shown: the words that stand on the screen.
    """
    texts = [word.text for word in words]
    first = max(0, len(words) - NEWEST)
    begin = sum(word.n_tokens for word in words[:first])
    for i, word in enumerate(words[first:], first):
        stands = texts[: i + 1] == list(shown[: i + 1])
        if begin >= stable and word.confidence < DOUBTFUL and not stands:
            return i or min(1, len(shown))
        begin += word.n_tokens
    return len(words)


def partial(
    hypothesis: Hypothesis,
    shown: Shown,
    vocabulary: Words,
    utterance: int,
    begin_ms: int,
    audio_ms: int,
    delay_s: float,
) -> tuple[Partial | None, Shown]:
    """The partial for a hypothesis, or None where it would say nothing new.

    Args:
        delay_s: see `rough_words`.
        begin_ms: where the utterance's window begins on the session's timeline.
        audio_ms: how far the session's audio has been heard.
    """
    words = rough_words(hypothesis, vocabulary, delay_s)
    words = words[: presentable(words, hypothesis.stable, shown.words)]
    tokens = list(hypothesis.tokens[: sum(word.n_tokens for word in words)])
    text = vocabulary.text(tokens).strip()
    settled = vocabulary.text(tokens[: hypothesis.stable]).strip()
    # A character may be spread over tokens, so the settled text need not be a prefix to its last byte.
    stable = max(shown.stable, len(settled)) if text.startswith(settled) else shown.stable
    now = Shown(text, min(stable, len(text)), tuple(word.text for word in words))
    if now == shown:
        return None, now
    timed = _on_timeline(words, begin_ms, audio_ms)
    return Partial(utterance, now.text, now.stable, audio_ms, timed), now


def whole(text: str, utterance: int, audio_ms: int) -> Partial:
    """The last partial of an utterance: all of its streaming text, settled."""
    return Partial(utterance, text, len(text), audio_ms)


def carried(settled: str) -> str:
    """What a bookmark says of words that settled behind a cut: nothing of a character whose half is still to come."""
    return settled.strip().rstrip(HALF_A_CHARACTER).rstrip()[:MAX_CARRIED_CHARS]


def final(words: list[TimedWord], utterance: int, begin_ms: int, bookmark: Bookmark) -> Final | None:
    """The final of an utterance heard from `begin_ms` to where the bookmark is; None where nothing was said.

    Args:
        words: times in seconds from there.
    """
    if not words:
        return None
    timed = _on_timeline(words, begin_ms, bookmark.audio_ms)
    text = " ".join(word.text for word in timed)
    return Final(utterance, text, timed, timed[0].start_ms, timed[-1].end_ms, bookmark.audio_ms, bookmark)


def _on_timeline(words: list[TimedWord], begin_ms: int, end_ms: int) -> tuple[Word, ...]:
    """Seconds from the window's beginning -> milliseconds of the session, none after `end_ms`."""

    def at(seconds: float) -> int:
        return min(begin_ms + round(seconds * 1000), end_ms)

    return tuple(Word(w.text, at(w.start), at(w.end), round(w.confidence, 4)) for w in words)
