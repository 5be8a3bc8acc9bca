"""Attention of a whole window as a stream computes it, block by block: the encoder's pass while training.

A stream encodes each block several times: first as the newest, when nothing is known of what follows, and then
together with each of the blocks behind it, until with the last of those it settles. So a window of T frames is
V T positions: its frames as they settle, then as they look one step before that, and so on to how they look at first.
A position sees what its own step of the stream computes, and what has settled by then.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kernels.masked_attention import masked_attention, masked_attention_reference

T = TypeVar("T")

#: Frames of the newest view whose scores are computed at once: fewer skip more of the mask, more feed cores better.
SEGMENT = 192


def steps_of(block: Tensor, views: int) -> Tensor:
    """(V T,) int64: the step of the stream that computes each position.

    Args:
        block: (T,) int64, not decreasing: the block of each frame.
    """
    return torch.cat([block + behind for behind in reversed(range(views))])


def block_causal_mask(block: Tensor, views: int = 2) -> Tensor:
    """(V T, V T) bool, True where attention is allowed; arguments as `steps_of`."""
    step = steps_of(block, views)
    settled = torch.arange(len(step), device=block.device) < len(block)
    return torch.where(settled[None, :], step[None, :] <= step[:, None], step[None, :] == step[:, None])


def block_causal_attention_reference(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
    """The truth in plain torch; shapes as `block_causal_attention`."""
    return masked_attention_reference(q, k, v, block_causal_mask(block, q.shape[2] // len(block)))


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
    """Attention over all views of a window; differentiable.

    Args:
        q, k, v: (B, H, V T, D), the T settled positions first, those of the newest view last. A block is encoded
            V times: it settles with V - 1 blocks behind it.
        block: (T,) int64, not decreasing: the block of each frame.

    Returns:
        (B, H, V T, D)
    """
    n = len(block)
    views, rest = divmod(q.shape[2], n)
    assert q.dim() == 4 and q.shape == k.shape == v.shape and not rest
    if q.is_cuda:
        from kernels import triton_block_causal

        return triton_block_causal.attention(q, k, v, block)
    step, ranges = steps_of(block, views), _step_ranges(block, views)
    # Frames [low, high) of each view are what the steps [first, last) compute.
    spans = [
        [(_edge(block, first - back), _edge(block, last - back)) for first, last in ranges]
        for back in reversed(range(views))
    ]
    # Split once: the gradient of a split is one concatenation, that of a slice as large as what it is of.
    sizes = [high - low for own in spans for low, high in own]
    queries, keys, values = (_nested(x.split(sizes, dim=2), len(ranges)) for x in (q, k, v))
    heads: list[list[Tensor]] = [[] for _ in range(views)]
    for i in range(len(ranges)):
        rows = torch.cat(
            [torch.arange(low, high) + n * view for view, (low, high) in enumerate(_at(spans, i))]
        )
        known = torch.arange(spans[0][i][0])
        seen = torch.cat([known, rows])
        asking, asked = step[rows][:, None], step[seen][None, :]
        allowed = torch.where(seen[None, :] < n, asked <= asking, asked == asking)
        found = masked_attention(
            torch.cat(_at(queries, i), 2),
            torch.cat([*keys[0][:i], *_at(keys, i)], 2),
            torch.cat([*values[0][:i], *_at(values, i)], 2),
            allowed,
        )
        for own, part in zip(heads, found.split([x.shape[2] for x in _at(queries, i)], 2), strict=True):
            own.append(part)
    return torch.cat([part for own in heads for part in own], dim=2)


def _step_ranges(block: Tensor, views: int) -> list[tuple[int, int]]:
    """The steps [first, last) of a stream, as many together as have SEGMENT frames of new blocks."""
    ranges, first, end = [], 0, int(block[-1]) + views
    while first < end:
        begin = _edge(block, first)
        newest = block[begin : begin + SEGMENT]
        last = int(newest[-1]) + 1 if len(newest) else end  # no block is new any more: what is left settles
        ranges.append((first, last))
        first = last
    return ranges


def _edge(block: Tensor, step: int) -> int:
    """The first frame that belongs to block `step` or a later one."""
    return int(torch.searchsorted(block, step))


def _nested(parts: Sequence[T], length: int) -> list[Sequence[T]]:
    return [parts[start : start + length] for start in range(0, len(parts), length)]


def _at(of_views: Sequence[Sequence[T]], i: int) -> list[T]:
    return [own[i] for own in of_views]
