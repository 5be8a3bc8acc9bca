"""The layers that Whisper's encoder and decoder share. Module names are OpenAI's, so weights load by name."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.half_linear import HalfWeight, half_linear
from kernels.half_linear import pack as pack_half
from kernels.int8_linear import padded
from kernels.masked_attention import masked_attention


class Linear(nn.Linear):
    """A linear layer that meets few numbers of rows, see `linear`."""

    packed: Tensor | None = None  # the weight once more, as oneDNN multiplies it; not in the state dict
    halved: HalfWeight | None = None  # or as FBGEMM does

    def forward(self, x: Tensor) -> Tensor:
        if self.halved is not None:
            return half_linear(x, self.halved)
        return linear(x, self.weight, self.bias, self.packed)

    def pack(self) -> None:
        """Lays the weight out for this CPU, which each product does anew otherwise; it must not change then.

        In bfloat16, products of few rows take half the time, and stay the same to the bit. In float32 weights are
        rounded to half precision, in which OpenAI's are published.
        """
        if self.weight.dtype == torch.float32:
            self.halved = pack_half(self.weight, self.bias)
            let_go(self.weight)
            return
        assert self.weight.dtype == torch.bfloat16
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous(), None)


def let_go(weight: Tensor) -> None:
    """Frees the memory of a weight that is laid out elsewhere; who reads it all the same gets NaN.

    Its type, its shape and where it lies are as before, which state is made like.
    """
    weight.data = weight.new_full((), torch.nan).expand_as(weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """`F.linear`, x (..., K) and weight (N, K) -> (..., N), padded to one of few numbers of rows.

    In bfloat16 on a CPU, for the reason that `padded` gives; `packed` is the weight as oneDNN wants it.
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    missing = padded(len(rows)) - len(rows)
    if missing:
        rows = F.pad(rows, (0, 0, 0, missing))
    if packed is None:
        y = F.linear(rows, weight, bias)
    else:
        y = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return y[: len(y) - missing].unflatten(0, x.shape[:-1])


class Convolution(nn.Conv1d):
    """A convolution over time which, once packed, is a linear layer over windows: any number of rows, few shapes."""

    halved: HalfWeight | None = None  # the weight once more, as FBGEMM multiplies it

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t) -> (B, d, t'), zeros on either side."""
        if self.halved is None:
            return super().forward(x)
        return self.within(F.pad(x, (int(self.padding[0]),) * 2))

    def within(self, x: Tensor) -> Tensor:
        """(B, C, t) -> (B, d, t'), no padding."""
        if self.halved is None:
            return F.conv1d(x, self.weight, self.bias, self.stride)
        windows = x.unfold(2, self.kernel_size[0], self.stride[0])  # (B, C, t', kernel)
        return half_linear(windows.transpose(1, 2).flatten(2), self.halved).transpose(1, 2)

    def pack(self) -> None:
        """As `Linear.pack` does in float32."""
        self.halved = pack_half(self.weight.flatten(1), self.bias)
        let_go(self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer norm that hands on the autocast type, if there is one, so that it is not cast per projection."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


class Attention(nn.Module):
    """The four projections of multi-head attention; how keys are kept and masked is the caller's business."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        self.joined: Linear | None = None  # queries, keys and values as one product, once there is one

    @property
    def parts(self) -> tuple[Linear, Linear, Linear]:
        """The projections of what attends to itself: queries, keys, values."""
        return self.query, self.key, self.value

    def join(self) -> None:
        """Makes one product of the three that read the same input; their weights are views of its then, and fixed."""
        parts = self.parts
        weight = torch.cat([part.weight.detach() for part in parts])
        self.joined = Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
        none = torch.zeros_like(self.query.bias)  # keys have no bias
        self.joined.weight = nn.Parameter(weight, requires_grad=False)
        self.joined.bias = nn.Parameter(
            torch.cat([part.bias if part.bias is not None else none for part in parts]), requires_grad=False
        )
        for part, own in zip(parts, self.joined.weight.chunk(3), strict=True):
            part.weight.data = own  # not kept twice

    def pack(self) -> None:
        """Joins, and lays out what was joined."""
        self.join()
        assert self.joined is not None
        self.joined.pack()
        if self.joined.halved is not None:
            for part in self.parts:
                let_go(part.weight)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, H, T, D)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        return self.split(self.query(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(x)), self.split(self.value(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention of x (B, T, d) to itself needs, (B, H, T, D) each."""
        if self.joined is None:
            return self.queries(x), *self.keys_values(x)
        q, k, v = self.joined(x).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    def merge(self, heads: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, d)"""
        return self.out(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Everything at once, as training does it: x (B, T, d), source (B, T', d), mask (B|1, 1, T, T') bool."""
        q, k, v = self.queries_keys_values(x) if source is x else (self.queries(x), *self.keys_values(source))
        return self.merge(masked_attention(q, k, v, mask))


class Block(nn.Module):
    """Pre-norm residual block of the encoder: self-attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = LayerNorm(width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.mlp_ln = LayerNorm(width)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP half of the block, (B, T, d) -> (B, T, d)."""
        return x + self.mlp(self.mlp_ln(x))


class CrossBlock(Block):
    """The decoder's block: cross-attention to the audio between self-attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.cross_attn = Attention(width, heads)
        self.cross_attn_ln = LayerNorm(width)


def sinusoids(length: int, width: int, max_timescale: float = 10_000) -> Tensor:
    """(length, width) sinusoidal positions as Whisper computes them."""
    half = width // 2
    step = torch.log(torch.tensor(max_timescale)) / (half - 1)
    scaled = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(half))[None, :]
    return torch.cat([scaled.sin(), scaled.cos()], dim=1)
