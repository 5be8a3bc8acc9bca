"""What a resumed session hears again."""

import numpy as np
import pytest

from asr.checkpoint import Whisper
from streaming.events import Bookmark
from streaming.replay import MOST_CARRIED, Replay, settled_tokens

MS = 16  # samples
AUDIO = np.arange(900 * MS, dtype=np.float32)


def test_nothing_is_missing_where_nothing_is_known() -> None:
    assert Replay(Bookmark.at(4_200)).missing == 0


@pytest.mark.parametrize("piece_ms", [100, 300, 900])
def test_all_that_was_heard_comes_at_once(piece_ms: int) -> None:
    replay = Replay(Bookmark(audio_ms=500, from_ms=100, heard_ms=1_000, carried="and so"))
    assert (replay.missing, replay.n_finished, replay.n_lead) == (900 * MS, 400 * MS, 400 * MS)
    for start in range(0, len(AUDIO), piece_ms * MS):
        again, new = replay.gather(AUDIO[start : start + piece_ms * MS], ending=False)
        assert not len(new)
        assert (again is None) == bool(replay.missing)
    assert np.array_equal(again, AUDIO)


def test_silence_that_leads_stands_behind_what_was_said() -> None:
    replay = Replay(Bookmark(audio_ms=500, from_ms=100, heard_ms=500, said="so", said_ms=300))
    assert (replay.missing, replay.n_finished, replay.n_lead) == (400 * MS, 400 * MS, 100 * MS)


def test_audio_that_ends_before_is_new() -> None:
    replay = Replay(Bookmark(audio_ms=100, from_ms=100, heard_ms=1_000))
    replay.gather(AUDIO[: 300 * MS], ending=False)
    again, new = replay.gather(AUDIO[300 * MS : 500 * MS], ending=True)
    assert again is None
    assert np.array_equal(new, AUDIO[: 500 * MS])
    assert not replay.missing


def test_what_is_missing_by_rounding_is_silence() -> None:
    """Else a client that had ended the final itself would have its words said twice."""
    replay = Replay(Bookmark(audio_ms=500, from_ms=100, heard_ms=500, said="so", said_ms=400))
    again, new = replay.gather(AUDIO[: 400 * MS - 3], ending=True)
    assert again is not None
    assert np.array_equal(again[:-3], AUDIO[: 400 * MS - 3])
    assert (again[-3:].tolist(), len(new), replay.missing) == ([0, 0, 0], 0, 0)


def test_carried_words_have_settled(tiny: Whisper) -> None:
    carried = settled_tokens("and so my", tiny.vocabulary)
    assert tiny.vocabulary.text(list(carried.tokens)).strip() == "and so my"
    assert carried.stable == len(carried.tokens) == 3


def test_more_than_anybody_says_is_not_carried(tiny: Whisper) -> None:
    assert settled_tokens(" ".join("a" * MOST_CARRIED), tiny.vocabulary).tokens
    assert not settled_tokens(" ".join("a" * (MOST_CARRIED + 1)), tiny.vocabulary).tokens
    assert not settled_tokens("", tiny.vocabulary).tokens
