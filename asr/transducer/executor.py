"""The adaptive layers as a stream: every frame is computed once, as soon as its span has come, and is final then.

Equal to `AdaptiveEncoder.forward` under the schedulers' hard masks, for any cutting of the input. Rows are ragged:
of the same new features one stream may finish many frames and another none; what becomes ready in a layer, over all
rows, is one matrix product.

Each layer keeps rings: of its inputs, and of all that can be said of an input once it is there, so that a frame that
waits costs nothing. Frame n of a row lies in place n modulo the ring's size.

On a GPU the host keeps the numbers and tells where things lie; it waits once a layer, for what the schedulers decide.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.device import upload
from asr.transducer.encoder import AdaptiveEncoder, EncoderDims
from asr.transducer.layers import AdaptiveLayer
from asr.transducer.schedule import Policy, spans_of

PIECE = 32  # features taken in at once; a longer step is several


@dataclass(frozen=True)
class LayerState:
    """One layer's rings, one row per stream; what was never written is never read. Numbers (int64) are the host's."""

    x: Tensor  # (S, ring, d) inputs
    q: Tensor  # (S, H, ring, D)
    k: Tensor  # (S, H, ring, D)
    v: Tensor  # (S, H, ring, D)
    wish: Tensor  # (S, ring, R) what each input says of waiting, and
    offer: Tensor  # (S, ring) what it offers those who may wait on behind it
    came: Tensor  # (S, ring) int64, the feature at whose coming the input was finished by the layer before
    n_in: Tensor  # (S,) int64 inputs so far
    n_out: Tensor  # (S,) int64 frames computed so far
    done: Tensor  # (S,) int64, the feature with which the newest of them was complete


@dataclass(frozen=True)
class ExecutorState:
    """One row per stream."""

    layers: tuple[LayerState, ...]


@dataclass(frozen=True)
class Ready:
    """Frames that a step has finished; row b holds counts[b] of them, then padding."""

    frames: Tensor  # (B, M, width)
    counts: Tensor  # (B,) int64 on the host
    done: Tensor  # (B, M) int64 on the host, the feature with which each was complete: equals `schedule.completion`


class Executor:
    """Steps an encoder's layers; it holds no stream's state.

    Args:
        policy: gives the spans in place of the schedulers, by frame number; for controls.
    """

    stride = 1

    def __init__(self, encoder: AdaptiveEncoder, policy: Policy | None = None) -> None:
        self.encoder = encoder
        self.policy = policy

    @property
    def dims(self) -> EncoderDims:
        return self.encoder.dims

    @property
    def lookahead(self) -> int:
        """Features that a frame may wait for at most, over all layers."""
        return self.dims.span * self.dims.layers

    @property
    def _ring(self) -> int:
        # A frame may wait with `span` inputs behind it and sees `left` before it; what a step brings grows by the
        # frames that were waiting in each layer.
        return self.dims.left + self.dims.span * self.dims.layers + PIECE

    def init_state(self, rows: int) -> ExecutorState:
        dims, weight = self.dims, self.encoder.project.weight
        heads = (rows, dims.heads, self._ring, dims.width // dims.heads)

        def layer() -> LayerState:
            return LayerState(
                x=weight.new_zeros(rows, self._ring, dims.width),
                q=weight.new_zeros(heads, dtype=torch.float32),
                k=weight.new_zeros(heads, dtype=torch.float32),
                v=weight.new_zeros(heads, dtype=torch.float32),
                wish=weight.new_zeros(rows, self._ring, dims.span, dtype=torch.float32),
                offer=weight.new_zeros(rows, self._ring, dtype=torch.float32),
                came=torch.zeros(rows, self._ring, dtype=torch.int64),
                n_in=torch.zeros(rows, dtype=torch.int64),
                n_out=torch.zeros(rows, dtype=torch.int64),
                done=torch.zeros(rows, dtype=torch.int64),
            )

        return ExecutorState(tuple(layer() for _ in range(dims.layers)))

    def reset(self, state: ExecutorState, rows: Tensor) -> None:
        """Makes `rows` equal to fresh ones."""
        for layer in state.layers:
            layer.n_in[rows] = 0
            layer.n_out[rows] = 0
            layer.done[rows] = 0

    def step(
        self, features: Tensor, state: ExecutorState, rows: Tensor, *, ending: bool = False
    ) -> tuple[Ready, ExecutorState]:
        """Takes in new trunk features and computes every frame that they complete.

        Args:
            features: (B, n, features) of `rows`, n >= 0.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows stepping.
            ending: nothing follows: spans end with what has come, and every frame is finished.
        """
        pieces = list(features.split(PIECE, dim=1))
        steps = [
            self._step(piece, state, rows, ending and i + 1 == len(pieces)) for i, piece in enumerate(pieces)
        ]
        return _joined(steps), state

    def _step(self, features: Tensor, state: ExecutorState, rows: Tensor, ending: bool) -> Ready:
        batch, n_new = features.shape[:2]
        first = state.layers[0].n_in[rows][:, None]
        ready = Ready(
            self.encoder.embed(features), torch.full((batch,), n_new), first + torch.arange(n_new)[None]
        )
        for number, (layer, own) in enumerate(zip(self.encoder.layers, state.layers, strict=True)):
            self._take_in(layer, own, rows, ready)
            ready = self._advance(number, layer, own, rows, ending)
        return Ready(self.encoder.out_norm(ready.frames), ready.counts, ready.done)

    def _take_in(self, layer: AdaptiveLayer, own: LayerState, rows: Tensor, new: Ready) -> None:
        """Puts new inputs behind those that a layer has."""
        n = new.frames.shape[1]
        at = own.n_in[rows][:, None] + torch.arange(n)  # (B, n) frame numbers
        b, i = (torch.arange(n) < new.counts[:, None]).nonzero(as_tuple=True)
        row, place = rows[b], at[b, i] % self._ring
        own.came[row, place] = new.done[b, i]
        own.n_in[rows] += new.counts
        q, k, v = layer.project(new.frames, upload(at, new.frames.device))
        b, i, row, place = upload(torch.stack([b, i, row, place]), new.frames.device)
        for ring, heads in ((own.q, q), (own.k, k), (own.v, v)):
            ring[row, :, place] = heads[b, :, i].to(ring.dtype)
        own.x[row, place] = new.frames[b, i].to(own.x.dtype)
        own.wish[row, place] = layer.scheduler.wished(new.frames)[b, i]
        own.offer[row, place] = layer.scheduler.offered(new.frames)[b, i]

    def _advance(
        self, number: int, layer: AdaptiveLayer, own: LayerState, rows: Tensor, ending: bool
    ) -> Ready:
        """Computes the frames of a layer whose spans have come, in order."""
        n_in, n_out = own.n_in[rows], own.n_out[rows]
        last = n_in[:, None] - 1
        at = n_out[:, None] + torch.arange(int((n_in - n_out).max()))  # (B, W) frame numbers
        reach = at + self._spans(number, own, rows, at)
        if ending:
            reach = torch.minimum(reach, last)
        waiting = ((reach > last) | (at > last)).cumsum(dim=1)  # a frame waits for those before it, too
        counts = (waiting == 0).sum(dim=1)
        n = int(counts.max())
        at, reach = at[:, :n], torch.minimum(reach[:, :n], last)
        row, place = upload(torch.stack([rows[:, None].expand_as(at), at % self._ring]), own.x.device)
        x = own.x[row, place]
        if not n:
            return Ready(x, counts, at)
        q = own.q[row, :, place].transpose(1, 2)
        frames = layer.finish(x, self._attend(q, own, rows, at, reach).to(x.dtype))
        came = own.came[rows[:, None], reach % self._ring]
        done = torch.maximum(came.cummax(dim=1).values, own.done[rows][:, None])
        own.n_out[rows] += counts
        own.done[rows] = done.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0].where(
            counts > 0, own.done[rows]
        )
        return Ready(frames, counts, done)

    def _spans(self, number: int, own: LayerState, rows: Tensor, at: Tensor) -> Tensor:
        """(B, W) spans of frames `at`. To what has not come the answer is yes: the frame waits for it."""
        if self.policy is not None:
            spans = self.policy(number, len(rows), int(at.max()) + 1 if at.numel() else 0, self.dims.span)
            return spans.gather(1, at)
        row = rows[:, None, None]
        ahead = at[..., None] + torch.arange(self.dims.span)  # (B, W, R)
        unknown = ahead >= own.n_in[row]
        numbers = [
            row.expand_as(ahead),
            at[..., None].expand_as(ahead) % self._ring,
            ahead % self._ring,
            unknown,
        ]
        row, place, behind, unknown = upload(torch.stack(numbers), own.wish.device)
        logits = own.wish[row[..., 0], place[..., 0]] + own.offer[row, behind]
        return spans_of(logits.masked_fill(unknown.bool(), torch.inf)).cpu()

    def _attend(self, q: Tensor, own: LayerState, rows: Tensor, at: Tensor, reach: Tensor) -> Tensor:
        """(B, H, n, D): what frames `at` find by their queries among the inputs up to `reach`."""
        newest = own.n_in[rows][:, None] - 1
        held = newest - (newest - torch.arange(self._ring)) % self._ring  # (B, ring) frame in each place
        mask = (held[:, None] <= reach[..., None]) & (
            held[:, None] >= (at - self.dims.left).clamp(min=0)[..., None]
        )
        mask, rows = upload(mask, own.k.device), upload(rows, own.k.device)
        # Whatever a ring held before must not matter, not even as NaN.
        unread = ~mask.any(dim=1)[:, None, :, None]
        k, v = own.k[rows].masked_fill(unread, 0), own.v[rows].masked_fill(unread, 0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])


def _joined(steps: list[Ready]) -> Ready:
    """Several steps' frames, row by row behind each other."""
    if len(steps) == 1:
        return steps[0]
    counts = torch.stack([step.counts for step in steps]).sum(0)
    pick = torch.cat([torch.arange(step.done.shape[1]) < step.counts[:, None] for step in steps], dim=1)
    order = (~pick).int().argsort(dim=1, stable=True)[:, : int(counts.max())]  # what counts first, in order
    frames = torch.cat([step.frames for step in steps], dim=1)
    done = torch.cat([step.done for step in steps], dim=1)
    row = torch.arange(len(counts))[:, None].expand_as(order)
    return Ready(frames[*upload(torch.stack([row, order]), frames.device)], counts, done[row, order])
