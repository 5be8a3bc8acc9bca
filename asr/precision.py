"""Models in the types that serving computes with."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from asr.decoder import Decoder
from asr.layers import Block, Linear
from kernels.int8_linear import int8_linear, pack, supported
from kernels.peaks import near_peaks

M = TypeVar("M", bound=nn.Module)
NEAR = 1.0  # logits below the best one; integers are off by a few hundredths


def for_serving(model: M) -> M:
    """A `Whisper`, or one of its halves, ready to serve where it lies; changed in place, not to be trained any more.

    In half precision where the device multiplies it natively (on a CPU it halves the time of a chunk), else in
    float32. On CPUs made for it the product with the vocabulary is one of 8-bit integers: for the few rows of a step
    that takes a quarter of the time. The other layers would gain a tenth, and cost a point of word error rate.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        return model.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    for decoder in model.modules():
        if isinstance(decoder, Decoder) and supported():
            decoder.unembedding = Int8Unembedding(decoder.token_embedding)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not native:
        return model.to(torch.float32)
    lay_out(model.to(torch.bfloat16))
    return model


def lay_out(model: nn.Module) -> None:
    """Fewer and quicker products of the same numbers, on a CPU and in bfloat16; the model cannot be copied then."""
    joined = [module.attn for module in model.modules() if isinstance(module, Block)]
    for attention in joined:
        attention.join()
    idle = {part for attention in joined for part in attention.parts}
    for module in model.modules():
        if isinstance(module, Linear) and module not in idle:
            module.pack()


class Int8Unembedding(nn.Module):
    """The product with an embedding's weights (kernels/int8_linear.py), where it decides made as good as the model's.

    What a search says, and whether it waits, hangs on the best few tokens: theirs are products of floating point.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = embedding
        self._weight = pack(embedding.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) float32"""
        logits = int8_linear(hidden, self._weight)
        rows = logits.view(-1, logits.shape[-1])
        row, token = near_peaks(rows, NEAR)
        exact = hidden.flatten(0, -2)[row].float() * self._embedding.weight[token].float()
        rows[row, token] = exact.sum(1)
        return logits
