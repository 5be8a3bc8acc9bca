"""The baselines over a decoder that hears a script, and once over the real one."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.checkpoint import Whisper
from asr.offline import OfflineDecoder
from asr.timing import TimedWord
from eval.baselines import KINDS, BaselineEngine, pieces
from eval.run import recognise
from eval.trace import Trace
from eval.wer import count_edits
from streaming.events import Final, Partial
from streaming.session import SessionOptions

SAMPLE_RATE = 16_000
NONE = SessionOptions(final_pass="none")


def spoken(text: str, start_s: float = 0.0, each_s: float = 0.3) -> list[TimedWord]:
    return [
        TimedWord(word, start_s + i * each_s, start_s + (i + 1) * each_s, 0.9, 1)
        for i, word in enumerate(text.split())
    ]


class Script:
    """Hears in turn what is written; the lengths of the buffers in seconds are kept."""

    def __init__(self, *hypotheses: Sequence[TimedWord]) -> None:
        self.hypotheses = list(hypotheses)
        self.lengths_s: list[float] = []

    def transcribe(self, samples: Tensor) -> list[TimedWord]:
        self.lengths_s.append(len(samples) / SAMPLE_RATE)
        return list(self.hypotheses.pop(0))


def heard(kind: str, decoder: object, seconds: float) -> Trace:
    engine = BaselineEngine("scripted", decoder, KINDS[kind])  # type: ignore[arg-type]
    return recognise(engine, "clip", np.zeros(round(seconds * SAMPLE_RATE), np.float32), NONE)


def partials(trace: Trace) -> list[tuple[str, str]]:
    """What is committed and what is not, of each partial."""
    events = [event for step in trace.steps for event in step.events if isinstance(event, Partial)]
    return [(event.text[: event.stable], event.text[event.stable :]) for event in events]


def test_what_two_hypotheses_agree_on_is_committed() -> None:
    script = Script(
        spoken("and so"), spoken("and some of"), spoken("and some fellow"), spoken("and some fellow men")
    )
    trace = heard("local-agreement", script, 1.2)
    assert partials(trace) == [
        ("", "and so"),
        ("and", " some of"),
        ("and some", " fellow"),
        ("and some fellow", " men"),
        ("and some fellow men", ""),
    ]
    assert trace.final_text == trace.streaming_text == "and some fellow men"
    assert script.lengths_s == pytest.approx([0.3, 0.6, 0.9, 1.2])


def test_committed_words_are_not_said_again_where_times_waver() -> None:
    late = spoken("my fellow friends", start_s=0.15)  # "my fellow" once more, later than it was
    trace = heard("local-agreement", Script(spoken("my fellow"), spoken("my fellow"), late), 0.9)
    assert partials(trace)[-1] == ("my fellow friends", "")


def test_a_long_buffer_is_trimmed_where_a_committed_sentence_ends() -> None:
    sentence = spoken("he came. he saw", each_s=4.0)  # the sentence ends at 8 s
    later = [word for word in sentence if word.start >= 8.0]
    rest = [TimedWord(word.text, word.start - 8, word.end - 8, 0.9, 1) for word in later]
    script = Script(*[sentence] * 51, rest)
    trace = heard("local-agreement", script, 52 * 0.3)
    assert script.lengths_s[50] == pytest.approx(15.3)  # more than 15 s: trimmed after this
    assert script.lengths_s[51] == pytest.approx(15.6 - 8)
    assert trace.final_text == "he came. he saw"


def test_a_buffer_never_outgrows_the_models_window_even_if_nothing_is_agreed_on() -> None:
    babble = [spoken(word) for word in ("one", "two")] * 100
    script = Script(*babble)
    heard("local-agreement", script, 60)
    assert max(script.lengths_s) < 30


def test_offline_says_everything_at_the_end() -> None:
    trace = heard("offline", Script(spoken("and so")), 0.9)
    assert [bool(step.events) for step in trace.steps] == [False, False, False, True]
    assert partials(trace) == [("and so", "")]
    [final] = trace.finals
    assert isinstance(final, Final)
    assert (final.start_ms, final.end_ms) == (0, 600)


def test_offline_joins_the_pieces_of_a_long_clip_on_one_timeline() -> None:
    trace = heard("offline", Script(spoken("and so"), spoken("my fellow")), 40)
    assert trace.final_text == "and so my fellow"
    starts = [word.start_ms for word in trace.finals[0].words]
    assert 20_000 <= starts[2] <= 30_000


def test_silence_has_no_final() -> None:
    assert heard("offline", Script([]), 0.3).finals == []


@given(st.floats(0, 100), st.integers(0, 2**32 - 1))
def test_pieces_are_all_of_the_audio_and_fit_the_window(seconds: float, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 100), np.float32).repeat(160)
    cut = list(pieces(samples))
    assert sum(len(piece) for _, piece in cut) == len(samples)
    assert all(0 < len(piece) <= 30 * SAMPLE_RATE for _, piece in cut)
    for (start_s, piece), (next_s, _) in pairwise(cut):
        assert next_s == pytest.approx(start_s + len(piece) / SAMPLE_RATE)


def test_a_long_clip_is_cut_where_it_is_quiet() -> None:
    samples = np.ones(40 * SAMPLE_RATE, np.float32)
    samples[25 * SAMPLE_RATE : 26 * SAMPLE_RATE] = 0
    [(_, first), _] = pieces(samples)
    assert 25 <= len(first) / SAMPLE_RATE <= 26


def test_real_words_come_from_both(tiny_en: Whisper) -> None:
    from asr.audio import read_audio

    clip = read_audio(Path(__file__).parents[2] / "samples" / "austen-0880.flac")
    decoder = OfflineDecoder(tiny_en)
    for kind in KINDS:
        engine = BaselineEngine("tiny.en", decoder, KINDS[kind])
        trace = recognise(engine, "austen", clip, SessionOptions(chunk_ms=1000, final_pass="none"))
        edits = count_edits("he was not an ill-disposed young man", trace.streaming_text)
        assert edits.errors <= 2, (kind, trace.streaming_text)
