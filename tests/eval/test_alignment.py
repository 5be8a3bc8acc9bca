"""When words of a reference were spoken."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.audio import SAMPLE_RATE, read_audio
from asr.checkpoint import Whisper
from asr.offline import OfflineDecoder
from asr.timing import TimedWord as Recognised
from eval.alignment import _spread, align
from eval.datasets import TimedWord

SAMPLES = Path(__file__).parents[2] / "samples"


def test_recognised_words_lend_their_times_and_the_others_are_spread_between_them() -> None:
    recognised = [Recognised("The", 1.0, 1.5, 0.9, 1), Recognised("mat.", 4.0, 4.5, 0.9, 1)]
    assert _spread(["THE", "CAT", "SAT", "MAT", "THERE"], recognised, 6.0) == (
        TimedWord("THE", 1.0, 1.5),
        TimedWord("CAT", 1.5, 2.75),
        TimedWord("SAT", 2.75, 4.0),
        TimedWord("MAT", 4.0, 4.5),
        TimedWord("THERE", 4.5, 6.0),
    )


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_times_are_in_order_and_within_the_clip(reference: list[str], heard: list[str]) -> None:
    recognised = [Recognised(word, i + 0.1, i + 0.9, 0.9, 1) for i, word in enumerate(heard)]
    words = _spread(reference, recognised, 20.0)
    assert [word.word for word in words] == reference
    times = [time for word in words for time in (word.start_s or 0.0, word.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= 20 for time in times)


def test_nothing_said_has_no_words(tiny_en: Whisper) -> None:
    assert align(OfflineDecoder(tiny_en), np.zeros(1_600, np.float32), " ") == ()


def test_a_reference_in_capitals_lies_in_its_speech(tiny_en: Whisper) -> None:
    clip = read_audio(SAMPLES / "austen-0880.flac")
    text = "HE WAS NOT AN ILL DISPOSED YOUNG MAN"
    words = align(OfflineDecoder(tiny_en), clip, text)
    assert [word.word.upper() for word in words] == text.split()
    ends = [word.end_s for word in words]
    assert ends == sorted(ends)
    assert 0 <= (words[0].start_s or 0.0) < 1.0
    assert ends[-1] == pytest.approx(len(clip) / SAMPLE_RATE, abs=1.0)
