"""Delays on traces made by hand; every expected number is worked out in the comments."""

import math

import pytest

from eval.datasets import TimedWord
from eval.latency import (
    Moment,
    Revisions,
    emission_delays,
    errors_so_far,
    final_delays,
    first_word_delay,
    moments,
    percentiles,
    revisions,
    shown_words,
    spoken_ends_ms,
)
from eval.trace import Step, Trace
from eval.wer import Edits
from streaming.events import Closed, Endpoint, Event, Final, Partial


def partial(text: str, stable: str = "", utterance: int = 0) -> Partial:
    assert text.startswith(stable)
    return Partial(utterance, text, len(stable), 0)


def trace(*answers: tuple[Event, ...], compute_s: float = 0.1) -> Trace:
    """Each answer comes with 300 ms more of audio and takes `compute_s`."""
    steps = tuple(Step(300 * (i + 1), compute_s, events) for i, events in enumerate(answers))
    return Trace("made by hand", 0.3 * len(answers), steps)


CAT = trace(
    (),  # 300 ms
    (partial("the cap"),),  # 600 ms
    (partial("the cat", stable="the"),),  # 900 ms
    (),  # 1200 ms: nothing changed
    (partial("The cat, sat.", stable="The cat,"),),  # 1500 ms: case and commas are no change
    (
        partial("The cat, sat.", stable="The cat, sat."),
        Endpoint(0, 1800),
        Final(0, "The cat sat.", (), 0, 0, 0),
    ),
)


def test_a_word_is_shown_from_when_it_never_changes_again() -> None:
    words = shown_words(CAT)
    assert [word.text for word in words] == ["The", "cat,", "sat."]
    assert [word.shown.audio_ms for word in words] == [600, 900, 1500]
    assert [word.committed.audio_ms for word in words if word.committed] == [900, 1500, 1800]


def test_a_word_that_comes_back_counts_from_when_it_came_back() -> None:
    words = shown_words(trace((partial("a"),), (partial("a b"),), (partial("c b"),), (partial("a b"),)))
    assert [word.shown.audio_ms for word in words] == [1200, 600]
    assert [word.committed for word in words] == [None, None]  # neither promised nor closed by a final


def test_the_final_promises_what_was_shown() -> None:
    [word] = shown_words(trace((partial("a"),), (Final(0, "a", (), 0, 0, 0), Closed(0, 1, 1))))
    assert word.committed == Moment(600, pytest.approx(700))


def test_the_second_utterance_has_places_of_its_own() -> None:
    words = shown_words(
        trace(
            (partial("one"),),
            (partial("one", "one"), Final(0, "one", (), 0, 0, 0)),
            (partial("two", utterance=1),),
        )
    )
    assert [(word.text, word.shown.audio_ms) for word in words] == [("one", 300), ("two", 900)]


def test_the_aware_clock_adds_the_compute_of_the_step() -> None:
    assert moments(trace((), (), compute_s=0.1)) == [
        Moment(300, pytest.approx(400)),
        Moment(600, pytest.approx(700)),
    ]


def test_the_aware_clock_queues_behind_a_slow_step() -> None:
    slow = Trace("slow", 0.9, (Step(300, 0.5, ()), Step(600, 0.1, ()), Step(900, 0.05, ())))
    # The first answer is there at 800; the second waits for it, 800 + 100; then 900 + 50.
    assert [moment.clock_ms for moment in moments(slow)] == pytest.approx([800, 900, 950])


def test_delays_count_words_that_match_the_reference_only() -> None:
    reference = [TimedWord("THE", 0.0, 0.25), TimedWord("CAT", None, 0.5), TimedWord("SAID", 0.6, 1.0)]
    words = shown_words(CAT)
    ends_ms = spoken_ends_ms(words, reference)
    assert ends_ms == [250, 500, None]  # "sat" for "said" is a substitution
    # the: 600 - 250, committed 900 - 250; cat: 900 - 500, committed 1500 - 500; compute is 100 ms a step
    assert emission_delays(words, ends_ms) == [
        Moment(350, pytest.approx(450)),
        Moment(400, pytest.approx(500)),
    ]
    assert final_delays(words, ends_ms) == [
        Moment(650, pytest.approx(750)),
        Moment(1000, pytest.approx(1100)),
    ]


