"""Pieces: what is written, how pieces group into words, and that partials grow as their promises allow."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.search import Hypothesis
from asr.transducer.pieces import WORD_START, Pieces, normalise
from asr.words import Words
from streaming.policy import Shown, partial, rough_words
from tests.asr.transducer.spelling import pieces_for

PIECES = pieces_for()


def ids(*pieces: str) -> list[int]:
    return [PIECES._processor.piece_to_id(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("It's NOT an ill-disposed man.", "it's not an ill disposed man"),
        ("the dogs’ tails—’tis so", "the dogs' tails 'tis so"),
        ("rock ' n ' roll", "rock n roll"),
        ("  42 ", ""),
    ],
)
def test_only_letters_and_apostrophes_are_written(said: str, written: str) -> None:
    assert normalise(said) == written
    assert normalise(written) == written


def test_what_is_encoded_reads_the_same() -> None:
    tokens = PIECES.encode("It's THEN, on-that map")
    assert PIECES.text(tokens) == "it's then on that map"
    assert PIECES.starts_word[tokens[0]]
    assert not set(tokens) & set(PIECES.unspoken)
    assert max(tokens) < PIECES.wait == len(PIECES)


def test_a_vocabulary_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / "pieces.model").write_bytes(PIECES.model)
    read: Words = Pieces.read(tmp_path / "pieces.model")
    assert read.encode("the hat") == PIECES.encode("the hat")
    assert read.wait == PIECES.wait


def test_only_the_unknown_stands_for_nothing() -> None:
    assert [PIECES._processor.id_to_piece(i) for i in PIECES.unspoken] == ["<unk>"]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], []),
        (["▁the", "n", "▁", "s"], [("then", 2), ("s", 2)]),
        (["n", "▁the"], [("n", 1), ("the", 1)]),  # no start before the first letters
        (["▁", "▁the"], [("the", 2)]),  # starts without letters
        (["▁the", "▁", "▁the"], [("the", 1), ("the", 2)]),
        (["▁the", "▁", "▁"], [("the", 3)]),
        (["▁"], []),
    ],
)
def test_words_are_grouped_at_their_starts(pieces: list[str], words: list[tuple[str, int]]) -> None:
    tokens = ids(*pieces)
    assert not set(tokens) & set(PIECES.unspoken)
    assert PIECES.words(tokens) == words
    assert PIECES.text(tokens) == " ".join(word for word, _ in words)


TOKENS = st.lists(st.integers(1, len(PIECES) - 1), max_size=12)


@given(TOKENS)
def test_text_only_grows(tokens: list[int]) -> None:
    texts = [PIECES.text(tokens[:n]) for n in range(len(tokens) + 1)]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    letters = [PIECES._processor.id_to_piece(token).removeprefix(WORD_START) for token in tokens]
    assert texts[-1].replace(" ", "") == "".join(letters)
    assert sum(n for _, n in PIECES.words(tokens)) == (len(tokens) if texts[-1] else 0)


@given(TOKENS)
def test_partials_of_growing_words_keep_their_promises(tokens: list[int]) -> None:
    """A settled piece may be followed by the rest of its word: the text settled before stays its beginning."""
    shown, before = Shown(), ""
    for n in range(len(tokens) + 1):
        said = Hypothesis(tuple(tokens[:n]), (-0.1,) * n, tuple(range(2, 2 * n + 2, 2)), n)
        event, shown = partial(said, shown, PIECES, 1, 0, 40 * n, 0.0)
        if event is not None:
            assert event.text.startswith(before)
            assert event.stable == len(event.text)
            assert [word.text for word in event.words] == event.text.split()
            before = event.text


def test_rough_times_are_when_pieces_were_put_out() -> None:
    the, then = ids("▁the"), ids("▁the", "n")
    said = Hypothesis((*the, *then), (-0.1, -0.2, -0.4), (10, 30, 36), 3)
    words = rough_words(said, PIECES, 0.0)
    assert [(word.text, word.end, word.n_tokens) for word in words] == [("the", 0.2, 1), ("then", 0.72, 2)]
