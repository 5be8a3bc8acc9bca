"""The cache against lists: whatever is done to it, each row holds what a plain list would."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor

from asr.cache import KVCache

LAYERS, ROWS, HEADS, CAPACITY, WIDTH = 2, 3, 2, 8, 4
rows = st.integers(0, ROWS - 1)


def cache_of_nan() -> KVCache:
    cache = KVCache.allocate(LAYERS, ROWS, HEADS, CAPACITY, WIDTH, like=torch.empty(0))
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    return cache


def entry(number: int) -> Tensor:
    """(H, D), another one for every number."""
    return torch.arange(HEADS * WIDTH).view(HEADS, WIDTH) / 10 + number


class CacheBesideLists(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of_nan()
        self.lists: list[list[int]] = [[] for _ in range(ROWS)]
        self.next_number = 1

    def write(self, which: list[int], n: int) -> list[list[int]]:
        """Writes n new entries for every row, layer l holding 1000 l more; returns their numbers."""
        numbers = [[self.next_number + i * n + t for t in range(n)] for i in range(len(which))]
        self.next_number += n * len(which)
        for layer in range(LAYERS):
            k = torch.stack([torch.stack([entry(1000 * layer + m) for m in row], dim=1) for row in numbers])
            self.cache.write(layer, torch.tensor(which), k, -k)
        return numbers

    def room(self, which: list[int]) -> int:
        return min(CAPACITY - len(self.lists[row]) for row in which)

    @rule(which=st.lists(rows, min_size=1, unique=True), n=st.integers(1, 3), data=st.data())
    def append(self, which: list[int], n: int, data: st.DataObject) -> None:
        """Some of what was written is kept, as after padding."""
        if n > self.room(which):
            return
        numbers = self.write(which, n)
        kept = [data.draw(st.integers(0, n)) for _ in which]
        self.cache.advance(torch.tensor(which), torch.tensor(kept))
        for row, new, n_kept in zip(which, numbers, kept, strict=True):
            self.lists[row] += new[:n_kept]

    @rule(row=rows, data=st.data())
    def rewind(self, row: int, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.lists[row])))
        self.cache.rewind(torch.tensor([row]), n)
        del self.lists[row][len(self.lists[row]) - n :]

    @rule(row=rows)
    def free(self, row: int) -> None:
        self.cache.free(torch.tensor([row]))
        self.lists[row] = []

    @rule(source=rows, copy=rows)
    def copy(self, source: int, copy: int) -> None:
        self.cache.copy(torch.tensor([source]), torch.tensor([copy]))
        self.lists[copy] = list(self.lists[source])

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        for row, numbers in enumerate(self.lists):
            assert int(self.cache.lengths[row]) == len(numbers)
            for layer in range(LAYERS):
                held = self.cache.k[layer, row, :, : len(numbers)]
                expected = torch.stack([entry(1000 * layer + m) for m in numbers], 1) if numbers else held
                assert torch.equal(held, expected)
                assert torch.equal(self.cache.v[layer, row, :, : len(numbers)], -held)


CacheBesideLists.TestCase.settings = settings(max_examples=50, stateful_step_count=20)
TestCacheBesideLists = CacheBesideLists.TestCase


def test_a_full_row_takes_nothing_more() -> None:
    cache, row = cache_of_nan(), torch.tensor([1])
    cache.advance(row, CAPACITY - 1)
    two = torch.zeros(1, HEADS, 2, WIDTH)
    with pytest.raises(AssertionError, match="row 1"):
        cache.write(0, row, two, two)


def test_nothing_is_rewound_that_was_not_there() -> None:
    cache = cache_of_nan()
    cache.advance(torch.tensor([0]), 2)
    with pytest.raises(AssertionError):
        cache.rewind(torch.tensor([0]), 3)
