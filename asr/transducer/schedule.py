"""When to wait: each layer's scheduler, and the latency that a schedule of right spans really costs.

After ANCAT (Strimel et al., "Lookahead When It Matters", ICML 2023, arXiv 2305.04159). The formulas are our own
working-out of it. Spans and latencies count frames of 40 ms.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scheduler(nn.Module):
    """Asks, frame by frame, whether to wait for one more: z[i, k] = own_k(x_i) + offer(x_{i + k - 1}).

    The k-th question is answered from frames that have come already, so answering it costs no waiting.

    Args:
        width: of the frames.
        span: most frames that a frame may wait for, R.
    """

    def __init__(self, width: int, span: int) -> None:
        super().__init__()
        self.span = span
        self.own = nn.Linear(width, span)
        self.offer = nn.Linear(width, 1, bias=False)
        for weight in (self.own.weight, self.offer.weight):
            nn.init.normal_(weight, std=0.02)
        # Untrained, a frame waits for a third of the span; the further ahead, the surer the no.
        self.own.bias.data.copy_(torch.linspace(1.0, -2.0, span))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, R) float32 logits; k counts from 0 for the first frame waited for."""
        offered = F.pad(self.offered(x), (0, self.span - 1))  # (B, T + R - 1)
        return self.wished(x) + offered.unfold(1, self.span, 1)

    def wished(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, R) float32: what each frame itself says to its questions."""
        with torch.autocast(x.device.type, enabled=False):
            wished: Tensor = self.own(x.float())
            return wished

    def offered(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T) float32: what each frame says to those that ask whether to wait on behind it."""
        with torch.autocast(x.device.type, enabled=False):
            return self.offer(x.float()).squeeze(-1)


def spans_of(logits: Tensor) -> Tensor:
    """(B, T, R) logits -> (B, T) int64 hard spans: how many frames in a row it is said yes to."""
    return (logits >= 0).cumprod(-1).sum(-1)


def right_of(spans: Tensor, span: int) -> Tensor:
    """(B, T) int64 spans -> (B, T, R) float32 hard right masks."""
    return (torch.arange(span, device=spans.device) < spans[..., None]).float()


def soft_right_of(logits: Tensor, temperature: float) -> Tensor:
    """(B, T, R) logits -> (B, T, R) soft right masks in [0, 1], not increasing along R."""
    return (logits / temperature).sigmoid().cumprod(-1)


def clamp_to_end(right: Tensor, lengths: Tensor) -> Tensor:
    """Right masks (B, T, R) without what lies beyond each row's end; lengths (B,)."""
    at = torch.arange(right.shape[1], device=right.device)
    reach = at[None, :, None] + 1 + torch.arange(right.shape[2], device=right.device)
    return right * (reach < lengths.to(right.device)[:, None, None])


class Policy(Protocol):
    """What gives the spans of a layer whose schedulers do not: random ones in training, and controls."""

    def __call__(self, layer: int, batch: int, n_frames: int, span: int) -> Tensor:
        """(B, T) int64 spans, 0 to `span`."""
        ...


def layerwise(*spans: int) -> Policy:
    """The same span for every frame of a layer; all zero is the causal model."""

    def policy(layer: int, batch: int, n_frames: int, span: int) -> Tensor:
        return torch.full((batch, n_frames), min(spans[layer], span))

    return policy


def chunked(size: int) -> Policy:
    """Every frame sees to the end of its chunk of `size` frames, in all layers."""

    def policy(layer: int, batch: int, n_frames: int, span: int) -> Tensor:
        ahead = size - 1 - torch.arange(n_frames) % size
        return ahead.clamp(max=span).expand(batch, -1)

    return policy


def named(policy: str, layers: int) -> Policy | None:
    """A control by name: "causal", "layerwise:1,1,0,0", "chunked:9"; None for "adaptive".

    Raises:
        ValueError: no such policy.
    """
    kind, _, sizes = policy.partition(":")
    numbers = [int(size) for size in sizes.split(",")] if re.fullmatch(r"\d+(,\d+)*", sizes) else []
    match kind, numbers:
        case "adaptive", [] if not sizes:
            return None
        case "causal", [] if not sizes:
            return layerwise(*[0] * layers)
        case "layerwise", [_, *_] if len(numbers) == layers:
            return layerwise(*numbers)
        case "chunked", [size] if size:
            return chunked(size)
    raise ValueError(
        f"no policy {policy!r}: choose adaptive, causal, chunked:SIZE, or layerwise: and {layers} numbers"
    )


def completion(spans: list[Tensor], lengths: Tensor) -> Tensor:
    """When each frame is done: the newest input frame that it needs, with all that it depends on.

    A[l][i] = B[l-1][min(i + D[l][i], T - 1)], B = running maximum of A over time: frames come out in order, and a
    frame that looked ahead delays all after it. Adding up the spans instead understates this about two-fold.

    Args:
        spans: (B, T) int64 of each layer, from the first.
        lengths: (B,) frames of each row.

    Returns:
        (B, T) int64; latency in frames is this minus the frame's own number.
    """
    n_frames = spans[0].shape[1]
    at = torch.arange(n_frames, device=spans[0].device)
    last = (lengths.to(at.device) - 1).clamp(min=0)[:, None]
    done = at.expand(len(spans[0]), -1)
    for layer in spans:
        reach = torch.minimum(at + layer, torch.maximum(last, at))  # beyond a row's end nothing matters
        done = done.gather(1, reach).cummax(dim=1).values
    return done


@dataclass(frozen=True)
class Waits:
    """Frames counted by how many others each waited for: `completion` less its own number, of hard masks alone."""

    frames: tuple[int, ...]  # [n]: those that waited for n
    emitting: tuple[int, ...]  # likewise, of those at which something was said

    def __add__(self, other: "Waits") -> "Waits":
        """Of one schedule both."""
        pairs = ((self.frames, other.frames), (self.emitting, other.emitting))
        return Waits(*(tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs))


def soft_completion(rights: list[Tensor]) -> Tensor:
    """`completion` made differentiable: A~[i] = B~[i] + sum_k m[i, k] (B~[i + k] - B~[i + k - 1]).

    With soft masks it understates the latency: report `completion`. With straight-through ones it equals it.

    Args:
        rights: (B, T, R) of each layer, clamped to the rows' ends.

    Returns:
        (B, T) float32
    """
    n_frames, span = rights[0].shape[1], rights[0].shape[2]
    done = torch.arange(n_frames, device=rights[0].device, dtype=torch.float32).expand(len(rights[0]), -1)
    for right in rights:
        gains = F.pad(done, (0, span), mode="replicate").diff(dim=1).unfold(1, span, 1)  # (B, T, R)
        done = (done + (right * gains).sum(-1)).cummax(dim=1).values
    return done
