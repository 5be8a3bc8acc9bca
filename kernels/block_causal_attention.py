"""Attention of a whole window as a stream computes it, block by block: the encoder's pass while training.

A stream encodes each block several times: first as the newest, when nothing is known of what follows, and then
together with each of the blocks behind it, until with the last of those it settles. So a window of T frames is
V T positions: its frames as they settle, then as they look one step before that, and so on to how they look at first.
A position sees what its own step of the stream computes, and what has settled by then.
"""

from itertools import pairwise

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


def block_causal_mask(block: Tensor, views: int) -> Tensor:
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
    step, cuts = steps_of(block, views), _cuts(block, views)
    m = len(cuts) - 1  # ranges of steps
    # Frames [low, high) of each view are what the steps of each range compute.
    edges = [[_edge(block, cut - back) for cut in cuts] for back in reversed(range(views))]
    spans = [span for own in edges for span in pairwise(own)]
    sizes = [high - low for low, high in spans]
    # Split once: the gradient of a split is one concatenation, that of a slice as large as what it is of.
    queries, keys, values = (x.split(sizes, dim=2) for x in (q, k, v))
    heads = [q] * len(sizes)
    for i in range(
        m
    ):  # every m-th part is of this range, one for each view; what has settled before are the first
        rows = torch.cat([torch.arange(*span) + n * view for view, span in enumerate(spans[i::m])])
        seen = torch.cat([torch.arange(edges[0][i]), rows])
        asking, asked = step[rows][:, None], step[seen][None, :]
        found = masked_attention(
            torch.cat(queries[i::m], 2),
            torch.cat([*keys[:i], *keys[i::m]], 2),
            torch.cat([*values[:i], *values[i::m]], 2),
            torch.where(seen[None, :] < n, asked <= asking, asked == asking),
        )
        heads[i::m] = found.split(sizes[i::m], dim=2)
    return torch.cat(heads, dim=2)


def _cuts(block: Tensor, views: int) -> list[int]:
    """Steps of a stream at which ranges of them end and begin, each with some SEGMENT frames of new blocks."""
    cuts, end = [0], int(block[-1]) + views
    while cuts[-1] < end:
        begin = _edge(block, cuts[-1])
        newest = block[begin : begin + SEGMENT]
        cuts.append(
            int(newest[-1]) + 1 if len(newest) else end
        )  # at last nothing is new, and what is left settles
    return cuts


def _edge(block: Tensor, step: int) -> int:
    """The first frame that belongs to block `step` or a later one."""
    return int(torch.searchsorted(block, step))
