"""Models in the types that serving computes with."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from asr.decoder import Decoder
from asr.layers import Block, Convolution, Linear
from kernels import half_linear, int7_linear, int8_linear
from kernels.peaks import near_peaks

M = TypeVar("M", bound=nn.Module)
NEAR = 1.0  # logits below the best one; integers are off by a few hundredths


def for_serving(model: M, beside: Decoder | None = None) -> M:
    """A `Whisper`, or one of its halves, ready to serve where it lies; changed in place, not to be trained any more.

    In half precision where the device multiplies it natively (on a CPU it halves the time of a chunk), else in
    float32, on CPUs with AVX2 and no more with weights stored in half precision. On CPUs the product with the
    vocabulary is one of 8-bit integers: for the few rows of a step that takes a quarter of the time. The other layers
    would gain a tenth, and cost a point of word error rate.

    Args:
        beside: a decoder that serves already and has the same vocabulary, which is then held once: no adapter of ours
            changes it, and it is half of a small model.
    """
    device = next(model.parameters()).device
    native = multiplies_bfloat16(device)
    if device.type == "cuda":
        return model.to(torch.bfloat16 if native else torch.float16)
    for decoder in model.modules():
        if isinstance(decoder, Decoder):
            serve_vocabulary(decoder, beside)
    if native:
        model.to(torch.bfloat16)
    if native or half_linear.supported():
        lay_out(model)
    return model


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it does so natively; a CPU that does not emulates it, many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def for_training(device: torch.device) -> torch.autocast:
    """The context that training computes in, over float32 weights: products in bfloat16 where that is native."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))


def serve_vocabulary(decoder: Decoder, beside: Decoder | None) -> None:
    """Lays out the product with the embedding, or takes that of `beside`, embedding and all.

    Beside a product of integers few of the embedding's numbers are read, so they are kept in half precision where
    that loses nothing, as of what OpenAI has published.
    """
    if beside is not None:
        decoder.token_embedding, decoder.unembedding = beside.token_embedding, beside.unembedding
        return
    embedding = decoder.token_embedding
    decoder.unembedding = unembedding(embedding)
    half = embedding.weight.detach().half()
    if decoder.unembedding is not None and torch.equal(half.float(), embedding.weight):
        embedding.weight = nn.Parameter(half, requires_grad=False)


def lay_out(model: nn.Module) -> None:
    """Fewer and quicker products on a CPU, in bfloat16 of the same numbers; the model cannot be copied then."""
    modules = list(model.modules())
    joined = [module.attn for module in modules if isinstance(module, Block)]
    idle = {part for attention in joined for part in attention.parts}
    for attention in joined:
        attention.pack()
    for module in modules:
        if isinstance(module, Linear) and module not in idle:
            module.pack()
        if isinstance(module, Convolution) and module.weight.dtype == torch.float32:
            module.pack()


class Int8Unembedding(nn.Module):
    """The product with an embedding's weights in integers, where it decides made as good as the model's.

    What a search says, and whether it waits, hangs on the best few tokens: theirs are products of floating point.

    Args:
        product: (..., d) -> (..., V) float32 with the embedding's weights, near enough.
    """

    def __init__(self, embedding: nn.Embedding, product: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._embedding = embedding
        self._product = product

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) float32"""
        logits = self._product(hidden)
        rows = logits.view(-1, logits.shape[-1])
        row, token = near_peaks(rows, NEAR)
        exact = hidden.flatten(0, -2)[row].float() * self._embedding.weight[token].float()
        rows[row, token] = exact.sum(1)
        return logits


def unembedding(embedding: nn.Embedding) -> Int8Unembedding | None:
    """The product with the vocabulary in the integers of this CPU; None where it has none that are quicker."""
    if int8_linear.supported():
        product = partial(int8_linear.int8_linear, weight=int8_linear.pack(embedding.weight))
    elif half_linear.supported():
        product = partial(int7_linear.int7_linear, weight=int7_linear.pack(embedding.weight))
    else:
        return None
    return Int8Unembedding(embedding, product)
