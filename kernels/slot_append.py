"""New keys and values go behind what each slot of a cache holds: the write before every step while serving."""

import torch
from torch import Tensor

_SINGLE = 4  # entries a row; of more, a copy for each row takes half the time that indexing all at once does


def slot_append_reference(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, starts: Tensor, k: Tensor, v: Tensor
) -> None:
    """The truth in plain torch; shapes as `slot_append`."""
    for i, (slot, start) in enumerate(zip(slots.tolist(), starts.tolist(), strict=True)):
        k_cache[slot, :, start : start + k.shape[2]] = k[i]
        v_cache[slot, :, start : start + v.shape[2]] = v[i]


def slot_append(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, starts: Tensor, k: Tensor, v: Tensor
) -> None:
    """Writes k and v at `starts` of their slots, in the cache's type.

    Args:
        k_cache, v_cache: (S, H, T_max, D), written in place.
        slots: (B,) int64, all different; starts: (B,) int64, start + t <= T_max.
        k, v: (B, H, t, D)
    """
    assert k.dim() == 4 and k.shape == v.shape and k_cache.shape == v_cache.shape
    if k.is_cuda:
        from kernels import triton_slots

        return triton_slots.append(k_cache, v_cache, slots, starts, k, v)
    if k.shape[2] > _SINGLE:
        return slot_append_reference(k_cache, v_cache, slots, starts, k, v)
    at = (slots[:, None], slice(None), starts[:, None] + torch.arange(k.shape[2]))
    k_cache[at] = k.transpose(1, 2).to(k_cache.dtype)
    v_cache[at] = v.transpose(1, 2).to(v_cache.dtype)
    return None
