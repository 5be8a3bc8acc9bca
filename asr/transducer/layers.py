"""The layers behind the trunk: self-attention with rotary positions, and a scheduler that bounds what it sees."""

import torch
from torch import Tensor

from asr.layers import Block
from asr.transducer.schedule import Scheduler

ROTARY_BASE = 10_000.0


class AdaptiveLayer(Block):
    """Whisper's residual block, positions turned into rotations (Su et al., 2021, arXiv 2104.09864), a scheduler."""

    frequencies: Tensor  # (D / 2,) radians per frame by which pairs turn

    def __init__(self, width: int, heads: int, span: int) -> None:
        super().__init__(width, heads)
        self.scheduler = Scheduler(width, span)
        pairs = torch.arange(0, width // heads, 2) / (width // heads)
        self.register_buffer("frequencies", ROTARY_BASE**-pairs, persistent=False)

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d) frames at positions (B | 1, T) -> queries, keys and values, (B, H, T, D) each."""
        q, k, v = self.attn.queries_keys_values(self.attn_ln(x))
        angles = positions[:, None, :, None] * self.frequencies  # (B | 1, 1, T, D / 2)
        return rotate(q, angles), rotate(k, angles), v

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Frames (B, T, d) and what attention found for them, (B, H, T, D) -> the layer's output."""
        return self.feed(x + self.attn.merge(heads))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the pairs (n, n + D / 2) of (B, H, T, D) by `angles`, so that products depend on distances alone."""
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
