"""Word times of a transducer: from frames, put into order, and refined where there are pauses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.timing import HOP
from asr.transducer.hypotheses import TransducerHypothesis
from asr.transducer.timing import Lateness, in_order, timed_words
from tests.asr.transducer.spelling import pieces_for

PIECES = pieces_for()
TOKENS = [*PIECES.encode("then"), *PIECES.encode("sat")]


def said(*at: int, logprobs: tuple[float, ...] = (-0.1,) * 4) -> TransducerHypothesis:
    """ "then sat", whose pieces were said at these frames."""
    assert len(at) == len(TOKENS) == len(logprobs) == 4
    heard = tuple(2 * (frame + 5) for frame in at)
    return TransducerHypothesis(tuple(TOKENS), logprobs, heard, 4, at, -3.0)


def times(hypothesis: TransducerHypothesis, **how) -> list[tuple[str, float, float]]:
    words = timed_words(hypothesis, PIECES, **how)
    return [(word.text, pytest.approx(word.start), pytest.approx(word.end)) for word in words]


def test_words_lie_where_their_pieces_were_said() -> None:
    """Frames of 40 ms; how long it took until they could be said is no matter."""
    assert times(said(10, 12, 20, 22)) == [("then", 0.4, 0.52), ("sat", 0.8, 0.92)]
    assert sum(word.n_tokens for word in timed_words(said(10, 12, 20, 22), PIECES)) == len(TOKENS)


def test_constant_delays_are_taken_off() -> None:
    late = Lateness(first_ms=120, last_ms=-50)
    assert times(said(10, 12, 20, 22), lateness=late) == [("then", 0.28, 0.57), ("sat", 0.68, 0.97)]


def test_no_word_begins_before_the_audio_or_within_another() -> None:
    late = Lateness(first_ms=200)
    assert times(said(0, 3, 4, 6), lateness=late) == [("then", 0.0, 0.08), ("sat", 0.08, 0.28)]
    late = Lateness(last_ms=500)
    assert times(said(2, 3, 3, 4), lateness=late) == [("then", 0.08, 0.09), ("sat", 0.12, 0.13)]


def test_confidence_is_the_geometric_mean_of_posteriors() -> None:
    words = timed_words(said(1, 2, 3, 4, logprobs=tuple(np.log([0.9, 0.4, 1.0, 0.5]))), PIECES)
    assert [word.confidence for word in words] == pytest.approx([0.6, 0.5**0.5])


def test_edges_are_where_the_pauses_begin_and_end() -> None:
    rng = np.random.default_rng(0)
    samples = (1e-3 * rng.standard_normal(200 * HOP)).astype(np.float32)
    for first, behind in ((40, 70), (110, 140)):
        samples[first * HOP : behind * HOP] += 0.1 * rng.standard_normal((behind - first) * HOP)
    words = timed_words(said(11, 16, 28, 33), PIECES, samples=samples.astype(np.float32))
    assert [(word.start, word.end) for word in words] == [
        (pytest.approx(0.4, abs=0.02), pytest.approx(0.7, abs=0.02)),
        (pytest.approx(1.1, abs=0.02), pytest.approx(1.4, abs=0.02)),
    ]


def test_nothing_said_has_no_words() -> None:
    nothing = TransducerHypothesis((), (), (), 0, (), 0.0)
    assert timed_words(nothing, PIECES, samples=np.zeros(1600, np.float32)) == []


@given(st.lists(st.tuples(st.integers(-30, 300), st.integers(-30, 300)), max_size=8))
def test_spans_come_in_order_whatever_they_were(spans: list[tuple[int, int]]) -> None:
    ordered = in_order(spans)
    assert len(ordered) == len(spans)
    assert all(0 <= first < behind for first, behind in ordered)
    assert all(behind <= first for (_, behind), (first, _) in pairwise(ordered))
    assert in_order(ordered) == ordered
