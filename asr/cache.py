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
        """Empty rows, in the type and on the device of `like`."""
        shape = (layers, rows, heads, capacity, width)
        return cls(like.new_zeros(shape), like.new_zeros(shape), torch.zeros(rows, dtype=torch.int64))

    @property
    def capacity(self) -> int:
        return self.k.shape[3]

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Puts k, v (B, H, t, D) behind the current length of each of `rows` (B,)."""
        n_new = k.shape[2]
        for i, (row, start) in enumerate(zip(rows.tolist(), self.lengths[rows].tolist(), strict=True)):
            assert start + n_new <= self.capacity, f"row {row}: {start} + {n_new} > {self.capacity}"
            self.k[layer, row, :, start : start + n_new] = k[i]
            self.v[layer, row, :, start : start + n_new] = v[i]

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
