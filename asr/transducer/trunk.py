"""Log-mel frames -> trunk features at 25 Hz: Whisper's encoder, strictly causal, and a learned mix of its layers.

Where asr/encoder.py looks ahead and encodes blocks again, nothing here is ever computed again: a frame attends
to all frames before it and to the one it is paired with, so the features do not depend on how the audio was cut into
chunks. All looking ahead is left to the layers behind (asr/transducer/encoder.py), which learn when it pays.

Feature m needs samples up to 640 m + 840, which is FRONT_END_MS beyond its own 40 ms.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.cache import KVCache
from asr.captured import Graphs
from asr.device import upload
from asr.encoder import ConvEdges, Encoder
from asr.limits import SAMPLES_PER_FRAME
from kernels.limit_cross_attention import limit_cross_attention
from kernels.masked_attention import masked_attention

STACK = 2  # encoder frames per feature
SAMPLES_PER_FEATURE = STACK * SAMPLES_PER_FRAME
FEATURE_MS = 40
FRONT_END_MS = 12.5


@dataclass(frozen=True)
class TrunkState:
    """One row per stream."""

    edges: ConvEdges
    odd: Tensor  # (S, 1, d) a frame whose partner has not come
    odd_fill: Tensor  # (S,) int64
    last: Tensor  # (S, n_ctx, d) what the last layer made of every frame
    cache: KVCache
    graphs: Graphs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graphs", Graphs(self.cache.k.device))


class Trunk(nn.Module):
    """Causal features of one encoder, which the trunk owns from now on.

    The mix is a softmax over the layers' outputs, each normalised, so that layers behind can use what the last
    one has dropped. Then every feature is centred and scaled by constants: a few of Whisper's are so much larger
    than the others that layers behind would learn from those alone.
    """

    centre: Tensor
    scale: Tensor

    stride = 2 * STACK  # mel frames per feature
    lookahead = 1  # mel frames

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.mix = nn.Parameter(torch.zeros(len(encoder.blocks)))
        self.register_buffer("centre", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))

    @property
    def width(self) -> int:
        """Of a feature: stacked frames."""
        return STACK * self.encoder.dims.n_audio_state

    def standardise(self, mel: Tensor, lengths: Tensor) -> None:
        """Fixes the constants, from (B, 80, t) frames with `lengths` (B,) features in each row."""
        self.centre.zero_()
        self.scale.fill_(1)
        features = self(mel)
        real = torch.cat([row[:n] for row, n in zip(features, lengths.tolist(), strict=True)])
        self.centre.copy_(real.mean(0))
        self.scale.copy_(real.std(0).clamp_min(1e-3))

    # -- everything at once

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 80, t) -> (B, t // 4, width): what `step` gives, padding conv edges with nothing at the end."""
        return self.hear(mel)[0]

    def hear(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 80, t) -> (B, t // 4, width) features, and (B, t // 4 * 2, d) frames for a decoder, as `heard`."""
        x = self.encoder.embed(mel)[:, : mel.shape[2] // self.stride * STACK]
        pair = torch.arange(x.shape[1], device=x.device) // STACK
        mask = pair[None, :] <= pair[:, None]
        layers = []
        for block in self.encoder.blocks:
            q, k, v = block.attn.queries_keys_values(block.attn_ln(x))
            heads = masked_attention(q, k, v, mask)
            x = block.feed(x + block.attn.merge(heads))
            layers.append(x)
        return self._stacked(self._mixed(layers)), self.encoder.ln_post(x)

    # -- as a stream

    def init_state(self, rows: int) -> TrunkState:
        encoder = self.encoder
        dims, weight = encoder.dims, encoder.conv1.weight
        width, heads = dims.n_audio_state, dims.n_audio_head
        return TrunkState(
            edges=ConvEdges.fresh(rows, dims.n_mels, width, weight),
            odd=weight.new_zeros(rows, 1, width),
            odd_fill=torch.zeros(rows, dtype=torch.int64),
            last=weight.new_empty(rows, dims.n_audio_ctx, width),
            cache=KVCache.allocate(dims.n_audio_layer, rows, heads, dims.n_audio_ctx, width // heads, weight),
        )

    def reset(self, state: TrunkState, rows: Tensor) -> None:
        """Makes `rows` equal to fresh ones."""
        state.edges.reset(rows)
        state.odd_fill[rows] = 0
        state.cache.free(rows)

    @staticmethod
    def phase(state: TrunkState, row: int) -> tuple[int, ...]:
        """Rows with equal phases may step together."""
        fills = (state.edges.mel_fill, state.edges.conv_fill, state.odd_fill)
        return tuple(int(fill[row]) for fill in fills)

    def step(self, mel: Tensor, state: TrunkState, rows: Tensor) -> tuple[Tensor, TrunkState]:
        """Every feature that new mel frames complete.

        Args:
            mel: (B, 80, t) new frames, any t >= 0.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows in the same phase; a row holds at most 30 s.

        Returns:
            (B, T, width), T >= 0, and the state.
        """
        fill = int(state.odd_fill[rows[0]])
        x = self.encoder.convolve(mel, state.edges, rows)
        at = upload(rows, x.device)
        x = torch.cat([state.odd[at, :fill], x], dim=1)
        n = x.shape[1] // STACK * STACK
        rest = x[:, n:]
        state.odd[at, : rest.shape[1]] = rest
        state.odd_fill[rows] = rest.shape[1]
        if not n:
            return x.new_zeros(len(rows), 0, self.width), state
        start = state.cache.room(rows, n)
        features = state.graphs(self._layers, state, [x[:, :n]], [rows, start])
        state.cache.advance(rows, n)
        return features, state

    def heard(self, state: TrunkState, row: int) -> Tensor:
        """(1, T, d): all frames of `row` as Whisper's decoder takes them; later steps do not change them."""
        n = int(state.cache.lengths[row])
        return self.encoder.ln_post(state.last[row, None, :n])

    def _layers(self, state: TrunkState, x: Tensor, rows: Tensor, start: Tensor) -> Tensor:
        """Frames (B, T, d) that stand at `start` (B,) of their rows -> features (B, T / 2, width)."""
        cache = state.cache
        ahead = torch.arange(x.shape[1], device=start.device)
        positions = start[:, None] + ahead
        limits = start[:, None] + (ahead // STACK + 1) * STACK
        x = x + self.encoder.positional_embedding[positions]
        layers = []
        for i, block in enumerate(self.encoder.blocks):
            q, k, v = block.attn.queries_keys_values(block.attn_ln(x))
            cache.put(i, rows, start, k, v)
            heads = limit_cross_attention(q, cache.k[i], cache.v[i], rows, limits)
            x = block.feed(x + block.attn.merge(heads))
            layers.append(x)
        state.last[rows[:, None], positions] = x
        return self._stacked(self._mixed(layers))

    def _mixed(self, layers: list[Tensor]) -> Tensor:
        """Layers' outputs, (B, T, d) each -> their mix in float32."""
        weights = self.mix.float().softmax(0)
        normed = [F.layer_norm(x.float(), x.shape[-1:]) for x in layers]
        return sum((w * x for w, x in zip(weights, normed, strict=True)), torch.zeros_like(normed[0]))

    def _stacked(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T / 2, 2 d) features"""
        return (x.unflatten(1, (-1, STACK)).flatten(2) - self.centre) / self.scale
