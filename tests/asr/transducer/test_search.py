"""Greedy and beam search over a transducer: against references that take every frame and every alignment apart."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.biasing import Hotwords
from asr.transducer import search as search_module
from asr.transducer.hypotheses import TransducerHypothesis
from asr.transducer.search import MOST_PIECES
from tests.asr.transducer.spelling import (
    Model,
    babble,
    begun,
    frame,
    hear,
    noise,
    obedient,
    piece_id,
    pieces_for,
    whimsical,
)

ROW = torch.tensor([0])
LONG = 90  # frames; more than are looked at together
FEW = pieces_for("ab ba a b aab", 5)  # four pieces and the unknown


def assert_same(said: TransducerHypothesis, expected: TransducerHypothesis) -> None:
    """But for the last digits, which depend on what was multiplied together."""
    assert (said.tokens, said.frames, said.at, said.stable) == (
        expected.tokens,
        expected.frames,
        expected.at,
        expected.stable,
    )
    assert said.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert said.score == pytest.approx(expected.score, abs=1e-3)


# -- greedy


def slowly(model: Model, frames: Tensor, heard: Tensor, said: tuple[int, ...] = ()) -> TransducerHypothesis:
    """Greedy search in its plainest form."""
    logprobs, times, at, score = [0.0] * len(said), [0] * len(said), [0] * len(said), 0.0
    for number, own in enumerate(frames):
        for _ in range(MOST_PIECES):
            ways = model.logprobs(own, said)
            best = int(ways.argmax())
            if best == model.blank:
                break
            said = (*said, best)
            score += float(ways[best])
            logprobs.append(float(ways[best] - ways[:-1].logsumexp(-1)))
            times.append(2 * (int(heard[number]) + 1))
            at.append(number)
        score += float(model.logprobs(own, said)[model.blank])
    return TransducerHypothesis(said, tuple(logprobs), tuple(times), len(said), tuple(at), score)


@pytest.mark.parametrize(("seed", "wait"), [(0, 6.0), (1, 6.0), (2, -2.0)])
def test_greedy_search_is_the_plain_one(seed: int, wait: float) -> None:
    """On ragged rows, one of which begins in mid-text, and where frames are full of pieces."""
    model = whimsical(seed, wait=wait)
    search, lengths = model.search(), [LONG, 0, 37]
    state, rows = search.init_state(4), torch.tensor([3, 0, 2])
    begins = [[], [4, 5], [6]]
    search.reset(state, rows, begins)
    frames = torch.stack([noise(LONG, seed + row) for row in range(3)])
    heard = torch.arange(LONG).expand(3, -1) + 3
    said = search.step(frames, torch.tensor(lengths), heard, state, rows)
    for row, n in enumerate(lengths):
        expected = slowly(model, frames[row, :n], heard[row], tuple(begins[row]))
        assert isinstance(said[row], TransducerHypothesis)
        assert_same(said[row], expected)
    most = max(said[0].at.count(number) for number in range(LONG))
    assert len(said[0].tokens) > 20
    assert wait > 0 or most == MOST_PIECES


def test_a_beam_of_one_mind_is_greedy_search() -> None:
    """Where all is clear a beam says the same, at the same times, with the same scores."""
    model = obedient()
    frames = babble(model, LONG, 0, rivals=False)
    greedy, beam = (hear(model.search(), begun(model.search(), width), frames) for width in (1, 4))
    assert len(greedy.tokens) > 10
    assert beam.tokens == greedy.tokens
    assert beam.at == greedy.at
    assert beam.frames == greedy.frames
    assert beam.logprobs == pytest.approx(greedy.logprobs, abs=1e-4)
    assert beam.score == pytest.approx(greedy.score, abs=0.1)  # greedy search knows one alignment


def test_the_unknown_is_never_said() -> None:
    model = obedient()
    frames = torch.stack([frame(model) for _ in range(3)])
    frames[1, model.pieces.unspoken] = 40.0
    frames[2, piece_id(model, "_the")] = 9.0
    for width in (1, 4):
        said = hear(model.search(), begun(model.search(), width), frames)
        assert said.tokens == (piece_id(model, "_the"),)


# -- beams


def total(model: Model, frames: Tensor, text: tuple[int, ...], steps: int) -> float:
    """The log-probability of a text over all alignments with up to `steps` pieces at a frame."""
    alignments = []
    for counts in product(range(steps + 1), repeat=len(frames)):
        if sum(counts) == len(text):
            n, score = 0, 0.0
            for own, count in zip(frames, counts, strict=True):
                for _ in range(count):
                    score += float(model.logprobs(own, text[:n])[text[n]])
                    n += 1
                score += float(model.logprobs(own, text[:n])[model.blank])
            alignments.append(score)
    return float(np.logaddexp.reduce(alignments))


@pytest.mark.parametrize(("seed", "n_frames", "steps"), [(0, 3, 1), (1, 2, 2)])
def test_a_wide_beam_sums_over_all_alignments_of_all_texts(seed: int, n_frames: int, steps: int) -> None:
    model, frames = whimsical(seed, pieces=FEW), noise(n_frames, seed)
    search = model.search(gamma=1e3, margin=1e3, steps=steps)
    state = begun(search, 400)
    best = hear(search, state, frames)
    sayable = [token for token in range(len(FEW)) if token not in FEW.unspoken]
    longest = n_frames * steps
    texts = {
        text: total(model, frames, text, steps)
        for n in range(longest + 1)
        for text in product(sayable, repeat=n)
    }
    found = {said.tokens: said.score for said in search.n_best(state, 0, 1000)}
    assert found.keys() == texts.keys()
    assert [found[text] for text in texts] == pytest.approx(list(texts.values()), abs=1e-3)
    assert best.tokens == max(texts, key=lambda text: texts[text])
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len({said.tokens[:1] for said in search.n_best(state, 0, 1000)}) == 5
    assert best.stable == 0


def test_a_beam_finds_what_greedy_search_misses() -> None:
    """The likelier beginning is one behind which nothing fits well."""
    model = obedient()
    the, an, n = (piece_id(model, piece) for piece in ("_the", "_a", "n"))
    model.joiner.of_contexts.weight[n, the] = -0.6
    frames = torch.stack([frame(model, _the=9, _a=8), frame(model, n=12, at=6, ad=6, am=6, it=6, ap=6)])
    greedy, beam = (hear(model.search(), begun(model.search(), width), frames) for width in (1, 2))
    assert greedy.tokens[0] == the
    assert beam.tokens == (an, n)
    assert beam.score > greedy.score


@pytest.mark.parametrize(
    ("behind", "gamma", "margin", "n"), [(2.0, 2.3, 6.0, 2), (2.5, 2.3, 6.0, 1), (2.0, 2.3, 1.9, 1)]
)
def test_ways_far_behind_the_best_are_not_followed(
    behind: float, gamma: float, margin: float, n: int
) -> None:
    model = obedient()
    search = model.search(gamma=gamma, margin=margin)
    state = begun(search, 4)
    said = hear(search, state, torch.stack([frame(model, _the=12, _a=12 - behind), frame(model)]))
    assert said.tokens == (piece_id(model, "_the"),)
    assert said.stable == (1 if n == 1 else 0)
    assert len(search.n_best(state, 0, 9)) == n


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_what_is_stable_stays_and_is_what_all_agree_on(width: int) -> None:
    for seed in range(3):
        model = obedient()
        search = model.search()
        state, before, n_open = begun(search, width), (), 0
        for own in babble(model, 60, seed).split(3):
            said = hear(search, state, own)
            assert said.tokens[: len(before)] == before
            assert said.stable >= len(before)
            texts = [(*state.rows[0].tokens, *branch.tokens) for branch in state.rows[0].live]
            assert 1 <= len(set(texts)) == len(texts) <= width
            assert {text[: said.stable] for text in texts} == {said.tokens[: said.stable]}
            before, n_open = said.tokens[: said.stable], n_open + len(said.tokens) - said.stable
        assert len(before) > 10
        assert (n_open > 0) == (width > 1)


CLEAR = ("n", "_s", "at", "_o", "n", "_m", "at")


def test_old_doubts_do_not_keep_the_beam_busy() -> None:
    """ "a" or "the" is an open question; what follows is not, and is said about either."""
    model = obedient()
    question = frame(model, _the=9, _a=8)
    frames = torch.stack([question, *(frame(model, **{piece: 14.0}) for piece in CLEAR)])
    search = model.search()
    state = begun(search, 4)
    assert hear(search, state, frames[:3]).stable == 0
    said = hear(search, state, frames[3:])
    assert said.stable == len(said.tokens) == 1 + len(CLEAR)
    first, second = search.n_best(state, 0, 2)
    assert model.pieces.text(list(first.tokens)) == "then sat on mat"
    assert model.pieces.text(list(second.tokens)) == "an sat on mat"
    assert first == said
    assert (second.at, second.frames, second.stable) == (first.at, first.frames, 0)
    assert second.logprobs[1:] == pytest.approx(first.logprobs[1:], abs=1e-4)
    assert first.score - second.score == pytest.approx(1.0, abs=0.05)
    for one in (first, second):
        assert one.score == pytest.approx(total(model, frames, one.tokens, 1), abs=0.05)


def test_several_old_doubts_make_texts_of_every_combination() -> None:
    model = obedient()
    clear = [frame(model, **{piece: 14.0}) for piece in CLEAR]
    frames = torch.stack([frame(model, _the=9, _a=8), *clear, frame(model, _the=9, _a=7.5), *clear])
    search = model.search()
    state = begun(search, 4)
    hear(search, state, frames)
    likeliest = search.n_best(state, 0, 4)
    words = [model.pieces.text(list(said.tokens)).split() for said in likeliest]
    assert [(text[0], text[4]) for text in words] == [
        ("then", "then"),
        ("an", "then"),
        ("then", "an"),
        ("an", "an"),
    ]
    losses = [likeliest[0].score - said.score for said in likeliest]
    assert losses == pytest.approx([0.0, 1.0, 1.5, 2.5], abs=0.1)
    many = search.n_best(state, 0, 100)
    assert len(many) == len({said.tokens for said in many})
    assert [said.score for said in many] == sorted((said.score for said in many), reverse=True)


# -- streams


def widths_and_cuts() -> list[tuple[int, int]]:
    return [(width, seed) for width in (1, 2, 5) for seed in range(2)]


@pytest.mark.parametrize(("width", "seed"), widths_and_cuts())
def test_cutting_changes_nothing(width: int, seed: int) -> None:
    model = obedient()
    frames = babble(model, LONG, seed)
    heard = torch.arange(LONG) + torch.arange(LONG) % 4
    search = model.search()
    whole, parts, singles = (begun(search, width) for _ in range(3))
    expected = hear(search, whole, frames, heard=heard)
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, LONG + 1, 12)).tolist()
    for state, edges in ((parts, [0, *cuts, LONG]), (singles, range(LONG + 1))):
        for first, behind in pairwise(edges):
            said = hear(search, state, frames[first:behind], heard=heard[first:behind])
        assert_same(said, expected)
        for one, other in zip(search.n_best(state, 0, 8), search.n_best(whole, 0, 8), strict=True):
            assert one.tokens == other.tokens
    assert len(expected.tokens) > 15


def test_neighbours_of_every_width_do_not_matter() -> None:
    """Rows step raggedly, in any order, beside padding that is no number, and equal each alone."""
    model = obedient()
    search, widths = model.search(), [1, 4, 2, 1]
    state, rows = search.init_state(6), torch.tensor([4, 0, 5, 2])
    search.reset(state, rows, widths=widths)
    alone = [begun(model.search(), width) for width in widths]
    rng = np.random.default_rng(0)
    for step in range(12):
        counts = rng.integers(0, 6, len(rows))
        frames = torch.full((len(rows), 7, model.blank + 1), torch.nan)
        heard = torch.full((len(rows), 7), -(10**9))
        for i, n in enumerate(counts):
            frames[i, :n] = babble(model, int(n), 10 * step + i)
            heard[i, :n] = step
        said = search.step(frames, torch.from_numpy(counts), heard, state, rows)
        for i, n in enumerate(counts):
            own = hear(model.search(), alone[i], frames[i, :n], heard=heard[i, :n])
            assert_same(said[i], own)
    assert min(len(one.tokens) for one in said) > 3
    assert state.rows[1].tokens == state.rows[3].tokens == []


@pytest.mark.parametrize("width", [1, 4])
def test_a_reset_row_is_a_fresh_one(width: int) -> None:
    model = obedient()
    search = model.search()
    used, fresh = (begun(search, width) for _ in range(2))
    hear(search, used, babble(model, 50, 1))
    search.settle(used, ROW)
    search.reset(used, ROW, widths=[width])
    assert_same(hear(search, used, babble(model, 50, 2)), hear(search, fresh, babble(model, 50, 2)))
    search.reset(used, ROW)
    assert used.rows[0].width == 1


@pytest.mark.parametrize("width", [1, 4])
def test_settled_pieces_begin_a_row_and_are_its_context(width: int) -> None:
    model = whimsical(7)
    search = model.search()
    with_text, without = begun(search, width, tokens=[[5, 9, 3]]), begun(search, width)
    assert search.hypotheses(with_text, ROW)[0].tokens == (5, 9, 3)
    said, other = hear(search, with_text, noise(30, 0)), hear(search, without, noise(30, 0))
    assert said.tokens[:3] == (5, 9, 3)
    assert said.stable >= 3
    assert said.tokens[3:] != other.tokens
    if width == 1:
        assert_same(said, slowly(model, noise(30, 0), torch.arange(30), (5, 9, 3)))


def test_settling_ends_the_doubt() -> None:
    model = obedient()
    search = model.search()
    state = begun(search, 4)
    question = frame(model, _the=9, _a=8)[None]
    assert hear(search, state, question).stable == 0
    (settled,) = search.settle(state, ROW)
    assert (settled.tokens, settled.stable) == ((piece_id(model, "_the"),), 1)
    said = hear(search, state, frame(model, n=12.0)[None])
    assert model.pieces.text(list(said.tokens)) == "then"
    assert said.at == (0, 1)
    assert len(state.rows[0].live) >= 1


def test_what_is_remembered_of_contexts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = obedient()
    free = hear(model.search(), begun(model.search(), 4), babble(model, 60, 0))
    monkeypatch.setattr(search_module, "REMEMBERED", 6)
    search = model.search()
    bound = hear(search, begun(search, 4), babble(model, 60, 0))
    assert_same(bound, free)
    assert len(search._contexts._known) <= 12


# -- hotwords


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(("behind", "says"), [(1.0, "mat"), (5.0, "hat")])
def test_a_hotword_wins_where_it_is_likely(width: int, behind: float, says: str) -> None:
    """Its confidence stays the model's own."""
    model = obedient()
    frames = torch.stack([frame(model, _h=12, _m=12 - behind), frame(model, at=12.0)])
    search = model.search()
    assert model.pieces.encode("mat") == [piece_id(model, "_m"), piece_id(model, "at")]
    plain = hear(search, begun(search, width), frames)
    assert model.pieces.text(list(plain.tokens)) == "hat"
    hotwords = Hotwords(model.pieces, ["Mat"], boost=2.0)
    said = hear(search, begun(search, width, hotwords=[hotwords]), frames)
    assert model.pieces.text(list(said.tokens)) == says
    chances = torch.tensor([12.0, 12 - behind]).log_softmax(0).tolist()
    assert said.logprobs[0] == pytest.approx(chances[says == "mat"], abs=1e-3)


def test_an_unfinished_phrase_gives_back_what_it_earned() -> None:
    """ "m" wins with its bonus, but no "at" follows it."""
    model = obedient()
    frames = torch.stack([frame(model, _m=8.0, _h=9.0), frame(model, ad=14.0)])
    search = model.search()
    hotwords = Hotwords(model.pieces, ["mat"], boost=2.0)
    for how in ({}, {"hotwords": [hotwords]}):
        said = hear(search, begun(search, 4, **how), frames)
        assert model.pieces.text(list(said.tokens)) == "had"
    greedy = hear(search, begun(search, 1, hotwords=[hotwords]), frames)
    assert model.pieces.text(list(greedy.tokens)) == "mad"
