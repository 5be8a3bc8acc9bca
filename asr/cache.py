"""Keys and values of attention, preallocated: one row per stream, one length per row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.slot_append import slot_append


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

        One query against bfloat16 keys takes a CPU five to seven times as long as against float32 ones. Nothing is
        zeroed: where the system hands out memory when it is first written, rows nobody uses cost nothing.
        """
        shape = (layers, rows, heads, capacity, width)
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        k, v = like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=dtype)
        return cls(k, v, torch.zeros(rows, dtype=torch.int64))

    def with_rows(self, rows: int) -> "KVCache":
        """An empty cache like this one with another number of rows."""
        layers, _, heads, capacity, width = self.k.shape
        return self.allocate(layers, rows, heads, capacity, width, self.k)

    @property
    def capacity(self) -> int:
        return self.k.shape[3]

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Puts k, v (B, H, t, D) behind the current length of each of `rows` (B,)."""
        self.put(layer, rows, self.room(rows, k.shape[2]), k, v)

    def room(self, rows: Tensor, n: int) -> Tensor:
        """(B,) where the next `n` entries of each row go, which has room for them."""
        start = self.lengths[rows]
        assert int(start.max()) + n <= self.capacity, f"row {int(rows[start.argmax()])} is full"
        return start

    def put(self, layer: int, rows: Tensor, start: Tensor, k: Tensor, v: Tensor) -> None:
        """`write` to where `room` said; `rows` and `start` lie on the device, and the host is asked nothing."""
        slot_append(self.k[layer], self.v[layer], rows, start, k, v)

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

    def touch(self, rows: Tensor) -> None:
        """Has the system hand out the memory of `rows`, which are empty, now and not as they get longer."""
        self.k[:, rows] = 0
        self.v[:, rows] = 0

    def copy(self, source: Tensor, target: Tensor, start: Tensor | int = 0) -> None:
        """Makes rows `target` (B,) equal to rows `source` (B,).

        Args:
            start: (B,) or one for all: how many leading entries the two have in common and need no copy.
        """
        starts = torch.as_tensor(start).expand(len(source)).tolist()
        for src, dst, at in zip(source.tolist(), target.tolist(), starts, strict=True):
            n = int(self.lengths[src])
            if src != dst:
                self.k[:, dst, :, at:n] = self.k[:, src, :, at:n]
                self.v[:, dst, :, at:n] = self.v[:, src, :, at:n]
                self.lengths[dst] = n
