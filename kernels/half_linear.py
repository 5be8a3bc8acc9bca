"""A linear layer whose weights are in half precision and whose inputs are not, for CPUs that multiply float32 alone.

Weights are laid out once and take half the memory to read, which is what a product of few rows waits for; they are
widened in registers (F16C), and multiplied and added in float32. FBGEMM multiplies (Khudia et al., 2021,
arXiv 2101.05615).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUP = 6  # rows that FBGEMM multiplies at once
_LEAST = 3  # rows of the last group: of one and two the sums are added in another order


@dataclass(frozen=True)
class HalfWeight:
    """A weight (N, K) and its bias (N,) as the operation wants them."""

    packed: Any  # opaque, FBGEMM's own layout
    outputs: int  # N


def supported() -> bool:
    """Whether this CPU has AVX2 and nothing wider: with AVX512 nobody has measured it."""
    widest = torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_supported()
    return widest and "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def fbgemm() -> Iterator[None]:
    """Weights that are packed within are FBGEMM's; on some machines torch would choose oneDNN."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def pack(weight: Tensor, bias: Tensor | None = None) -> HalfWeight:
    """(N, K) and (N,) float32, rounded to half precision (the bias is not) and laid out for `half_linear`."""
    with fbgemm():
        packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().contiguous(), bias)
    return HalfWeight(packed, len(weight))


def half_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The truth in plain torch; weight (N, K) in single precision."""
    return F.linear(x, weight.half().float(), bias)


def half_linear(x: Tensor, weight: HalfWeight) -> Tensor:
    """x (..., K) float32 -> (..., N) float32; a row comes out bit for bit the same whoever shares the batch."""
    rows = x.flatten(0, -2)
    n = len(rows)
    if not n:
        return x.new_zeros(*x.shape[:-1], weight.outputs)
    if 0 < n % _GROUP < _LEAST:
        rows = F.pad(rows, (0, 0, 0, _LEAST - n % _GROUP))
    return torch.ops.quantized.linear_dynamic_fp16(rows, weight.packed)[:n].unflatten(0, x.shape[:-1])
