"""Attention where every frame has its own right span: the adaptive-lookahead transducer, in training.

A query sees a window of the past, itself, and as much of the future as its mask lets through. The mask multiplies
the exponentials, w = M e^s / sum M e^s: where it is 0 the weight is 0 and its gradient is still of use, which
adding log M would turn into NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_UNSEEN = 20.0  # nats by which a score that is not seen may stand above those that are


def adaptive_span_attention_reference(q: Tensor, k: Tensor, v: Tensor, right: Tensor, left: int) -> Tensor:
    """The truth in plain torch, one query at a time; shapes as `adaptive_span_attention`."""
    out = torch.empty_like(q)
    n_frames, span = q.shape[2], right.shape[2]
    for i in range(n_frames):
        first, last = max(0, i - left), min(n_frames - 1, i + span)
        scores = (k[:, :, first : last + 1] @ q[:, :, i, :, None]).squeeze(-1).float() * q.shape[-1] ** -0.5
        mask = torch.cat([right.new_ones(len(q), i - first + 1), right[:, i, : last - i]], dim=1)[:, None]
        weights = mask * (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        out[:, :, i] = (weights.to(v.dtype)[:, :, None] @ v[:, :, first : last + 1]).squeeze(2)
    return out


def adaptive_span_attention(q: Tensor, k: Tensor, v: Tensor, right: Tensor, left: int) -> Tensor:
    """Differentiable attention under a right span per frame, soft or hard.

    Args:
        q, k, v: (B, H, T, D)
        right: (B, T, R) in [0, 1]: how much of frame i + 1 + r query i sees; 0 beyond the end of a row.
        left: how many frames before its own a query sees.

    Returns:
        (B, H, T, D), in the type of v; scores and weights are float32.
    """
    assert q.shape == k.shape == v.shape and right.shape[:2] == (q.shape[0], q.shape[2])
    if q.is_cuda:
        from kernels import triton_adaptive_span

        return triton_adaptive_span.attention(q, k, v, right, left)
    mask = span_mask(right, left)[:, None]
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    # Relative to the largest score that is seen; what is not seen may be larger, and matters to gradients alone.
    highest = scores.detach().masked_fill(mask == 0, -torch.inf).amax(-1, keepdim=True)
    weights = mask * (scores - highest).clamp(max=LARGEST_UNSEEN).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v


def span_mask(right: Tensor, left: int) -> Tensor:
    """(B, T, R) right masks -> (B, T, T): M[i, j], 1 in the left window, `right` on its diagonals, else 0."""
    n_frames, span = right.shape[1], right.shape[2]
    # Row i of the padded band is [1] * (left + 1) + right[i]; read with a stride one short, it lies diagonally.
    band = F.pad(F.pad(right, (left + 1, 0), value=1.0), (0, n_frames))  # (B, T, left + 1 + R + T)
    width = band.shape[2]
    skewed = band.flatten(1)[:, : n_frames * (width - 1)].unflatten(1, (n_frames, width - 1))
    assert width - 1 >= left + n_frames and span >= 0
    return skewed[:, :, left : left + n_frames]
