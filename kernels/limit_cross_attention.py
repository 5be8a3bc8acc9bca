"""Attention where every query position has its own limit on the keys: the decoder's step while serving.

Cross-attention: a token sees the audio up to its limit. Self-attention is the same with limits that grow
by one from token to token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def limit_cross_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, limits: Tensor
) -> Tensor:
    """The truth in plain torch; shapes as `limit_cross_attention`."""
    out = torch.zeros_like(q)
    for i, slot in enumerate(slots.tolist()):
        for t, n in enumerate(limits[i].tolist()):
            scores = (k_cache[slot, :, :n] @ q[i, :, t, :, None]).squeeze(-1) * q.shape[-1] ** -0.5
            out[i, :, t] = (scores.softmax(dim=-1)[:, None] @ v_cache[slot, :, :n]).squeeze(1)
    return out


def limit_cross_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, limits: Tensor
) -> Tensor:
    """Each query attends to the first `limit` entries of its row's slot.

    Args:
        q: (B, H, u, D)
        k_cache, v_cache: (S, H, T_max, D)
        slots: (B,) int64
        limits: (B, u) int64; 0 for padding, which stands behind a row's queries.

    Returns:
        (B, H, u, D), in the type of q; computed in the cache's. Padding gives zeros, and on a CPU a row's result is
        bit for bit the same however much of it there is: products of other shapes add in another order.
    """
    assert q.dim() == 4 and k_cache.shape == v_cache.shape and limits.shape == (q.shape[0], q.shape[2])
    if q.is_cuda:
        from kernels import triton_slots

        return triton_slots.attention(q, k_cache, v_cache, slots, limits)
    own, q = q.dtype, q.to(k_cache.dtype)
    out = torch.zeros_like(q)
    for i, (slot, row) in enumerate(zip(slots.tolist(), limits.tolist(), strict=True)):
        row = row[: len(row) - row.count(0)]
        n, u = max(row), len(row)
        mask = None
        if min(row) != n:
            mask = torch.arange(n, device=q.device) < limits[i, :u].to(q.device)[:, None]  # (u, n)
        k, v = k_cache[slot : slot + 1, :, :n], v_cache[slot : slot + 1, :, :n]
        out[i : i + 1, :, :u] = F.scaled_dot_product_attention(q[i : i + 1, :, :u], k, v, attn_mask=mask)
    return out.to(own)
