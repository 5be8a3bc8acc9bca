"""A linear layer of 8-bit weights and 7-bit inputs, for CPUs with AVX2 that do not multiply 8-bit integers natively.

There two products of bytes are added in 16 bits (vpmaddubsw), which 8-bit inputs would overflow and 7-bit ones do
not. Else as kernels/int8_linear.py: weights symmetric per output channel, inputs symmetric per row, and sums exact
in int32, so that a row comes out bit for bit the same whoever shares the batch. FBGEMM multiplies.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.half_linear import fbgemm
from kernels.int8_linear import LEAST, quantise_weight

_STEPS = 63  # on either side of zero
_ZERO = 64  # where zero lies in uint8: all inputs are below 128


def pack(weight: Tensor) -> Any:
    """(N, K) of any floating type, quantised and laid out for `int7_linear`."""
    steps, scales = quantise_weight(weight)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    quantised = torch._make_per_channel_quantized_tensor(steps, scales.double(), zeros, 0)
    with fbgemm():
        return torch.ops.quantized.linear_prepack(quantised, None)


def int7_linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The truth in plain torch; weight (N, K) in floating point."""
    steps, scales = quantise_weight(weight)
    peaks = x.float().abs().amax(-1, keepdim=True).clamp_min(LEAST)
    rows = (x.float() * (_STEPS / peaks) + _ZERO).round() - _ZERO
    return (rows.double() @ steps.double().T).float() * (scales / _STEPS) * peaks


def int7_linear(x: Tensor, weight: Any) -> Tensor:
    """x (..., K) -> (..., N) float32; weight of `pack`."""
    rows = x.flatten(0, -2).float()
    peaks = rows.abs().amax(1, keepdim=True).clamp_min_(LEAST)
    # Steps of one leave FBGEMM nothing to divide by: between two steps, too, it rounds what the reference rounds.
    y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        rows * (_STEPS / peaks), 1.0, _ZERO, weight
    )
    return y.mul_(peaks / _STEPS).unflatten(0, x.shape[:-1])
