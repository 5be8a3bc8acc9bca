"""Log-mel frames -> features: Whisper's encoder made block-causal, with cached keys, values and conv edges.

Method: CarelessWhisper (arXiv 2508.12301), section 3. A frame attends to every frame of its own block and
of earlier ones, so earlier frames never change and their keys and values are kept.

Encoder frame j (20 ms) needs samples up to 320 j + 520, that is 12.5 ms beyond its own end. Blocks therefore
end one frame before each multiple of the block size: when the k-th chunk of audio is complete, so is block k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.cache import KVCache
from asr.layers import Block, sinusoids
from asr.weights import Dims
from kernels.cached_chunk_attention import cached_chunk_attention

MEL_PER_FRAME = 2  # the second convolution has stride 2
FRAMES_PER_SECOND = 50  # 20 ms per encoder frame
SAMPLES_PER_FRAME = 320
FRAME_LOOKAHEAD = 1  # frames by which a block ends before its chunk of audio does


@dataclass(frozen=True)
class EncoderState:
    """One row per stream. Edges are what the convolutions still need of the past; never run them twice."""

    mel_edge: Tensor  # (S, 80, 2), the newest `mel_fill` columns valid, right-aligned
    mel_fill: Tensor  # (S,) int64
    conv_edge: Tensor  # (S, d, 2), likewise
    conv_fill: Tensor  # (S,) int64
    pending: Tensor  # (S, block limit, d) frames of a block that is not complete
    pending_fill: Tensor  # (S,) int64
    block: Tensor  # (S,) int64, frames per block (tau) of each stream
    cache: KVCache


class Encoder(nn.Module):
    stride = MEL_PER_FRAME
    lookahead = 2  # mel frames; a frame also waits for the rest of its block

    positional_embedding: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        width, heads = dims.n_audio_state, dims.n_audio_head
        self.conv1 = nn.Conv1d(dims.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(dims.n_audio_ctx, width))
        blocks = nn.ModuleList(Block(width, heads) for _ in range(dims.n_audio_layer))
        self.blocks = cast("Sequence[Block]", blocks)
        self.ln_post = nn.LayerNorm(width)
        self.dims = dims

    # -- everything at once: training, and the unmodified model's offline pass

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 80, t) -> (B, t / 2, d). `mask` (B|1, 1, T, T) bool, True where attention is allowed."""
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positional_embedding[: x.shape[1]]
        for block in self.blocks:
            normed = block.attn_ln(x)
            x = block.feed(x + block.attn(normed, normed, mask))
        return self.ln_post(x)

    # -- as a stream

    def init_state(self, rows: int, block: int = 15, block_limit: int = 50) -> EncoderState:
        """State of `rows` fresh streams with blocks of `block` frames (20 ms each), at most `block_limit`."""
        weight, dims, heads = self.conv1.weight, self.dims, self.dims.n_audio_head
        width = dims.n_audio_state
        return EncoderState(
            mel_edge=weight.new_zeros(rows, dims.n_mels, 2),
            mel_fill=torch.ones(rows, dtype=torch.int64),  # Whisper's zero padding is the first column
            conv_edge=weight.new_zeros(rows, width, 2),
            conv_fill=torch.ones(rows, dtype=torch.int64),
            pending=weight.new_zeros(rows, block_limit, width),
            pending_fill=torch.zeros(rows, dtype=torch.int64),
            block=torch.full((rows,), block, dtype=torch.int64),
            cache=KVCache.allocate(dims.n_audio_layer, rows, heads, dims.n_audio_ctx, width // heads, weight),
        )

    def reset(self, state: EncoderState, rows: Tensor, block: int) -> None:
        """Makes `rows` equal to fresh ones with blocks of `block` frames."""
        assert 0 < block <= state.pending.shape[1]
        state.mel_edge[rows] = 0
        state.conv_edge[rows] = 0
        state.mel_fill[rows] = 1
        state.conv_fill[rows] = 1
        state.pending_fill[rows] = 0
        state.block[rows] = block
        state.cache.free(rows)

    def step(self, mel: Tensor, state: EncoderState, rows: Tensor) -> tuple[Tensor, EncoderState]:
        """Encodes every block that the new mel frames complete.

        Args:
            mel: (B, 80, t) new frames, any t >= 0.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows in the same phase: same block size, same number of frames pending.

        Returns:
            (B, T, d) features of the completed blocks, T >= 0, and the state.
        """
        x = self._convolve(mel.to(self.conv1.weight.dtype), state, rows)
        fill, tau = int(state.pending_fill[rows[0]]), int(state.block[rows[0]])
        assert bool((state.pending_fill[rows] == fill).all()) and bool((state.block[rows] == tau).all())
        x = torch.cat([state.pending[rows, :fill], x], dim=1)
        # The first block of a stream is one frame short (FRAME_LOOKAHEAD); rows in one phase agree on that.
        first = bool((state.cache.lengths[rows] == 0).all())
        assert first or not bool((state.cache.lengths[rows] == 0).any())
        features, done, size = [], 0, tau - FRAME_LOOKAHEAD if first else tau
        while x.shape[1] - done >= max(size, 1):
            if size:
                features.append(self._encode_block(x[:, done : done + size], state.cache, rows))
            done, size = done + size, tau
        rest = x[:, done:]
        state.pending[rows, : rest.shape[1]] = rest
        state.pending_fill[rows] = rest.shape[1]
        return torch.cat(features, dim=1) if features else x[:, :0], state

    def _convolve(self, mel: Tensor, state: EncoderState, rows: Tensor) -> Tensor:
        """(B, 80, t) -> (B, T, d): both convolutions over carried edges, without padding."""
        mel = _with_edge(mel, state.mel_edge, state.mel_fill, rows)
        x = mel.new_zeros(len(rows), self.dims.n_audio_state, 0)
        if mel.shape[2] >= 3:
            x = F.gelu(F.conv1d(mel, self.conv1.weight, self.conv1.bias))
        _keep_edge(mel, mel.shape[2] - x.shape[2], state.mel_edge, state.mel_fill, rows)
        x = _with_edge(x, state.conv_edge, state.conv_fill, rows)
        n_frames = max(0, (x.shape[2] - 1) // 2)
        y = x.new_zeros(len(rows), 0, self.dims.n_audio_state)
        if n_frames:
            y = F.gelu(F.conv1d(x, self.conv2.weight, self.conv2.bias, stride=2)).transpose(1, 2)
        _keep_edge(x, x.shape[2] - 2 * n_frames, state.conv_edge, state.conv_fill, rows)
        return y

    def _encode_block(self, x: Tensor, cache: KVCache, rows: Tensor) -> Tensor:
        """One block (B, tau, d) through all layers; appends its keys and values."""
        before = cache.lengths[rows]
        positions = before[:, None] + torch.arange(x.shape[1])
        x = x + self.positional_embedding[positions.to(x.device)]
        for i, block in enumerate(self.blocks):
            normed = block.attn_ln(x)
            cache.write(i, rows, *block.attn.keys_values(normed))
            heads = cached_chunk_attention(
                block.attn.queries(normed), cache.k[i], cache.v[i], rows, before + x.shape[1]
            )
            x = block.feed(x + block.attn.merge(heads))
        cache.advance(rows, x.shape[1])
        return self.ln_post(x)


def block_causal_mask(n_frames: int, tau: int, device: torch.device | str = "cpu") -> Tensor:
    """(T, T) bool: True where a frame may attend; blocks end at frames k * tau - FRAME_LOOKAHEAD."""
    block = (torch.arange(n_frames, device=device) + FRAME_LOOKAHEAD) // tau
    return block[:, None] >= block[None, :]


def _with_edge(x: Tensor, edge: Tensor, fill: Tensor, rows: Tensor) -> Tensor:
    n = int(fill[rows[0]])
    assert bool((fill[rows] == n).all()), "rows must be in the same phase"
    return torch.cat([edge[rows, :, 2 - n :], x], dim=2)


def _keep_edge(x: Tensor, n: int, edge: Tensor, fill: Tensor, rows: Tensor) -> None:
    assert 0 <= n <= 2
    if n:
        edge[rows, :, 2 - n :] = x[:, :, x.shape[2] - n :]
    fill[rows] = n
