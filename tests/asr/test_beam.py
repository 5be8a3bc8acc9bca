"""Beam search over scripted scorers, and over the real model: what it finds, keeps, compares and copies."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.beam import ALLOWANCE, BeamRow, BeamSearch, StreamSearch
from asr.biasing import Hotwords
from asr.cache import KVCache
from asr.checkpoint import Whisper
from asr.limits import MAX_BEAM
from asr.offline import MAX_TOKENS, OfflineDecoder
from asr.search import GreedySearch, Hypothesis, Search
from tests.asr.scripted import EOT, VOCABULARY, dictation, favour, frames, hear, search_over, whim

ROW = torch.tensor([0])


def odds(**chances: float) -> list[float]:
    """Logits of `t3=0.4, wait=0.5`: the rest is shared among the other tokens."""
    named = {EOT if name == "wait" else int(name[1:]): chance for name, chance in chances.items()}
    rest = (1 - sum(named.values())) / (EOT + 1 - len(named))
    return [math.log(max(named.get(token, rest), 1e-9)) for token in range(EOT + 1)]


def garden_path(text: list[int], heard: list[int]) -> list[float]:
    """1 seems the better beginning, but only 2 leads anywhere."""
    if not text:
        return odds(t1=0.5, t2=0.4, wait=0.01)
    if text[0] == 1:
        return odds(t4=0.1, wait=0.12)
    return odds(t3=0.95) if text == [2] else odds(wait=0.95)


# -- what it decides


def test_finds_what_greedy_search_misses() -> None:
    greedy, beam = search_over(garden_path), search_over(garden_path, BeamSearch, width=2)
    assert hear(greedy, greedy.init_state(1), 0).tokens[:1] == (1,)
    said = hear(beam, beam.init_state(1), 0)
    assert said.tokens == (2, 3)
    assert said.logprobs == pytest.approx([math.log(0.4), math.log(0.95)], abs=1e-3)
    assert said.frames == (1, 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("unsettled", "max_tokens"), [(0, 20), (2, 3), (4, 20)])
def test_with_width_one_it_is_greedy_search(seed: int, unsettled: int, max_tokens: int) -> None:
    """On one stream and on several, with frames that are replaced and words that are favoured."""
    generator = torch.Generator().manual_seed(seed)
    greedy = search_over(whim, unsettled=unsettled, suppress=(3,))
    beam = search_over(whim, BeamSearch, width=1, unsettled=unsettled, suppress=(3,))
    hotwords = Hotwords(VOCABULARY, ["12", "456"], boost=1.0)
    rows, states = torch.tensor([2, 0]), [search.init_state(3) for search in (greedy, beam)]
    for search, state in zip((greedy, beam), states, strict=True):
        search.reset(state, rows, [[1, 2], []], hotwords=[None, hotwords])
    n_said = 0
    for _ in range(12):
        n = int(torch.randint(1, 5, (), generator=generator))
        features = torch.cat([frames(*[seed + i] * n) for i in range(2)])
        replaced = min(n - 1, int(states[0].decoder.audio.lengths[rows].min()))
        results = [
            search.step(features, state, rows, max_tokens, replaced)[0]
            for search, state in zip((greedy, beam), states, strict=True)
        ]
        for one, other in zip(*results, strict=True):
            assert replace(one, logprobs=()) == replace(other, logprobs=())
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        n_said += sum(len(said.tokens) for said in results[0])
    assert n_said > 20


def test_new_audio_brings_a_rival_back() -> None:
    """Greedy search without a second look is stuck with 1; the beam has not settled what it disagrees about."""

    def unsure(text: list[int], heard: list[int]) -> list[float]:
        if text:
            return odds(wait=0.9)
        return odds(t1=0.5, t2=0.4, wait=0.01) if len(heard) < 3 else odds(t1=0.05, t2=0.9, wait=0.01)

    greedy = search_over(unsure, unsettled=0)
    beam = search_over(unsure, BeamSearch, width=2, unsettled=0)
    said = {}
    for search in (greedy, beam):
        state = search.init_state(1)
        first = hear(search, state, 0, 0)
        assert first.tokens == (1,)
        assert first.stable == (1 if search is greedy else 0)
        said[search] = hear(search, state, 0)
    assert said[greedy].tokens == (1,)
    assert said[beam].tokens == (2,)


@pytest.mark.parametrize(
    ("word", "wait", "then", "says"),
    [
        (0.85, 0.1, 0.9, True),  # a word is due: the short text does not win for being short
        (0.08, 0.9, 0.99, False),  # none is: the long one does not win for being sure of the rest
        (0.3, 0.5, 0.99, False),  # an unsure silence, and a hallucination that is sure of itself
    ],
)
def test_hypotheses_of_different_lengths_are_compared_with_their_waits(
    word: float, wait: float, then: float, says: bool
) -> None:
    """The text is [] or five tokens, of which only the first is a question."""

    def script(text: list[int], heard: list[int]) -> list[float]:
        if not text:
            return odds(t1=word, wait=wait)
        return odds(wait=then) if len(text) == 5 else odds(**{f"t{len(text) + 1}": then})

    beam = search_over(script, BeamSearch, width=4)
    assert hear(beam, beam.init_state(1), 0).tokens == ((1, 2, 3, 4, 5) if says else ())


@pytest.mark.parametrize("gain", [ALLOWANCE - 0.05, ALLOWANCE + 0.05])
def test_a_decision_may_cost_its_allowance(gain: float) -> None:
    """Saying 1 and then waiting loses `gain` nats against waiting at once."""
    at_once = 0.4

    def script(text: list[int], heard: list[int]) -> list[float]:
        if not text:
            return odds(t1=0.45, wait=at_once)
        return odds(wait=at_once * math.exp(-gain) / 0.45)

    beam = search_over(script, BeamSearch, width=2)
    assert hear(beam, beam.init_state(1), 0).tokens == ((1,) if gain < ALLOWANCE else ())


# -- what it promises


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    width=st.integers(1, MAX_BEAM),
    unsettled=st.integers(0, 3),
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=12),
)
def test_promises_hold_whatever_the_scorer_thinks(
    seed: int, width: int, unsettled: int, steps: list[tuple[int, int]]
) -> None:
    contested, max_tokens = 4, 3
    search = search_over(
        whim, BeamSearch, width=width, unsettled=unsettled, contested=contested, suppress=(3,)
    )
    state, before = search.init_state(1), Hypothesis((), (), (), 0)
    (beam,) = state.rows
    assert isinstance(beam, BeamRow)
    for n, provisional in steps:
        replaced = min(provisional, n - 1, int(state.decoder.audio.lengths[0]))
        said = hear(search, state, *[seed] * n, max_tokens=max_tokens, replaced=replaced)
        assert said.stable >= before.stable
        assert said.tokens[: before.stable] == before.tokens[: before.stable]
        assert len(said.tokens) - said.stable <= contested
        assert all(token < EOT and token != 3 for token in said.tokens)
        assert all(logprob <= 0 for logprob in said.logprobs)
        assert len(said.tokens) == len(said.logprobs) == len(said.frames)
        assert 1 <= len(beam.open) <= width
        assert len({branch.tokens for branch in beam.open}) == len(beam.open)
        assert len({branch.row for branch in beam.open}) == len(beam.open)
        for branch in beam.open:
            said_by_row = state.decoder.text.k[0, branch.row, 0, len(beam.prefix) :, 0]
            text = [*beam.tokens[: beam.stable], *branch.tokens]
            assert said_by_row[: len(text)].tolist() == text
        before = said


def test_a_beam_disagrees_and_revises() -> None:
    """What the property above relies on: there are several hypotheses, and the best one changes."""
    search = search_over(whim, BeamSearch, width=4)
    revised = rivals = 0
    for seed in range(10):
        state, said = search.init_state(1), [Hypothesis((), (), (), 0)]
        (beam,) = state.rows
        for _ in range(8):
            said.append(hear(search, state, *[seed] * 4))
            assert isinstance(beam, BeamRow)
            rivals += len(beam.open) > 1
        revised += any(b.tokens[: len(a.tokens)] != a.tokens for a, b in pairwise(said))
    assert revised > 3
    assert rivals > 20


def test_resumed_decoding_equals_decoding_all_at_once() -> None:
    audio = [0, 3, 1, 0, 4, 1, 5, 9, 0, 2, 6, 5, 3, 5, 0]
    search = search_over(dictation, BeamSearch, width=4)
    state = search.init_state(1)
    for start in range(0, len(audio), 3):
        said = hear(search, state, *audio[start : start + 3])
    assert said.tokens == (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)


def test_settled_words_begin_a_row_and_settling_ends_the_doubt() -> None:
    search = search_over(dictation, BeamSearch, width=3)
    state = search.init_state(2)
    hear(search, state, 9, 9, row=1)
    search.reset(state, torch.tensor([1]), [[1, 2, 3]])
    assert hear(search, state, 1, 2, row=1).tokens == (1, 2, 3)
    assert hear(search, state, 5, 6, row=1).tokens == (1, 2, 3, 6)
    (settled,) = search.settle(state, torch.tensor([1]))
    assert (settled.tokens, settled.stable) == ((1, 2, 3, 6), 4)
    assert hear(search, state, 7, row=1).tokens == (1, 2, 3, 6, 7)
    search.reset(state, torch.tensor([1]))
    assert hear(search, state, 4, row=1) == hear(search, state, 4, row=0)


def test_what_cannot_be_said_waits() -> None:
    """Loops are cut and rows fill up, as in greedy search."""
    looping = search_over(lambda text, heard: favour(1, by=30.0), BeamSearch, width=1)
    greedy = search_over(lambda text, heard: favour(1, by=30.0))
    assert (
        hear(looping, looping.init_state(1), 0, max_tokens=100).tokens
        == hear(greedy, greedy.init_state(1), 0, max_tokens=100).tokens
    )
    counting = search_over(lambda text, heard: favour((len(text) ** 2) % 7), BeamSearch, width=3)
    state = counting.init_state(2)
    full = hear(counting, state, 0, max_tokens=1000)
    assert hear(counting, state, 0, max_tokens=1000).tokens == full.tokens


# -- many streams, and what they cost


def test_streams_of_every_width_side_by_side_equal_each_alone() -> None:
    widths, search = [1, 4, 2, 1], search_over(whim, StreamSearch)
    together, rows = search.init_state(5), torch.tensor([3, 0, 4, 1])
    search.reset(together, rows, widths=widths)
    alone = []
    for width in widths:
        alone.append(search.init_state(1))
        search.reset(alone[-1], ROW, widths=[width])
    for n in range(10):
        features = torch.cat([frames(i, n % 3) for i in range(len(rows))])
        said, _ = search.step(features, together, rows, 4)
        assert said == [hear(search, alone[i], i, n % 3, max_tokens=4) for i in range(len(rows))]
    assert len({hypothesis.tokens for hypothesis in said}) > 1


def test_a_stream_is_greedy_unless_told_otherwise() -> None:
    search, greedy = search_over(garden_path, StreamSearch), search_over(garden_path)
    state = search.init_state(1)
    assert hear(search, state, 0) == hear(greedy, greedy.init_state(1), 0)
    search.reset(state, ROW, widths=[2])
    assert hear(search, state, 0).tokens == (2, 3)
    search.reset(state, ROW)
    assert hear(search, state, 0) == hear(greedy, greedy.init_state(1), 0)


def test_one_pass_serves_all_streams_and_beams() -> None:
    search = search_over(dictation, BeamSearch, width=4)
    state, rows = search.init_state(3), torch.arange(3)
    search.step(torch.tensor([[1.0, 2], [3, 4], [5, 6]])[..., None], state, rows, 20)
    search.decoder.n_fed = 0
    search.step(torch.zeros(3, 2, 1), state, rows, 20)
    silent = search.decoder.n_fed
    search.step(torch.tensor([[7.0], [8], [9]])[..., None], state, rows, 20)
    assert (silent, search.decoder.n_fed) == (1, 3)


def test_only_what_has_not_settled_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much was said before: the audio exists once, and a new hypothesis shares the settled text."""
    n_copied: list[int] = []
    copy = KVCache.copy

    def counting(cache: KVCache, source: Tensor, target: Tensor, start: Tensor) -> None:
        n_copied.extend((cache.lengths[source] - start).tolist())
        copy(cache, source, target, start)

    monkeypatch.setattr(KVCache, "copy", counting)

    def unsure(text: list[int], heard: list[int]) -> list[float]:
        """What was said counts only by its length: the beam never agrees on its newest token."""
        spoken = [frame for frame in heard if frame]
        if len(text) >= len(spoken):
            return odds(wait=0.9)
        return odds(**{f"t{spoken[len(text)]}": 0.6, f"t{(spoken[len(text)] + 1) % 10}": 0.3})

    width = 4
    search = search_over(unsure, BeamSearch, width=width)
    state = search.init_state(1)
    assert state.decoder.audio.k.shape[1] == 1
    for n in range(25):
        said = hear(search, state, 1 + n % 9)
    assert len(said.tokens) == 25
    early, late = n_copied[: len(n_copied) // 2], n_copied[len(n_copied) // 2 :]
    assert len(late) >= 10
    assert max(late) <= search.contested + 4
    assert sum(late) / len(late) <= 1.5 * sum(early) / len(early)


# -- the real model


def total(search: Search, state, features: Tensor) -> tuple[float, Hypothesis]:
    """The log-probability of what is said and of the end behind it."""
    (said,), _ = search.step(features, state, ROW, MAX_TOKENS)
    decoder = search.decoder
    check = decoder.init_state(1)
    decoder.listen(features, check, ROW)
    prefix = search.vocabulary.prefix
    logits = decoder.logits(torch.tensor([[*prefix, *said.tokens]]), check, ROW)[0, -1, : EOT_EN + 1]
    return sum(said.logprobs) + float(logits.log_softmax(-1)[EOT_EN]), said


EOT_EN = 50_256


@torch.no_grad()
def test_the_real_model_finds_nothing_worse(tiny_en: Whisper, jfk: Tensor) -> None:
    features = full_context(tiny_en, jfk)
    totals = {}
    searches: dict[str, Callable[[], Search]] = {
        "greedy": lambda: GreedySearch(tiny_en.decoder, tiny_en.vocabulary),
        "beam": lambda: BeamSearch(tiny_en.decoder, tiny_en.vocabulary, width=4),
    }
    for name, make in searches.items():
        search = make()
        totals[name], said = total(search, search.init_state(1), features)
        assert "ask what you can do for your country" in tiny_en.vocabulary.text(list(said.tokens))
    assert totals["beam"] >= totals["greedy"] - 1e-3


def full_context(model: Whisper, samples: Tensor) -> Tensor:
    """(1, T, d) features as the second pass has them."""
    return OfflineDecoder(model).features(samples)
