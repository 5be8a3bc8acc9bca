"""Which question is asked with how much audio: training must never show what serving cannot."""

import numpy as np
import pytest
import torch

from adapters.data import Example
from adapters.targets import IGNORED, LAGS, Queries, chunks, collate, plan

PREFIX, EOT = (100, 101), 102
START = len(PREFIX) - 1


class FirstChoice:
    """A generator without whims: no lag, the least number, the given order."""

    def choice(self, lags: list[int], p: list[float]) -> int:
        return lags[0]

    def integers(self, low: int, high: int) -> int:
        return low

    def permutation(self, items: list[int]) -> np.ndarray:
        return np.array(items)


def example(seconds: float, *ends: float) -> Example:
    """A token per end, numbered from 1."""
    samples = np.zeros(int(seconds * 16_000), np.float32)
    return Example(samples, tuple(range(1, len(ends) + 1)), ends, transcribed=True)


def random_plan(seed: int, prefix: tuple[int, ...] = PREFIX) -> tuple[Queries, Example, int]:
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(0.3, 8)
    ends = np.sort(rng.uniform(0.1, seconds, rng.integers(0, 12)))
    spoken, tau = example(seconds, *ends.tolist()), int(rng.choice([5, 15, 50]))
    return plan(spoken, prefix, EOT, tau, 0.1, cuts=20, rng=rng), spoken, tau


def test_a_plan_worked_out_by_hand() -> None:
    """Chunks of 0.2 s, words that are due at 0.4 s and at 0.6 s, and a wait at every chunk."""
    queries = plan(example(1.0, 0.25, 0.45), PREFIX, EOT, 10, 0.1, cuts=9, rng=FirstChoice())
    assert queries == Queries(
        #       text            waits at chunk 1, 2, 3, 4, 5
        tokens=[100, 101, 1, 2, 101, 1, 2, 2, 2],
        positions=[0, 1, 2, 3, 1, 2, 3, 3, 3],
        seen=[1, 2, 3, 3, 1, 2, 3, 4, 5],
        targets=[IGNORED, 1, 2, EOT, EOT, EOT, EOT, EOT, EOT],
        n_text=4,
    )


def test_masks_worked_out_by_hand() -> None:
    short = Queries([100, 101, 102, 101], [0, 1, 2, 1], [1, 1, 2, 3], [IGNORED, 5, EOT, EOT], n_text=3)
    batch = collate(
        [short, Queries([100], [0], [2], [EOT], n_text=1)], block=torch.tensor([0, 0, 1, 2]), views=2
    )
    assert batch.self_mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert batch.cross_mask[0, 0].int().tolist() == [
        # settled    provisional
        [0, 0, 0, 0, 1, 1, 0, 0],  # the first chunk is all provisional
        [0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 1],
    ]
    assert batch.self_mask[1, 0, 1:].int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert batch.targets[1].tolist() == [EOT, IGNORED, IGNORED, IGNORED]
    assert bool(batch.cross_mask.any(-1).all())  # attention to nothing would be NaN


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("seed", range(40))
def test_no_query_sees_beyond_its_own_audio(seed: int, views: int) -> None:
    """Neither by itself nor through a token that it attends to; and every block it has heard, it sees once."""
    queries, *_ = random_plan(seed)
    block = torch.arange(200)
    batch = collate([queries], block, views)
    seen = torch.tensor(queries.seen)
    settled, *provisional = batch.cross_mask[0, 0].split(len(block), dim=-1)
    assert torch.equal(settled.sum(-1), (seen - views + 1).clamp(min=0))
    for behind, view in enumerate(reversed(provisional)):
        heard = seen > behind  # some other block came before the newest `behind` ones
        assert torch.equal(view.sum(-1), heard.long())
        assert torch.equal(view.int().argmax(-1)[heard], seen[heard] - 1 - behind)
    for query, attended in enumerate(batch.self_mask[0, 0]):
        keys = attended.nonzero().flatten()
        assert bool((seen[keys] <= seen[query]).all())
        assert not bool((keys[keys != query] >= queries.n_text).any()), "waits are seen by themselves alone"
        assert len(keys) == queries.positions[query] + 1


@pytest.mark.parametrize("seed", range(40))
def test_a_token_is_asked_for_when_it_is_due_and_not_before(seed: int) -> None:
    queries, spoken, tau = random_plan(seed)
    n_chunks = chunks(spoken.seconds, tau)
    due = [max(1, int(np.ceil(round((end + 0.1) * 50 / tau, 9)))) for end in spoken.ends]
    due = [k for k in due if k <= n_chunks]
    assert queries.targets[START : queries.n_text] == [*spoken.tokens[: len(due)], EOT]
    for k, seen in zip(due, queries.seen[START:], strict=False):
        assert seen in {min(k + lag, n_chunks) for lag in LAGS}
    waits = list(zip(queries.positions, queries.seen, queries.targets, strict=True))[queries.n_text :]
    assert len({seen for _, seen, _ in waits}) == len(waits)
    for position, seen, target in waits:
        assert target == EOT
        assert position == START + sum(k <= seen for k in due)
    assert max(queries.seen) <= n_chunks


def test_words_out_of_order_stay_in_the_order_of_the_text() -> None:
    queries = plan(example(2.0, 1.5, 0.2, 1.9), PREFIX, EOT, 10, 0.0, cuts=0, rng=FirstChoice())
    assert queries.seen[START:4] == [8, 8, 10]


def test_what_says_nothing_waits_everywhere() -> None:
    queries = plan(example(1.0), PREFIX, EOT, 10, 0.1, cuts=9, rng=FirstChoice())
    assert queries.targets == [IGNORED, EOT, *[EOT] * 5]
    assert queries.seen[2:] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("seconds", "tau", "n"), [(0.1, 50, 1), (1.0, 50, 1), (1.01, 50, 2), (0.9, 15, 3), (40.0, 50, 30)]
)
def test_chunks_hold_all_audio_within_a_window(seconds: float, tau: int, n: int) -> None:
    assert chunks(seconds, tau) == n
