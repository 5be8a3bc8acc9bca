"""When words were said: the best monotone path, words out of tokens, and what the model was sure of."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from asr.checkpoint import Whisper
from asr.encoder import FRAMES_PER_SECOND
from asr.timing import monotone_path, n_spoken, timed_words, token_frames, words_of


def best_gain(gain: Tensor) -> float:
    """The most that any path from the first to the last cell gains, by trying them all."""
    u, n_frames = gain.shape

    @cache
    def up_to(i: int, j: int) -> float:
        if i == j == 0:
            return float(gain[0, 0])
        before = [up_to(a, b) for a, b in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if a >= 0 and b >= 0]
        return float(gain[i, j]) + max(before)

    return up_to(u - 1, n_frames - 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 7), (5, 5), (6, 4), (9, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_path_is_the_best_there_is(shape: tuple[int, int], seed: int) -> None:
    gain = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first, behind = monotone_path(gain)
    spans = list(zip(first, behind, strict=True))
    assert (spans[0][0], spans[-1][1]) == (0, shape[1])
    for (start, end), (next_start, _) in pairwise(spans):
        assert start < end
        assert next_start in (end - 1, end)
    gained = sum(float(gain[i, start:end].sum()) for i, (start, end) in enumerate(spans))
    assert gained == pytest.approx(best_gain(gain))


def test_tokens_lie_where_the_heads_look() -> None:
    """Three heads look at stretches spliced together; one of them looks anywhere."""
    ends = [12, 20, 45, 60]
    scores = torch.randn(3, 4, 80, generator=torch.Generator().manual_seed(0)) * 0.3
    for token, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        scores[:2, token, start:end] += 5
    first, behind = token_frames(scores, n_frames=60)
    assert behind == pytest.approx(ends, abs=2)
    assert first == pytest.approx([0, *ends[:-1]], abs=2)


def test_audio_behind_the_end_is_not_looked_at() -> None:
    scores = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    louder = scores.clone()
    louder[:, :, 30:] = torch.nan
    assert token_frames(louder, 30) == token_frames(scores, 30)
    assert token_frames(scores, 30)[1][-1] == 30


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4])
def test_very_short_audio_has_times(n_frames: int) -> None:
    first, behind = token_frames(torch.zeros(2, 3, 10), n_frames)
    assert all(start < end for start, end in zip(first, behind, strict=True))
    assert behind[-1] == n_frames


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" And so, my fellow", ["And", "so,", "my", "fellow"]),
        (' "Ask not!" he said.', ['"Ask', 'not!"', "he", "said."]),
        (" an ill-disposed man's", ["an", "ill-disposed", "man's"]),
        (" well - yes", ["well -", "yes"]),
        (" naïve 日本", ["naïve", "日本"]),
        ("Start without a space", ["Start", "without", "a", "space"]),
    ],
)
def test_words_carry_their_punctuation(tiny: Whisper, text: str, words: list[str]) -> None:
    tokens = tiny.vocabulary.tokenizer.encode(text)
    found = words_of(tokens, tiny.vocabulary)
    assert [word for word, _ in found] == words
    assert sum(n for _, n in found) == len(tokens)


@pytest.mark.parametrize(
    ("word", "silent"),
    [(" hello", 0), (" hello,", 1), (" it's.", 1), (' said."', 1), (" ...", 0), (" 42", 0)],
)
def test_punctuation_behind_a_word_is_not_spoken(tiny: Whisper, word: str, silent: int) -> None:
    tokens = tiny.vocabulary.tokenizer.encode(word)
    assert n_spoken(tokens, tiny.vocabulary) == len(tokens) - silent


@torch.no_grad()
def test_words_have_times_in_order_and_the_confidence_of_decoding(tiny: Whisper) -> None:
    features = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0))
    vocabulary, decoder, row = tiny.vocabulary, tiny.decoder, torch.tensor([0])
    tokens = vocabulary.tokenizer.encode(" An unbelievably long word")
    words = timed_words(tiny, decoder.keys_values(features), tokens, n_frames=50)
    assert [word.text for word in words] == ["An", "unbelievably", "long", "word"]
    assert sum(word.n_tokens for word in words) == len(tokens)
    times = [(word.start, word.end) for word in words]
    assert times == sorted(times)
    assert all(0 <= start < end <= 50 / FRAMES_PER_SECOND for start, end in times)

    state = decoder.init_state(1)
    decoder.listen(features, state, row)
    logits = decoder.logits(torch.tensor([[*vocabulary.prefix, *tokens]]), state, row)
    before_first = len(vocabulary.prefix) - 1
    logprobs = logits[0, before_first:-1].log_softmax(-1)[range(len(tokens)), tokens]
    expected, at = [], 0
    for word in words:
        expected.append(float(logprobs[at : at + word.n_tokens].mean().exp()))
        at += word.n_tokens
    assert [word.confidence for word in words] == pytest.approx(expected, rel=1e-3)


def test_no_tokens_have_no_words(tiny: Whisper) -> None:
    assert timed_words(tiny, [], [], 0) == []
