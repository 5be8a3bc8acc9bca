"""Greedy search over scripted scorers: what it stores, revises, settles and refuses."""

import pytest
import torch

from asr.beam import BeamSearch
from asr.search import LONGEST_LOOP, MAX_REPEATS, MAX_WORD_REPEATS, GreedySearch, Hypothesis, Search
from tests.asr.scripted import EOT, PREFIX, TEXT_CTX, dictation, favour, frames, hear, search_over, whim


def test_says_what_it_hears_and_then_waits() -> None:
    search = search_over(dictation)
    state = search.init_state(1)
    assert hear(search, state, 0, 0).tokens == ()
    said = hear(search, state, 3, 1, 4)
    assert said.tokens == (3, 1, 4)
    assert said.frames == (5, 5, 5)
    assert hear(search, state, 0).tokens == (3, 1, 4)
    said = hear(search, state, 1, 5)
    assert said.tokens == (3, 1, 4, 1, 5)
    assert said.frames == (5, 5, 5, 8, 8)
    expected = torch.tensor(favour(1)).log_softmax(-1)[1]
    assert said.logprobs == pytest.approx([float(expected)] * 5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("unsettled", [0, 1, 2, 4])
def test_resumed_decoding_equals_decoding_all_at_once(size: int, unsettled: int) -> None:
    """For a scorer that does not change its mind."""
    audio = [0, 3, 1, 0, 4, 1, 5, 9, 0, 2, 6, 5, 3, 5, 0]
    search = search_over(dictation, unsettled=unsettled)
    state = search.init_state(2)
    whole = hear(search, state, *audio, row=0)
    for start in range(0, len(audio), size):
        pieces = hear(search, state, *audio[start : start + size], row=1)
    assert pieces.tokens == whole.tokens == (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)


def test_a_misheard_token_is_decoded_anew() -> None:
    """7 is heard where there will be an 8, as long as it is the newest frame."""

    def mishearing(text: list[int], heard: list[int]) -> list[float]:
        spoken = [7 if frame == 8 and i == len(heard) - 1 else frame for i, frame in enumerate(heard)]
        return dictation(text, spoken)

    search = search_over(mishearing)
    state = search.init_state(1)
    assert hear(search, state, 1, 2, 8).tokens == (1, 2, 7)
    revised = hear(search, state, 3)
    assert revised.tokens == (1, 2, 8, 3)
    assert revised.frames == (3, 3, 4, 4)  # the new token was first put out later
    assert len(revised.logprobs) == 4


@pytest.mark.parametrize(("later", "kept"), [(4.0, False), (6.0, True)])
def test_a_token_holds_while_its_score_does_not_fall(later: float, kept: bool) -> None:
    """Another token may overtake it: it is given up only if its own score has fallen, too."""

    def script(text: list[int], heard: list[int]) -> list[float]:
        if text:
            return favour(EOT)
        logits = favour(1, by=5.0 if len(heard) == 1 else later)
        logits[2] = 0.0 if len(heard) == 1 else 7.0
        return logits

    search = search_over(script)
    state = search.init_state(1)
    assert hear(search, state, 0).tokens == (1,)
    said = hear(search, state, 0)
    assert said.tokens == ((1,) if kept else (2,))
    if kept:
        logits = torch.tensor(script([], [0, 0]))
        assert said.logprobs == pytest.approx([float(logits.log_softmax(-1)[1])])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unsettled", [0, 2, 5])
def test_promises_hold_whatever_the_scorer_thinks(seed: int, unsettled: int) -> None:
    """Settled tokens never change, EOT is never stored, a step is bounded, and nothing loops."""
    max_tokens = 4
    search = search_over(whim, unsettled=unsettled, suppress=(3,))
    state, before, revised = search.init_state(1), Hypothesis((), (), (), 0), False
    for n in torch.randint(1, 5, (25,), generator=torch.Generator().manual_seed(seed)).tolist():
        said = hear(search, state, *[seed] * n, max_tokens=max_tokens)
        assert said.stable >= before.stable
        assert said.tokens[: before.stable] == before.tokens[: before.stable]
        assert said.stable >= len(said.tokens) - unsettled
        assert len(said.tokens) <= len(before.tokens) + max_tokens
        assert len(said.tokens) == len(said.logprobs) == len(said.frames)
        assert all(token < EOT and token != 3 for token in said.tokens)
        assert all(logprob <= 0 for logprob in said.logprobs)
        assert list(said.frames) == sorted(said.frames)
        assert longest_repetition(said.tokens) <= MAX_WORD_REPEATS
        revised |= said.tokens[: len(before.tokens)] != before.tokens
        before = said
    assert revised == (unsettled > 0)
    assert len(before.tokens) > 5 or unsettled


def longest_repetition(tokens: tuple[int, ...]) -> int:
    """How often one token stands in a row, at most."""
    runs, run = [0], 0
    for i, token in enumerate(tokens):
        run = run + 1 if i and tokens[i - 1] == token else 1
        runs.append(run)
    return max(runs)


@pytest.mark.parametrize("phrase", [(1,), (1, 2), (1, 1, 2), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_loops_are_cut(phrase: tuple[int, ...]) -> None:
    """A word may be said more often than a phrase."""
    search = search_over(lambda text, heard: favour(phrase[len(text) % len(phrase)]))
    state = search.init_state(1)
    spans = range(len(phrase), LONGEST_LOOP + 1, len(phrase))  # two phrases are a phrase, too
    most = min(n * (1 + (MAX_WORD_REPEATS if n <= 2 else MAX_REPEATS)) for n in spans) - 1
    assert hear(search, state, 0, max_tokens=100).tokens == (phrase * 9)[:most]
    assert hear(search, state, 0, max_tokens=100).tokens == (phrase * 9)[:most]


@pytest.mark.parametrize("kind", [GreedySearch, BeamSearch])
@pytest.mark.parametrize("phrase", [(1,), (1, 2), (1, 1, 2), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_what_is_said_again_in_haste_waits_for_its_time(kind: type[Search], phrase: tuple[int, ...]) -> None:
    """Nobody says a thing twice within a chunk; who has the time to say it again is heard."""
    options = {"width": 1} if kind is BeamSearch else {}
    script = lambda text, heard: favour(phrase[len(text) % len(phrase)])  # noqa: E731
    search = search_over(script, kind, paced=True, **options)
    state = search.init_state(1)
    once = hear(search, state, 0, max_tokens=100).tokens
    assert once == (phrase * 2)[: len(once)] and len(once) < 2 * len(phrase)
    n = len(once)
    for _ in range(5):  # a token each, as slow as speech
        n += 1
        assert hear(search, state, *[0] * 5, max_tokens=1).tokens == (phrase * 9)[:n]


def test_what_a_bounded_step_leaves_over_comes_with_the_next() -> None:
    search = search_over(dictation)
    state = search.init_state(1)
    assert hear(search, state, 1, 2, 3, 4, 5, max_tokens=2).tokens == (1, 2)
    assert hear(search, state, 0, max_tokens=2).tokens == (1, 2, 3, 4)
    assert hear(search, state, 0, max_tokens=2).tokens == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("seed", range(3))
def test_batched_equals_single(seed: int) -> None:
    """Rows out of step: each has heard and said another number of frames and tokens."""
    search = search_over(whim)
    together, rows = search.init_state(4), torch.tensor([3, 0, 2])
    alone = [search.init_state(1) for _ in rows]
    for i, row in enumerate(rows.tolist()):
        for n in range(i * (seed + 1)):
            hear(search, together, n, i, row=row)
            hear(search, alone[i], n, i)
    for n in range(6):
        features = torch.cat([frames(n, i) for i in range(len(rows))])
        hypotheses, _ = search.step(features, together, rows, 4)
        assert hypotheses == [hear(search, alone[i], n, i, max_tokens=4) for i in range(len(rows))]
    assert len({len(hypothesis.tokens) for hypothesis in hypotheses}) > 1


def test_a_row_may_begin_with_settled_tokens() -> None:
    search = search_over(dictation)
    state = search.init_state(2)
    hear(search, state, 9, 9, row=1)
    search.reset(state, torch.tensor([1]), [[1, 2, 3]])
    assert search.hypotheses(state, torch.tensor([1]))[0].stable == 3
    assert hear(search, state, 1, 2, row=1).tokens == (1, 2, 3)
    said = hear(search, state, 5, 6, row=1)
    assert said.tokens == (1, 2, 3, 6)
    search.reset(state, torch.tensor([1]))
    assert hear(search, state, 4, row=1) == hear(search, state, 4, row=0)


def test_settling_keeps_everything() -> None:
    """Even what the scorer now thinks wrong."""

    def fickle(text: list[int], heard: list[int]) -> list[float]:
        return favour((len(heard) + len(text)) % 10 if len(text) < 2 * len(heard) else EOT)

    search = search_over(fickle)
    state = search.init_state(1)
    assert hear(search, state, 0).tokens == (1, 2)
    (settled,) = search.settle(state, torch.tensor([0]))
    assert settled.tokens == (1, 2)
    assert settled.stable == 2
    assert hear(search, state, 0).tokens == (1, 2, 4, 5)


def test_a_row_that_is_full_says_no_more() -> None:
    """And rows beside it may be fed any number of tokens: padding never runs over the end of its cache."""
    search, most = search_over(babble), TEXT_CTX // 2 - len(PREFIX)
    state = search.init_state(2)
    full = hear(search, state, 0, row=0, max_tokens=10 * TEXT_CTX)
    assert len(full.tokens) == most
    search.reset(state, torch.tensor([1]), [list(full.tokens)])
    (again, _), _ = search.step(torch.zeros(2, 1, 1), state, torch.tensor([0, 1]), 10 * TEXT_CTX)
    assert again.tokens == full.tokens


def test_a_prompt_leaves_as_much_room_for_words() -> None:
    search = search_over(babble)
    state = search.init_state(1)
    search.reset(state, torch.tensor([0]), prefixes=[(*range(10), *range(10), *PREFIX)])
    assert len(hear(search, state, 0, max_tokens=10 * TEXT_CTX).tokens) == TEXT_CTX // 2 - len(PREFIX)


def babble(text: list[int], heard: list[int]) -> list[float]:
    """Goes on and on, and never in circles."""
    return favour(int(torch.randint(10, (), generator=torch.Generator().manual_seed(len(text)))))


def test_only_new_tokens_are_fed() -> None:
    """A step that says nothing costs one pass of the decoder, a token one more."""
    search = search_over(dictation)
    state, decoder = search.init_state(1), search.decoder
    hear(search, state, 1, 2, 3, 4, 5)
    decoder.n_fed = 0
    hear(search, state, 0)
    assert decoder.n_fed == 1
    hear(search, state, 6, 7)
    assert decoder.n_fed == 1 + 3


def test_newest_frames_may_be_replaced() -> None:
    """What was provisional is heard anew, and what was said of it is put right."""
    search = search_over(dictation)
    state = search.init_state(1)
    assert hear(search, state, 1, 2, 7).tokens == (1, 2, 7)
    assert hear(search, state, 3, 4, replaced=1).tokens == (1, 2, 3, 4)
    assert int(state.decoder.audio.lengths[0]) == 4


def test_what_will_not_be_looked_at_again_is_settled_at_once() -> None:
    search = search_over(dictation, unsettled=2)
    state = search.init_state(1)
    assert hear(search, state, 1, 2, 3, 4, 5).stable == 3
    assert hear(search, state, 6).stable == 4
    assert hear(search, state, 0).stable == 4