def test_reference_words_that_are_only_fillers_are_not_spoken() -> None:
    reference = [TimedWord("uh", 0.0, 0.1), TimedWord("the", 0.1, 0.2)]
    assert spoken_ends_ms(shown_words(CAT), reference) == [200, None, None]
    assert first_word_delay(CAT, reference) == Moment(400, pytest.approx(500))  # 600 - 200


def test_the_first_word_needs_an_alignment_and_a_word() -> None:
    assert first_word_delay(CAT, []) is None
    assert first_word_delay(trace((), ()), [TimedWord("the", None, 0.2)]) is None


def test_words_withdrawn_per_word_kept() -> None:
    assert revisions(CAT) == Revisions(withdrawn=1, kept=3)  # "cap"


@pytest.mark.parametrize(
    ("texts", "withdrawn", "kept"),
    [
        (["a", "a b", "a b c"], 0, 3),
        (["recogn", "recognition"], 0, 1),  # it grew: nothing that was shown went away
        (["recogn is", "recognition is"], 1, 2),  # only the last word may grow
        (["a b c", "a"], 2, 1),
        (["a b c", "x a b c"], 3, 4),  # every place shows another word
        (["a b", "", "a b"], 2, 2),
        (["a", "Uh, a"], 0, 1),  # fillers are not words
        (["a b", "A, b...", "a - b."], 0, 2),  # nor is punctuation
        ([""], 0, 0),
    ],
)
def test_revisions(texts: list[str], withdrawn: int, kept: int) -> None:
    assert revisions(trace(*((partial(text),) for text in texts))) == Revisions(withdrawn, kept)


def test_percentiles_interpolate_and_nothing_has_none() -> None:
    assert percentiles([0, 10, 20, 30, 40], (50, 90)) == {"p50": 20, "p90": 36}
    assert percentiles([], (50,)) is None


def test_errors_so_far_are_counted_at_every_chunk_end_against_the_words_begun_by_then() -> None:
    reference = [TimedWord("the", 0.1, 0.2), TimedWord("cat", 0.55, 0.8), TimedWord("sat", 1.25, 1.5)]
    unaware, aware = errors_so_far(CAT, reference)
    # Chunk ends at 300, 600, ..., 1500; the flush is none. Begun by then: the | the cat | the cat | the cat | all.
    # Shown: nothing (a deletion) | the cap (a substitution) | the cat | the cat | the cat sat.
    assert unaware == Edits(hits=1 + 2 + 2 + 3, substitutions=1, deletions=1)
    # With 100 ms of compute, "sat" has begun when the answer to the chunk to 1200 comes.
    assert aware == Edits(hits=1 + 2 + 2 + 3, substitutions=1, deletions=2)


def test_words_of_unknown_start_begin_where_the_one_before_ended_or_not_long_before_their_end() -> None:
    silent = trace((), (), (), compute_s=math.nan)  # chunks end at 300 and 600; compute is unknown
    follows = [TimedWord("cats", None, 0.2), TimedWord("sat", None, 0.6)]  # begins at 0.2
    assert errors_so_far(silent, follows) == (Edits(deletions=2 + 2), Edits())
    after_a_pause = [TimedWord("cats", None, 0.2), TimedWord("sat", None, 1.1)]  # begins at 0.5
    assert errors_so_far(silent, after_a_pause)[0] == Edits(deletions=1 + 2)


def test_percentiles_of_what_was_not_measured_are_absent() -> None:
    assert percentiles([1.0, math.nan], (50,)) is None
