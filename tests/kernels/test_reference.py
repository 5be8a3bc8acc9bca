"""Every operation equals its plain reference: odd sizes, rows in any slot, NaN where nothing was written."""

import pytest
import torch
from torch import Tensor

from kernels.cached_chunk_attention import cached_chunk_attention, cached_chunk_attention_reference
from kernels.limit_cross_attention import limit_cross_attention, limit_cross_attention_reference
from kernels.slot_append import slot_append, slot_append_reference

SLOTS, CAPACITY = 5, 37
SHAPES = [(1, 1, 1, 8), (2, 3, 5, 16), (4, 6, 14, 64), (3, 2, 7, 33)]  # B, H, queries, D


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cache(heads: int, width: int, lengths: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Keys and values (S, H, T_max, D); NaN but for the first `lengths[slot]` entries of each slot."""
    k, v = (drawn((SLOTS, heads, CAPACITY, width), seed) for seed in (1, 2))
    for slot in range(SLOTS):
        k[slot, :, lengths.get(slot, 0) :] = torch.nan
        v[slot, :, lengths.get(slot, 0) :] = torch.nan
    return k, v


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_chunk_attention(shape: tuple[int, ...]) -> None:
    n_rows, heads, _, width = shape
    slots, lengths = torch.tensor([3, 0, 4, 1])[:n_rows], torch.tensor([CAPACITY, 1, 20, 9])[:n_rows]
    k, v = cache(heads, width, dict(zip(slots.tolist(), lengths.tolist(), strict=True)))
    out = cached_chunk_attention(drawn(shape), k, v, slots, lengths)
    assert out.shape == shape
    torch.testing.assert_close(out, cached_chunk_attention_reference(drawn(shape), k, v, slots, lengths))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("growing", [False, True])
def test_limit_cross_attention(shape: tuple[int, ...], growing: bool) -> None:
    """One limit for a whole row, as for audio; or one more from query to query, as for text."""
    n_rows, heads, n_queries, width = shape
    slots, limits = torch.tensor([3, 0, 4, 1])[:n_rows], torch.tensor([[23], [1], [20], [9]])[:n_rows]
    limits = (limits + growing * torch.arange(n_queries)).contiguous()
    limits = limits.expand(n_rows, n_queries)
    k, v = cache(heads, width, dict(zip(slots.tolist(), limits.amax(1).tolist(), strict=True)))
    out = limit_cross_attention(drawn(shape), k, v, slots, limits)
    assert out.shape == shape
    torch.testing.assert_close(out, limit_cross_attention_reference(drawn(shape), k, v, slots, limits))


@pytest.mark.parametrize("growing", [False, True])
def test_padding_changes_no_bit(growing: bool) -> None:
    """Of a row's queries, however many stand behind them; it sees nothing itself."""
    k, v = cache(6, 64, {0: 30, 2: 30})
    q, slots = drawn((2, 6, 5, 64)), torch.tensor([2, 0])
    limits = torch.tensor([[9, 9, 0, 0, 0], [20, 20, 20, 20, 20]]) + growing * torch.arange(5)
    limits[0, 2:] = 0
    out = limit_cross_attention(q, k, v, slots, limits)
    alone = limit_cross_attention(q[:1, :, :2], k, v, slots[:1], limits[:1, :2])
    assert torch.equal(out[:1, :, :2], alone) and not out[0, :, 2:].any()
    torch.testing.assert_close(out, limit_cross_attention_reference(q, k, v, slots, limits))


def test_limits_in_any_order() -> None:
    limits = torch.tensor([[5, 1, 9, 9, 2]])
    k, v = cache(2, 16, {2: 9})
    q, slots = drawn((1, 2, 5, 16)), torch.tensor([2])
    torch.testing.assert_close(
        limit_cross_attention(q, k, v, slots, limits), limit_cross_attention_reference(q, k, v, slots, limits)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slot_append(dtype: torch.dtype) -> None:
    """New entries lie behind the old ones in the cache's type, and nothing else has changed."""
    slots, starts = torch.tensor([4, 1]), torch.tensor([0, CAPACITY - 7])
    k, v = drawn((2, 3, 7, 16), 3), drawn((2, 3, 7, 16), 4)
    own, true = ([x.to(dtype) for x in cache(3, 16, {1: 30, 2: 9})] for _ in range(2))
    slot_append(*own, slots, starts, k, v)
    slot_append_reference(*true, slots, starts, k, v)
    for mine, theirs in zip(own, true, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, atol=0, rtol=0)
        assert mine[[4, 1]][:, :, :7].isnan().sum() == 0


def test_references_are_attention() -> None:
    """The truth itself, on an example that can be worked out: two keys, one of them e times as likely."""
    q = torch.ones(1, 1, 1, 1)
    k, v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1), torch.tensor([3.0, 5.0]).view(1, 1, 2, 1)
    odds = torch.tensor([0.0, 1.0]).softmax(0)
    slot = torch.tensor([0])
    expected = float(3 * odds[0] + 5 * odds[1])
    assert cached_chunk_attention_reference(q, k, v, slot, torch.tensor([2])).item() == pytest.approx(
        expected
    )
    assert limit_cross_attention_reference(q, k, v, slot, torch.tensor([[2]])).item() == pytest.approx(
        expected
    )
    assert limit_cross_attention_reference(q, k, v, slot, torch.tensor([[1]])).item() == 3
