"""A draft changes how fast greedy search comes to its words, and never the words."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.checkpoint import Whisper
from asr.draft import DraftedSearch, behind
from asr.offline import OfflineDecoder
from asr.search import Hypothesis
from tests.asr.scripted import Script, dictation, frames, hear, search_over, whim

TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6]


def follow(
    script: Script, audio: list[int], draft: list[int], max_tokens: int = 40
) -> tuple[Hypothesis, int]:
    """What is said, and in how many passes of the decoder."""
    search = search_over(script, DraftedSearch)
    state = search.init_state(1)
    said = search.follow(frames(*audio), draft, state, torch.tensor([0]), max_tokens)
    return said, search.decoder.n_fed


@settings(max_examples=60)
@given(
    st.sampled_from([dictation, whim]),
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), max_size=40),
    st.sampled_from([1, 5, 40]),
)
def test_any_draft_leads_to_what_greedy_search_says(
    script: Script, audio: list[int], draft: list[int], max_tokens: int
) -> None:
    search = search_over(script)
    expected = hear(search, search.init_state(1), *audio, max_tokens=max_tokens)
    said, _ = follow(script, audio, draft, max_tokens)
    assert said.tokens == expected.tokens
    assert said.frames == expected.frames
    assert said.logprobs == pytest.approx(expected.logprobs)
    assert said.stable == len(said.tokens)


@pytest.mark.parametrize(
    ("draft", "passes"),
    [
        (TEXT, 1),
        (TEXT[:9], 1 + 6),
        ([*TEXT, 2, 2], 1),
        ([*TEXT[:4], 9, *TEXT[5:]], 3),  # a token is another one
        ([*TEXT[:4], *TEXT[5:]], 2),  # one is missing
        ([*TEXT[:4], 9, *TEXT[4:]], 2),  # one too many
        ([], 1 + len(TEXT)),
    ],
)
def test_a_good_draft_saves_passes(draft: list[int], passes: int) -> None:
    said, n = follow(dictation, TEXT, draft)
    assert list(said.tokens) == TEXT
    assert n <= passes


def test_a_draft_is_taken_up_where_it_may_go_on() -> None:
    assert behind([1, 2, 3, 4], 3) == [4]  # two were too many
    assert behind([1, 2, 3, 4], 9) == [1, 2, 3, 4]  # it had not thought of that
    assert behind([1, 2, 3, 4, 5, 6], 6) == [1, 2, 3, 4, 5, 6]  # too far to be meant
    assert behind([], 1) == []


def test_the_second_pass_says_with_a_draft_what_it_says_without(tiny_en: Whisper, jfk: torch.Tensor) -> None:
    decoder = OfflineDecoder(tiny_en)
    plain = decoder.transcribe(jfk)
    assert len(plain) > 15
    text = " ".join(word.text for word in plain)
    for draft in (text, text.replace("country", "county").lower(), "Something else altogether."):
        drafted = decoder.transcribe(jfk, draft=draft)
        assert [word.text for word in drafted] == [word.text for word in plain]
        for word, expected in zip(drafted, plain, strict=True):
            assert word.confidence == pytest.approx(expected.confidence, abs=1e-3)
