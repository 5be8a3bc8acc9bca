"""Attention of a whole window as a stream computes it, block by block: the encoder's pass while training.

A stream encodes each block several times: first as the newest, when nothing is known of what follows, and then
together with each of the blocks behind it, until with the last of those it settles. So a window of T frames is
V T positions: its frames as they settle, then as they look one step before that, and so on to how they look at first.
A position sees what its own step of the stream computes, and what has settled by then.
"""

import torch
from torch import Tensor

from kernels.masked_attention import masked_attention, masked_attention_reference

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
    step = steps_of(block, views)
    heads: list[list[Tensor]] = [[] for _ in range(views)]
    first, last_of_all = 0, int(block[-1]) + views
    while first < last_of_all:
        begin = _edge(block, first)
        last = int(block[min(begin + SEGMENT, n) - 1]) + 1 if begin < n else last_of_all
        # What the steps [first, last) compute: frames [low, high) of each view.
        spans = [(_edge(block, first - back), _edge(block, last - back)) for back in reversed(range(views))]
        rows = torch.cat([torch.arange(low, high) + n * view for view, (low, high) in enumerate(spans)])
        keys = torch.cat([torch.arange(spans[0][0]), rows])
        asking, asked = step[rows][:, None], step[keys][None, :]
        allowed = torch.where(keys[None, :] < n, asked <= asking, asked == asking)
        queries = [q[:, :, n * view + low : n * view + high] for view, (low, high) in enumerate(spans)]
        found = masked_attention(torch.cat(queries, 2), _at(k, n, spans), _at(v, n, spans), allowed)
        for own, part in zip(heads, found.split([high - low for low, high in spans], 2), strict=True):
            own.append(part)
        first = last
    return torch.cat([part for own in heads for part in own], dim=2)


def _at(x: Tensor, n: int, spans: list[tuple[int, int]]) -> Tensor:
    """Of (B, H, V T, D), what has settled up to the end of the first span, and the other spans of their views."""
    settled = x[:, :, : spans[0][1]]
    return torch.cat([settled, *(x[:, :, n * i + a : n * i + b] for i, (a, b) in enumerate(spans) if i)], 2)


def _edge(block: Tensor, step: int) -> int:
    """The first frame that belongs to block `step` or a later one."""
    return int(torch.searchsorted(block, step))
