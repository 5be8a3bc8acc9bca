"""What a listener is shown of a hypothesis, chunk by chunk."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

from asr.search import Hypothesis
from streaming.events import MAX_CARRIED_CHARS, Partial
from streaming.policy import DOUBTFUL, NEWEST, Shown, carried, partial

SURE, UNSURE = DOUBTFUL + 0.3, DOUBTFUL - 0.3
TEXTS = (
    " now",
    " you",
    " see",
    "m",
    "ing",
    " the",
    " sun",
)  # tokens; those without a space go on with a word


class Letters:
    """A vocabulary of seven tokens."""

    wait = len(TEXTS)

    def encode(self, text: str) -> list[int]:
        return [TEXTS.index(f" {word}") for word in text.split()]

    def text(self, tokens: list[int]) -> str:
        return "".join(TEXTS[token] for token in tokens)

    def words(self, tokens: list[int]) -> list[tuple[str, int]]:
        words: list[tuple[str, int]] = []
        for token in tokens:
            if words and not TEXTS[token].startswith(" "):
                words[-1] = (words[-1][0] + TEXTS[token], words[-1][1] + 1)
            else:
                words.append((TEXTS[token].strip(), 1))
        return words


def heard(tokens: list[int], probabilities: list[float], stable: int) -> Hypothesis:
    return Hypothesis(tuple(tokens), tuple(map(math.log, probabilities)), (0,) * len(tokens), stable)


def show(*chunks: Hypothesis) -> list[Partial | None]:
    """What each chunk's hypothesis of one utterance puts on the screen; None where nothing changes."""
    shown, told = Shown(), []
    for chunk in chunks:
        one, shown = partial(chunk, shown, Letters(), 0, 0, 1_000, 0.0)
        told.append(one)
    return told


def texts(*chunks: Hypothesis) -> list[str | None]:
    return [one.text if one else None for one in show(*chunks)]


def test_a_doubtful_new_word_waits_until_it_is_likely_or_settles() -> None:
    before = heard([0, 1], [SURE, UNSURE], 0)
    assert texts(before, heard([0, 1], [SURE, SURE], 0)) == ["now", "now you"]
    assert texts(before, heard([0, 1], [SURE, UNSURE], 2)) == ["now", "now you"]
    assert texts(before, heard([0, 2], [SURE, SURE], 0)) == ["now", "now see"]  # nothing was taken back


def test_what_follows_a_doubtful_word_waits_with_it() -> None:
    assert texts(heard([0, 1, 2], [SURE, UNSURE, SURE], 0)) == ["now"]


def test_a_word_that_became_doubtful_is_not_taken_back() -> None:
    assert texts(heard([0, 1], [SURE, SURE], 0), heard([0, 1], [UNSURE, UNSURE], 0)) == ["now you", None]


def test_a_screen_is_not_emptied_by_doubt() -> None:
    """To clients a turn whose words are all taken back is over."""
    before = heard([0], [SURE], 0)
    assert texts(before, heard([1], [UNSURE], 0)) == ["now", "you"]
    assert texts(before, heard([1, 2], [UNSURE, SURE], 0)) == ["now", "you"]
    assert texts(before, heard([], [], 0)) == ["now", ""]


def test_a_word_half_of_which_has_settled_is_shown() -> None:
    assert texts(heard([0, 2, 4], [SURE, UNSURE, UNSURE], 2)) == ["now seeing"]
    assert texts(heard([0, 2, 4], [SURE, UNSURE, UNSURE], 1)) == ["now"]


def test_only_the_newest_words_wait() -> None:
    tokens, probabilities = [0, 1, 2, 5, 6], [SURE, UNSURE, SURE, SURE, SURE]
    assert texts(heard(tokens, probabilities, 0)) == ["now you see the sun"]
    assert texts(heard(tokens[: 1 + NEWEST], probabilities[: 1 + NEWEST], 0)) == ["now"]


def test_a_partial_has_the_words_of_its_text() -> None:
    (told,) = show(heard([0, 2, 4, 1], [SURE, SURE, SURE, UNSURE], 1))
    assert told is not None
    assert [word.text for word in told.words] == told.text.split() == ["now", "seeing"]
    assert told.stable == len("now")


@st.composite
def conversations(draw: st.DrawFn) -> list[Hypothesis]:
    """Hypotheses of one utterance as a search gives them: what has settled stays, all else may change."""
    token, probability = st.integers(0, len(TEXTS) - 1), st.floats(0.01, 1)
    tokens: list[int] = []
    chunks, stable = [], 0
    for _ in range(draw(st.integers(1, 6))):
        tokens = tokens[:stable] + draw(st.lists(token, max_size=4))
        if tokens and not TEXTS[tokens[0]].startswith(" "):
            tokens[0] = 0
        stable = draw(st.integers(stable, len(tokens)))
        n = len(tokens)
        chunks.append(heard(tokens, draw(st.lists(probability, min_size=n, max_size=n)), stable))
    return [*chunks, heard(tokens, [UNSURE] * len(tokens), len(tokens))]


@given(conversations())
def test_what_was_promised_stays_and_at_the_end_all_is_shown(chunks: list[Hypothesis]) -> None:
    screens: list[Partial | None] = []
    for told in show(*chunks):
        screens.append(told or (screens[-1] if screens else None))
    for before, after in pairwise(screens):
        if before is not None:
            assert after is not None
            assert after.text.startswith(before.text[: before.stable])
            assert after.stable >= before.stable
    said = Letters().text(list(chunks[-1].tokens)).strip()
    last = screens[-1]
    assert (last.text, last.stable) == (said, len(said)) if last else said == ""


@given(conversations())
def test_a_screen_is_a_beginning_of_what_was_heard(chunks: list[Hypothesis]) -> None:
    for chunk, told in zip(chunks, show(*chunks), strict=True):
        heard_text = Letters().text(list(chunk.tokens)).strip()
        assert told is None or heard_text.startswith(told.text)


def test_half_a_character_is_not_carried() -> None:
    tokenizer = get_tokenizer(multilingual=False)
    tokens = tokenizer.encode(" see \N{CLINKING BEER MUGS}")
    assert carried(tokenizer.decode(tokens)) == "see \N{CLINKING BEER MUGS}"
    assert carried(tokenizer.decode(tokens[:-1])) == "see"
    assert carried(" a" * MAX_CARRIED_CHARS) == (" a" * MAX_CARRIED_CHARS).strip()[:MAX_CARRIED_CHARS]
