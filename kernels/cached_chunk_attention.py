"""Attention of new frames against a slot cache: the encoder's step while serving.

Every row has its own slot and its own length; nothing is gathered or padded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cached_chunk_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, lengths: Tensor
) -> Tensor:
    """The truth in plain torch; shapes as `cached_chunk_attention`."""
    out = torch.empty_like(q)
    for i, (slot, n) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        scores = q[i] @ k_cache[slot, :, :n].transpose(-1, -2) * q.shape[-1] ** -0.5
        out[i] = scores.softmax(dim=-1) @ v_cache[slot, :, :n]
    return out


def cached_chunk_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, lengths: Tensor
) -> Tensor:
    """Each row's new queries attend to all that its slot holds.

    Args:
        q: (B, H, tau, D) queries of the newest frames.
        k_cache, v_cache: (S, H, T_max, D), the new frames already appended.
        slots: (B,) int64, the slot of each row.
        lengths: (B,) int64, valid entries of each slot, the new ones included.

    Returns:
        (B, H, tau, D), in the type of q; computed in the cache's.
    """
    assert q.dim() == 4 and k_cache.shape == v_cache.shape and len(slots) == len(lengths) == len(q)
    if q.is_cuda:
        from kernels import triton_slots

        return triton_slots.attention(q, k_cache, v_cache, slots, lengths[:, None].expand(len(q), q.shape[2]))
    own, q = q.dtype, q.to(k_cache.dtype)
    rows = [
        F.scaled_dot_product_attention(
            q[i : i + 1], k_cache[slot : slot + 1, :, :n], v_cache[slot : slot + 1, :, :n]
        )
        for i, (slot, n) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True))
    ]
    return torch.cat(rows).to(own)
