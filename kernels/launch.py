"""A kernel and all that it is launched with: what runs and what is compiled without a GPU are the same."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel; tensors on the meta device do where it is only compiled."""

    kernel: Any  # a function under triton.jit
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # by the names of the kernel
    warps: int = 4
    stages: int = 2

    def run(self) -> None:
        tensors = (value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(
            next(tensors)
        ):  # Triton launches on the current device, whatever it is given
            self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


def rows_first(x: Tensor) -> Tensor:
    """(B, H, T, D) as a projection leaves it: contiguous as (B, T, H, D), so that kernels need no strides."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def new_rows(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Unwritten (B, H, T, D) in the layout of `rows_first`; joining its heads again copies nothing."""
    batch, heads, rows, width = like.shape
    return like.new_empty((batch, rows, heads, width), dtype=dtype).transpose(1, 2)


def tile_of(n: int, least: int = 16) -> int:
    """The power of two that holds `n`; matrix units want 16 at least."""
    return max(least, 1 << (n - 1).bit_length())


def tiles(n: int, size: int) -> int:
    """How many tiles of `size` cover `n`."""
    return -(-n // size)
