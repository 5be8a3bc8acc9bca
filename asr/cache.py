"""Keys and values of attention, preallocated: one row per stream, one length per row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """Rows of different lengths side by side; what lies beyond a row's length is never read.

    `write` puts new entries behind the row's length, layer by layer; `advance` makes them count. So a
    forward pass may write more than it keeps (padding, rejected tokens) at no cost.
    """

    k: Tensor  # (L, S, H, T, D)
    v: Tensor  # (L, S, H, T, D)
    lengths: Tensor  # (S,) int64 on the host

    @classmethod
    def allocate(
        cls, layers: int, rows: int, heads: int, capacity: int, width: int, like: Tensor
    ) -> "KVCache":
        """Empty rows on the device of `like`, in its type; on a CPU always in float32.

        One query against bfloat16 keys takes a CPU five to seven times as long as against float32 ones.
        """
        shape = (layers, rows, heads, capacity, width)
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        k, v = like.new_zeros(shape, dtype=dtype), like.new_zeros(shape, dtype=dtype)
        return cls(k, v, torch.zeros(rows, dtype=torch.int64))

    @property
    def capacity(self) -> int:
        return self.k.shape[3]

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Puts k, v (B, H, t, D) behind the current length of each of `rows` (B,)."""
        start = self.lengths[rows]
        assert int(start.max()) + k.shape[2] <= self.capacity, f"row {int(rows[start.argmax()])} is full"
        at = (rows[:, None], slice(None), start[:, None] + torch.arange(k.shape[2]))
        self.k[layer][at] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][at] = v.transpose(1, 2).to(self.v.dtype)

    def advance(self, rows: Tensor, n: Tensor | int) -> None:
        """Makes the `n` newest written entries of each row count."""
        self.lengths[rows] += n

    def rewind(self, rows: Tensor, n: Tensor | int) -> None:
        """Forgets the `n` newest entries of each row: equal to never having appended them."""
        self.lengths[rows] -= n
        assert bool((self.lengths[rows] >= 0).all())

    def free(self, rows: Tensor) -> None:
        """Empties `rows` for another stream."""
        self.lengths[rows] = 0

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Makes rows `target` (B,) equal to rows `source` (B,), copying no more than their length."""
        for src, dst in zip(source.tolist(), target.tolist(), strict=True):
            n = int(self.lengths[src])
            if src != dst:
                self.k[:, dst, :, :n] = self.k[:, src, :, :n]
                self.v[:, dst, :, :n] = self.v[:, src, :, :n]
                self.lengths[dst] = n
