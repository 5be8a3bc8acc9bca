"""Models in the types that serving computes with: 8-bit integers where a CPU is made for them.

Convolutions, norms, attention and positions stay in float32: they are a small part of the work.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from asr.decoder import Decoder
from asr.layers import Attention, Block, CrossBlock
from kernels.int8_linear import int8_linear, pack, supported
from kernels.masked_attention import masked_attention

M = TypeVar("M", bound=nn.Module)


def for_serving(model: M) -> M:
    """A `Whisper`, or one of its halves, ready to serve where it lies; changed in place, not to be trained any more.

    On a GPU in half precision; on a CPU in 8-bit integers where it multiplies them natively, else in bfloat16 where
    it does that (it halves the time of a chunk), else in float32.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        return model.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    if supported():
        return quantise(model)
    return model.to(torch.bfloat16 if _multiplies_bfloat16() else torch.float32)


def _multiplies_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def quantise(model: M) -> M:
    """Puts integers in place of all linear layers, and of the projection onto the vocabulary."""
    for module in list(model.modules()):
        if isinstance(module, CrossBlock):
            module.cross_attn = Int8CrossAttention(module.cross_attn)
        if isinstance(module, Block):
            module.attn = Int8SelfAttention(module.attn)
            first, gelu, second = cast("Sequence[nn.Module]", module.mlp)
            module.mlp = nn.Sequential(Int8Linear(first), gelu, Int8Linear(second))
        if isinstance(module, Decoder):
            module.unembedding = Int8Linear(module.token_embedding)
            module.token_embedding.to(torch.bfloat16)  # looked up only: half the memory
    return model


class Int8Linear(nn.Module):
    """What linear layers over the same input are together, one behind the other; see kernels/int8_linear.py."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        weights = [cast(Tensor, layer.weight).float() for layer in layers]
        biases = [getattr(layer, "bias", None) for layer in layers]
        given = [
            w.new_zeros(len(w)) if b is None else b.float() for w, b in zip(weights, biases, strict=True)
        ]
        self._weight = pack(torch.cat(weights))
        self._bias = torch.cat(given)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) float32"""
        return int8_linear(x, self._weight, self._bias)


class Int8SelfAttention(Attention):
    """The projections of `Attention` where queries, keys and values come from the same input: one product."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.projections = Int8Linear(attention.query, attention.key, attention.value)
        self.out = Int8Linear(attention.out)
        self.attention_dtype = torch.bfloat16 if _multiplies_bfloat16() else torch.float32

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.projections(x).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Everything at once: the second pass, where attention over 30 s is a third of the work."""
        assert source is x
        q, k, v = (heads.to(self.attention_dtype) for heads in self.queries_keys_values(x))
        return self.merge(masked_attention(q, k, v, mask))


class Int8CrossAttention(Attention):
    """The projections of `Attention` where keys and values come from elsewhere."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.query = Int8Linear(attention.query)
        self.key_value = Int8Linear(attention.key, attention.value)
        self.out = Int8Linear(attention.out)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.key_value(x).chunk(2, dim=-1)
        return self.split(k), self.split(v)
