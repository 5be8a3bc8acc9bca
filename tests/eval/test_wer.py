"""The error rate: counts worked out by hand, and what must hold of any interval."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.wer import (
    Edits,
    bootstrap_interval,
    count_edits,
    grouped,
    matching_words,
    paired_bootstrap,
    pooled,
)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("the cat sat", "the cat sat", Edits(hits=3)),
        ("the cat sat", "the dog sat down", Edits(hits=2, substitutions=1, insertions=1)),
        ("the cat sat", "cat", Edits(hits=1, deletions=2)),
        ("THE COLOUR'S GONE", "The color's gone.", Edits(hits=4)),  # "the color is gone"
        ("MISTER SMITH", "Mr. Smith,", Edits(hits=2)),
        ("TWO HUNDRED", "200", Edits(hits=1)),
        ("well", "Uh, well.", Edits(hits=1)),
        ("well", "well...", Edits(hits=1, insertions=1)),  # as published figures count it
        ("", "thank you", Edits(insertions=2)),
        ("thank you", "", Edits(deletions=2)),
        ("", "", Edits()),
    ],
)
def test_edits_are_counted_over_normalized_words(reference: str, hypothesis: str, edits: Edits) -> None:
    assert count_edits(reference, hypothesis) == edits


def test_rate_is_pooled_over_words_and_not_averaged_over_utterances() -> None:
    short, long = Edits(substitutions=1), Edits(hits=9)
    assert pooled([short, long]).rate == pytest.approx(1 / 10)


def test_rate_of_no_reference_words_is_not_a_number_but_absent() -> None:
    assert Edits(insertions=3).rate is None


def test_groups_pool_their_own_utterances() -> None:
    edits = [Edits(hits=1), Edits(deletions=1), Edits(hits=2)]
    assert grouped(edits, ["ann", "bob", "ann"]) == {"ann": Edits(hits=3), "bob": Edits(deletions=1)}


def test_matching_words_keep_their_places_and_their_spaces() -> None:
    pairs = matching_words(["i am", "so", "glad"], ["well", "i am", "very", "glad"])
    assert pairs == [(0, 1), (2, 3)]
    assert matching_words([], ["well"]) == []


counts = st.integers(0, 20)
some_edits = st.lists(st.builds(Edits, counts, counts, counts, counts), min_size=2, max_size=30)


@settings(max_examples=40)
@given(some_edits)
def test_interval_lies_within_the_rates_of_single_utterances(edits: list[Edits]) -> None:
    interval = bootstrap_interval(edits, resamples=200)
    if interval is None:
        assert sum(one.reference_words > 0 for one in edits) < 2
        return
    low, high = interval
    assert 0 <= low <= high
    if all(one.reference_words for one in edits):
        rates = [one.rate for one in edits if one.rate is not None]
        assert min(rates) - 1e-9 <= low
        assert high <= max(rates) + 1e-9


@settings(max_examples=20)
@given(some_edits)
def test_interval_is_the_same_every_time(edits: list[Edits]) -> None:
    assert bootstrap_interval(edits, resamples=50) == bootstrap_interval(edits, resamples=50)


def test_interval_covers_the_rate_and_narrows_with_more_data() -> None:
    few = [Edits(hits=9, substitutions=1), Edits(hits=7, substitutions=3)] * 4
    low, high = bootstrap_interval(few) or (1, 0)
    assert low < 0.2 < high
    narrow_low, narrow_high = bootstrap_interval(few * 25) or (1, 0)
    # The standard error of a mean over n utterances falls with the square root of n.
    assert narrow_high - narrow_low == pytest.approx((high - low) / 5, rel=0.25)


def test_interval_of_one_utterance_is_absent() -> None:
    assert bootstrap_interval([Edits(hits=9, substitutions=1)]) is None


SOME = st.lists(
    st.builds(Edits, *(st.integers(0, 20),) * 4).filter(lambda one: one.reference_words > 0),
    min_size=2,
    max_size=12,
)


@settings(max_examples=25)
@given(SOME)
def test_a_system_differs_from_itself_by_nothing(edits: list[Edits]) -> None:
    difference = paired_bootstrap(edits, edits, resamples=100)
    assert difference is not None
    assert (difference.rate, difference.interval, difference.better_b) == (0, (0, 0), 0.5)


@settings(max_examples=25)
@given(SOME, st.integers(1, 3))
def test_a_system_with_more_errors_everywhere_is_never_the_better_one(edits: list[Edits], more: int) -> None:
    worse = [one + Edits(insertions=more) for one in edits]
    difference = paired_bootstrap(edits, worse, resamples=100)
    assert difference is not None
    assert difference.better_b == 0
    assert 0 < difference.interval[0] <= difference.interval[1]
    assert difference.rate == pytest.approx(more * len(edits) / pooled(edits).reference_words)
    back = paired_bootstrap(worse, edits, resamples=100)
    assert back is not None
    assert back.better_b == 1


def test_one_utterance_compares_nothing() -> None:
    assert paired_bootstrap([Edits(hits=3)], [Edits(hits=2, deletions=1)]) is None
