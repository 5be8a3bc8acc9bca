"""Audio through a session as it would arrive, one clip or several at once."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from eval.run import EvaluationError, recognise, recognise_together
from streaming.events import Fault
from streaming.session import SessionOptions


def said(*words: int) -> np.ndarray:
    """300 ms of each of tests/eval/conftest.py's WORDS."""
    return np.repeat(np.array(words, dtype=np.float32) / 10, 4_800)


def test_audio_arrives_in_chunks_and_ends_with_what_is_left(engine: Callable) -> None:
    trace = recognise(engine(), "small", said(1, 2, 3), SessionOptions(chunk_ms=400))
    assert [step.audio_ms for step in trace.steps] == [400, 800, 900, 900]
    assert trace.audio_s == 0.9
    assert all(step.compute_s >= 0 for step in trace.steps)
    assert trace.cpu_s >= 0


def test_one_pass_gives_both_texts(engine: Callable) -> None:
    trace = recognise(engine(), "man", said(4, 5), SessionOptions())
    assert (trace.streaming_text, trace.final_text) == ("for man", "for a man")


def test_together_clips_give_what_each_gives_alone_but_for_compute(engine: Callable) -> None:
    clips = {"small": said(1, 2, 3), "man": said(0, 4, 5), "quiet": said(0), "long": said(1, 1, 2, 2, 3)}
    together = recognise_together(engine(), list(clips.items()), SessionOptions())
    assert [trace.utterance_id for trace in together] == list(clips)
    for trace in together:
        alone = recognise(engine(), trace.utterance_id, clips[trace.utterance_id], SessionOptions())
        assert [(s.audio_ms, s.events) for s in trace.steps] == [(s.audio_ms, s.events) for s in alone.steps]
        assert all(math.isnan(step.compute_s) for step in trace.steps)
        assert math.isnan(trace.cpu_s)


def test_a_fatal_fault_is_the_engines_failure(engine: Callable) -> None:
    broken = engine(fails_at=1, fault=Fault("internal", "out of memory", True))
    with pytest.raises(EvaluationError, match="out of memory"):
        recognise(broken, "small", said(1), SessionOptions())


def test_a_session_must_close(engine: Callable) -> None:
    talker = engine(fails_at=1, fault=Fault("slow", "late", False))  # says this, and nothing more
    with pytest.raises(EvaluationError, match="small: the session did not close"):
        recognise(talker, "small", said(1), SessionOptions())
