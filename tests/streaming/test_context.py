"""What the second pass hears in front of an utterance."""

import numpy as np
import pytest

from asr.audio import samples_in
from asr.offline import NO_CONTEXT
from asr.timing import TimedWord
from server.client import KEEP_MS
from streaming.context import FORGOTTEN_MS, LONGEST_MS, Heard
from streaming.events import MAX_CARRIED_CHARS, Bookmark

RATE = 16_000


def word(text: str, start: float) -> TimedWord:
    return TimedWord(text, start, start + 0.3, 0.9, 1)


def heard(words: list[TimedWord], seconds: float, lead_ms: int = 0) -> tuple[Heard, Bookmark, np.ndarray]:
    samples = np.arange(int(seconds * RATE), dtype=np.float32)
    end_ms = 60_000 + int(seconds * 1000)
    one = Heard(samples)
    return one, one.say(words, Bookmark(end_ms, end_ms - lead_ms, end_ms)), samples


def test_nothing_was_said() -> None:
    one, bookmark, _ = heard([], 2.0)
    assert one.context is NO_CONTEXT
    assert (bookmark.said, bookmark.said_ms) == ("", 0)


def test_a_short_utterance_is_kept_from_just_before_its_first_word() -> None:
    one, bookmark, samples = heard([word("and", 0.5), word("so", 0.9)], 2.0, lead_ms=300)
    assert one.context.text == bookmark.said == "and so"
    assert np.array_equal(one.context.samples, samples[int(0.2 * RATE) :])
    assert bookmark == Bookmark(62_000, 60_200, 62_000, "", "and so", 1_500)


def test_of_a_long_one_its_newest_words_are_kept_from_where_they_begin() -> None:
    words = [word(str(n), n) for n in range(20)]
    one, bookmark, samples = heard(words, 20.5)
    assert one.context.text == " ".join(map(str, range(9, 20)))
    assert np.array_equal(one.context.samples, samples[9 * RATE :])
    assert bookmark.audio_ms - bookmark.from_ms == bookmark.said_ms == 11_500 <= LONGEST_MS


def test_more_text_than_a_bookmark_holds_is_left_out() -> None:
    words = [word("x" * 200, n) for n in range(4)]
    one, bookmark, _ = heard(words, 5.0)
    assert len(bookmark.said) == 401 <= MAX_CARRIED_CHARS
    assert len(one.context.samples) == 3 * RATE


@pytest.mark.parametrize("start", [1.9, 5.0])
def test_a_word_that_is_timed_into_the_silence_takes_none_of_what_leads(start: float) -> None:
    one, bookmark, samples = heard([word("so", start)], 2.0, lead_ms=500)
    assert (bookmark.from_ms, bookmark.said_ms) == (61_500, 0)
    assert np.array_equal(one.context.samples, samples[int(1.5 * RATE) :])


def test_after_a_minute_it_is_forgotten() -> None:
    one, _, samples = heard([word("so", 0.9)], 2.0)
    latest = len(samples) + samples_in(FORGOTTEN_MS)
    assert one.context_of(len(samples) - 1) is one.context_of(latest) is one.context is not NO_CONTEXT
    assert one.context_of(latest + 1) is NO_CONTEXT
    assert FORGOTTEN_MS == KEEP_MS


def test_a_resumed_session_knows_what_the_lost_one_knew() -> None:
    one, bookmark, samples = heard([word("and", 0.5), word("so", 0.9)], 2.0, lead_ms=300)
    again = Heard.again(samples[(bookmark.from_ms - 60_000) * 16 :], bookmark.said)
    assert again.context.text == one.context.text
    assert np.array_equal(again.context.samples, one.context.samples)
    assert Heard.again(samples, "").context is NO_CONTEXT
