"""When words were said: the best monotone path, the edges of pauses, and what the model was sure of."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr import timing
from asr.checkpoint import Whisper
from asr.encoder import FRAMES_PER_SECOND
from asr.offline import OfflineDecoder
from asr.timing import (
    HOP,
    MOST_CERTAIN,
    RAW,
    REACH,
    SILENCE_DB,
    Calibration,
    calibration,
    log_odds,
    loudness,
    monotone_path,
    n_spoken,
    refine,
    timed_words,
    token_frames,
    upper_heads,
)


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
    found = tiny.vocabulary.words(tokens)
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
        spoken = n_spoken(tokens[at : at + word.n_tokens], vocabulary)
        expected.append(max(float(logprobs[at : at + spoken].mean().exp()), MOST_CERTAIN))
        at += word.n_tokens
    assert [word.confidence for word in words] == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_a_prefix_of_the_stream_and_a_calibration_count(tiny: Whisper) -> None:
    features = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0))
    audio, tokens = (
        tiny.decoder.keys_values(features),
        tiny.vocabulary.tokenizer.encode(" An unbelievably long word"),
    )
    own = timed_words(tiny, audio, tokens, 50)
    same = timed_words(tiny, audio, tokens, 50, prefix=tiny.vocabulary.prefix)
    other = timed_words(tiny, audio, tokens, 50, prefix=(*tokens, *tiny.vocabulary.prefix))
    assert own == same
    assert [word.text for word in other] == [word.text for word in own]
    assert other != own
    doubtful = Calibration(0.5, -1.0)
    calibrated = timed_words(tiny, audio, tokens, 50, calibrate=doubtful)
    assert calibrated == [replace(word, confidence=doubtful(word.confidence)) for word in own]


def test_the_upper_half_of_the_decoder_may_be_asked_instead(tiny: Whisper) -> None:
    assert upper_heads(tiny.dims) == [(1, 0), (1, 1)]
    assert upper_heads(replace(tiny.dims, n_text_layer=5, n_text_head=1)) == [(2, 0), (3, 0), (4, 0)]
    features = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0))
    audio, tokens = tiny.decoder.keys_values(features), tiny.vocabulary.tokenizer.encode(" one two")
    own, lower = (timed_words(tiny, audio, tokens, 50, heads=heads) for heads in (None, [(0, 0)]))
    assert [(word.start, word.end) for word in own] != [(word.start, word.end) for word in lower]


def test_no_tokens_have_no_words(tiny: Whisper) -> None:
    assert timed_words(tiny, [], [], 0) == []


def noise(n_hops: int, level_db: float, seed: int = 0) -> np.ndarray:
    """White noise of `n_hops` hops at `level_db` of full scale."""
    generator = np.random.default_rng(seed)
    return (10 ** (level_db / 20) * generator.standard_normal(n_hops * HOP)).astype(np.float32)


def spoken(
    words: list[tuple[int, int]], n_hops: int, word_db: float = -20, room_db: float = -60
) -> np.ndarray:
    """Bursts of noise at the hops of `words` in a quieter room."""
    samples = noise(n_hops, room_db)
    for seed, (first, behind) in enumerate(words, 1):
        samples[first * HOP : behind * HOP] += noise(behind - first, word_db, seed)
    return samples


def test_loudness_tells_how_loud_and_where() -> None:
    samples = noise(100, -20)
    level = loudness(samples)
    assert level.shape == (100,)
    assert loudness(samples / 2) == pytest.approx(level - 6.02, abs=0.01)
    burst = loudness(np.concatenate([np.zeros(40 * HOP, np.float32), noise(20, -20), np.zeros(40 * HOP)]))
    assert (burst[:39] == SILENCE_DB).all()
    assert (burst[61:] == SILENCE_DB).all()
    assert (burst[40:60] > -40).all()
    assert loudness(samples[: HOP - 1]).shape == (0,)
    assert loudness(torch.from_numpy(samples)) == pytest.approx(level)


WORDS = [(30, 60), (90, 110), (160, 200)]  # hops


@pytest.mark.parametrize("room_db", [-100, -60, -45])
@pytest.mark.parametrize(
    "attended",
    [
        [(10, 60), (60, 110), (110, 230)],  # pauses given to the words behind them, the last to the last
        [(30, 90), (90, 160), (160, 240)],  # to the words before them
        [(30, 75), (75, 140), (140, 210)],  # halved
        [(36, 54), (98, 104), (170, 188)],  # too little given to the words
        [(30, 65), (85, 115), (150, 240)],
    ],
)
def test_words_end_where_their_pauses_begin(attended: list[tuple[int, int]], room_db: float) -> None:
    found = refine(attended, loudness(spoken(WORDS, 240, room_db=room_db)))
    assert np.array(found) == pytest.approx(np.array(WORDS), abs=2)


def test_words_without_a_pause_stay_where_attention_has_them() -> None:
    """Nor is the closure of a "t", 40 ms, a pause."""
    attended = [(30, 70), (70, 110), (110, 150)]
    level = loudness(spoken([(30, 80), (84, 150)], 200))
    found = refine(attended, level)
    assert [found[0][1], *found[1], found[2][0]] == [70, 70, 110, 110]
    assert refine(attended, loudness(noise(200, -30))) == attended


def test_a_word_grows_only_within_reach() -> None:
    level = loudness(spoken([(30, 120)], 200))
    assert refine([(70, 80)], level) == [(70, 80)]  # the pauses are far off
    [(first, behind)] = refine([(40, 80)], level)
    assert (first, behind) == (pytest.approx(30, abs=2), 80)


LEVELS = st.floats(-100, 0, width=32)


@given(st.data())
def test_refined_words_stay_in_order_and_near_what_they_were(data: st.DataObject) -> None:
    level = np.array(data.draw(st.lists(LEVELS, max_size=60)), dtype=np.float32)
    most = max(2, len(level))
    edges = sorted(data.draw(st.lists(st.integers(0, most), min_size=2, max_size=10, unique=True)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    found = refine(spans, level)
    assert len(found) == len(spans)
    assert all(first < behind for first, behind in found)
    assert all(behind <= first for (_, behind), (first, _) in pairwise(found))
    for (first, behind), (new_first, new_behind) in zip(spans, found, strict=True):
        assert first - REACH <= new_first < behind
        assert first < new_behind <= behind + REACH


def test_the_beginning_of_the_next_word_does_not_hide_the_pause() -> None:
    """A word that was given the pause behind it and the onset, louder than itself, of what follows."""
    quiet = spoken([(30, 60), (120, 160)], 200, word_db=-26)
    quiet[120 * HOP : 160 * HOP] *= 4
    found = refine([(30, 128), (128, 160)], loudness(quiet))
    assert np.array(found) == pytest.approx(np.array([(30, 60), (120, 160)]), abs=2)


def test_audio_shorter_than_what_was_heard_is_silent_behind_its_end() -> None:
    """The flush of a stream is heard beyond the samples."""
    samples = spoken([(30, 60)], 70)
    [(first, behind)] = refine([(20, 110)], loudness(samples))
    assert (first, behind) == (pytest.approx(30, abs=2), pytest.approx(60, abs=2))


def test_a_president_pauses_between_his_words(tiny_en: Whisper, jfk: Tensor) -> None:
    words = OfflineDecoder(tiny_en).transcribe(jfk)
    seconds = len(jfk) / 16_000
    assert all(0 <= word.start < word.end <= seconds for word in words)
    assert all(word.end <= following.start for word, following in pairwise(words))
    level = loudness(jfk)
    pauses = [(a.end, b.start) for a, b in pairwise(words) if b.start - a.end >= 0.2]
    assert len(pauses) >= 3  # "And so my fellow Americans - ask not - what ... do for you - ask ..."
    speech = np.median(np.concatenate([level[round(w.start * 100) : round(w.end * 100)] for w in words]))
    for start, end in pauses:
        assert np.median(level[round(start * 100) : round(end * 100)]) < speech - 15


def test_raw_probabilities_stay_as_they_are() -> None:
    assert [RAW(p) for p in (0.01, 0.5, 0.99)] == pytest.approx([0.01, 0.5, 0.99])
    assert (RAW(0.0), RAW(1.0)) == (pytest.approx(MOST_CERTAIN), pytest.approx(1 - MOST_CERTAIN))


def test_calibration_is_a_line_through_the_log_odds() -> None:
    calibrate = Calibration(0.5, -1.0)
    for p in (0.2, 0.5, 0.9):
        assert log_odds(calibrate(p)) == pytest.approx(0.5 * log_odds(p) - 1.0)


def test_constants_belong_to_a_model_and_a_pass(tiny_en: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    full, none = Calibration(0.9, -0.1), Calibration(0.7, -0.2)
    known = {("tiny.en", "full"): full, ("tiny.en", "none"): none}
    monkeypatch.setattr(timing, "CALIBRATIONS", known)
    assert (calibration(tiny_en.dims, "full"), calibration(tiny_en.dims, "none")) == (full, none)
    assert calibration(replace(tiny_en.dims, n_text_state=512), "full") is RAW
    assert calibration(replace(tiny_en.dims, n_vocab=51_865), "full") is RAW
