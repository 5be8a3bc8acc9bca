"""Attention of a whole window as a stream computes it, block by block: the encoder's pass while training.

A stream encodes each block twice: first as the newest, when nothing is known of what follows (provisional), then
once more together with the block behind it (settled). So a window of T frames is 2 T positions, settled ones first:
a settled position of block b sees the settled blocks up to b and the provisional block b + 1; a provisional one of
block b sees the settled blocks before b and its own provisional block.
"""

import torch
from torch import Tensor

from kernels.masked_attention import masked_attention, masked_attention_reference

#: Frames whose scores are computed at once: smaller skips more of the mask, larger feeds cores better.
SEGMENT = 192


def block_causal_mask(block: Tensor) -> Tensor:
    """(2 T, 2 T) bool, True where attention is allowed.

    Args:
        block: (T,) int64, not decreasing: the block of each frame.
    """
    step = torch.cat([block + 1, block])  # the step of the stream that computes each position
    settled = torch.arange(2 * len(block), device=block.device) < len(block)
    return torch.where(settled[None, :], step[None, :] <= step[:, None], step[None, :] == step[:, None])


def block_causal_attention_reference(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
    """The truth in plain torch; shapes as `block_causal_attention`."""
    return masked_attention_reference(q, k, v, block_causal_mask(block))


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
    """Attention over settled and provisional positions; differentiable.

    Args:
        q, k, v: (B, H, 2 T, D), the T settled positions before the T provisional ones.
        block: (T,) int64, not decreasing: the block of each frame.

    Returns:
        (B, H, 2 T, D)
    """
    assert q.dim() == 4 and q.shape == k.shape == v.shape and q.shape[2] == 2 * len(block)
    if q.is_cuda:
        from kernels import triton_block_causal

        return triton_block_causal.attention(q, k, v, block)
    n, step = len(block), torch.cat([block + 1, block])
    settled, provisional = [], []
    begin = known = 0  # provisional positions from `begin` on and settled ones from `known` on are to do
    while known < n:
        end = _block_end(block, begin + SEGMENT) if begin < n else n
        # The steps that compute the provisional blocks of [begin, end) also settle the blocks before them.
        settle = int(torch.searchsorted(block, block[end - 1])) if begin < n else n
        rows = torch.cat([torch.arange(known, settle), torch.arange(n + begin, n + end)])
        keys = torch.cat([torch.arange(settle), torch.arange(n + begin, n + end)])
        asking, asked = step[rows][:, None], step[keys][None, :]
        allowed = torch.where(keys[None, :] < n, asked <= asking, asked == asking)
        heads = masked_attention(
            torch.cat([q[:, :, known:settle], q[:, :, n + begin : n + end]], 2),
            torch.cat([k[:, :, :settle], k[:, :, n + begin : n + end]], 2),
            torch.cat([v[:, :, :settle], v[:, :, n + begin : n + end]], 2),
            allowed,
        )
        settled.append(heads[:, :, : settle - known])
        provisional.append(heads[:, :, settle - known :])
        begin, known = end, settle
    return torch.cat([*settled, *provisional], dim=2)


def _block_end(block: Tensor, near: int) -> int:
    """The end of the block that holds position `near` - 1."""
    return int(torch.searchsorted(block, block[min(near, len(block)) - 1], right=True))
