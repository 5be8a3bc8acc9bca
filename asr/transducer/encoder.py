"""Trunk features -> encoded frames: layers that see as much of the future as their schedules grant.

Everything at once, as training does it; asr/transducer/executor.py computes the same as a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from asr.layers import LayerNorm
from asr.transducer.layers import AdaptiveLayer
from asr.transducer.schedule import Policy, clamp_to_end, completion, right_of, soft_right_of, spans_of
from kernels.adaptive_span_attention import adaptive_span_attention


@dataclass(frozen=True)
class EncoderDims:
    """Sizes of the layers behind the trunk."""

    features: int = 768  # width of a trunk feature
    width: int = 256
    heads: int = 4
    layers: int = 4
    span: int = 16  # most frames a layer may look ahead, R
    left: int = 64  # frames before its own that a frame sees


@dataclass(frozen=True)
class Schedule:
    """What the layers of one pass waited for."""

    rights: list[Tensor]  # (B, T, R) of each layer, clamped to the rows' ends
    spans: list[Tensor]  # (B, T) int64, hard
    done: Tensor  # (B, T) int64, the newest feature that each frame needed


class AdaptiveEncoder(nn.Module):
    """Four layers, by default, between the trunk and the joiner."""

    def __init__(self, dims: EncoderDims, dropout: float = 0.0) -> None:
        super().__init__()
        self.dims = dims
        self.norm = LayerNorm(dims.features)
        self.project = nn.Linear(dims.features, dims.width)
        layers = nn.ModuleList(AdaptiveLayer(dims.width, dims.heads, dims.span) for _ in range(dims.layers))
        self.layers = cast("Sequence[AdaptiveLayer]", layers)
        self.out_norm = LayerNorm(dims.width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        policy: Policy | None = None,
        *,
        temperature: float | None = None,
    ) -> tuple[Tensor, Schedule]:
        """Encodes whole rows.

        Args:
            features: (B, T, features), what lies beyond a row's length is never seen within it.
            lengths: (B,) int64
            policy: gives the spans in place of the schedulers.
            temperature: of soft masks; None takes hard ones, through which gradients pass as if they were soft
                (straight-through, at temperature 1).

        Returns:
            (B, T, width), and what was waited for.
        """
        x = self.embed(features)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        rights, spans = [], []
        for number, layer in enumerate(self.layers):
            right, span = self._right(layer, number, x, policy, temperature)
            right = clamp_to_end(right, lengths)
            q, k, v = layer.project(x, positions)
            x = layer.finish(x, adaptive_span_attention(q, k, v, right, self.dims.left))
            x = self.dropout(x)
            rights.append(right)
            spans.append(span)
        return self.out_norm(x), Schedule(rights, spans, completion(spans, lengths))

    def embed(self, features: Tensor) -> Tensor:
        """(B, T, features) -> (B, T, width), frame by frame."""
        return self.project(self.norm(features))

    def _right(
        self, layer: AdaptiveLayer, number: int, x: Tensor, policy: Policy | None, temperature: float | None
    ) -> tuple[Tensor, Tensor]:
        span = self.dims.span
        if policy is not None:
            spans = policy(number, len(x), x.shape[1], span).to(x.device)
            return right_of(spans, span), spans
        logits = layer.scheduler(x)
        spans = spans_of(logits)
        if temperature is not None:
            return soft_right_of(logits, temperature), spans
        soft = soft_right_of(logits, 1.0)
        return right_of(spans, span) + (soft - soft.detach()), spans
