"""A linear layer in 8-bit integers, for CPUs: rows are scaled one by one, so a row's result is its own.

Weights are symmetric per output channel, inputs symmetric per row and quantised as they come (Dettmers et al., 2022,
arXiv 2208.07339, section 3: "vector-wise"). Sums are exact in int32: unlike a product in bfloat16, a row comes out
bit for bit the same whoever shares the batch. oneDNN multiplies; it wants unsigned inputs, hence the offset.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 127  # on either side of zero
_ZERO = 128  # where zero lies in uint8
LEAST = 1e-12  # keeps rows of zeros out of division
MOST_PADDING = 30  # rows; an encoder's step of 300 ms has 30, a window of 30 s 1500: these need none


@dataclass(frozen=True)
class Int8Weight:
    """A weight (N, K) as the operation wants it."""

    packed: Tensor  # opaque, oneDNN's own layout
    scales: Tensor  # (N,) float32, of one step
    zeros: Tensor  # (N,) int64


def supported() -> bool:
    """Whether this CPU multiplies 8-bit integers natively; elsewhere other types are as fast, and exact."""
    return bool(torch.cpu._is_vnni_supported()) and torch.backends.mkldnn.is_available()


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> (N, K) int8 and the (N,) scales by which they were divided."""
    scales = weight.float().abs().amax(1).clamp_min(LEAST) / _STEPS
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def pack(weight: Tensor) -> Int8Weight:
    """(N, K) of any floating type, quantised and laid out for `int8_linear`."""
    steps, scales = quantise_weight(weight)
    packed = torch.ops.onednn.qlinear_prepack(steps, None)
    return Int8Weight(packed, scales, torch.zeros(len(scales), dtype=torch.int64))


def int8_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The truth in plain torch; weight (N, K) in floating point."""
    steps, scales = quantise_weight(weight)
    peaks = x.float().abs().amax(-1, keepdim=True).clamp_min(LEAST)
    rows = (x.float() * (_STEPS / peaks) + (_ZERO + 0.5)).floor() - _ZERO
    y = (rows.double() @ steps.double().T).float() * (scales / _STEPS) * peaks
    return y if bias is None else y + bias


def int8_linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """x (..., K) -> (..., N) float32; bias (N,) float32."""
    rows = x.flatten(0, -2).float()
    n = len(rows)
    if missing := padded(n) - n:
        rows = F.pad(rows, (0, 0, 0, missing))
    peaks = rows.abs().amax(1, keepdim=True).clamp_min_(LEAST)
    steps = (
        (rows * (_STEPS / peaks)).add_(_ZERO + 0.5).to(torch.uint8)
    )  # cuts off, which rounds: none is negative
    y = torch.ops.onednn.qlinear_pointwise(
        steps, 1 / _STEPS, _ZERO, weight.packed, weight.scales, weight.zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    y = y.mul_(peaks) if bias is None else torch.addcmul(bias, y, peaks, out=y)
    return y[:n].unflatten(0, x.shape[:-1])


def padded(n: int) -> int:
    """`n` rows and the padding behind them: less than a quarter of them, and than MOST_PADDING.

    oneDNN compiles a product for each number of rows that it meets, 1 ms a time, and keeps half a megabyte of each:
    serving would meet new numbers, and grow, for hours.
    """
    step = min(MOST_PADDING, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step
