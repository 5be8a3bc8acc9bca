"""Log-mel frames -> features: Whisper's encoder over a stream, with cached keys, values and conv edges.

Method: CarelessWhisper (arXiv 2508.12301), section 3, made to look ahead by blocks as Emformer does (Shi et al.,
2021): each block is encoded as soon as it is complete, and once more together with each of the next ones, until these
are LEAST_AHEAD. A frame attends to every earlier frame, to its own block and to those behind that have come; what it
has become with the last of them never changes again, and its keys and values are kept. Until then its features are
provisional. A block is a chunk of audio, or several short ones; it is encoded anew with each of them.

Encoder frame j (20 ms) needs samples up to 320 j + 520, that is 12.5 ms beyond its own end. Blocks therefore
end one frame before each multiple of the block size: when the k-th chunk of audio is complete, so is block k.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.cache import KVCache
from asr.captured import Graphs
from asr.device import upload
from asr.layers import Block, Convolution, sinusoids
from asr.weights import Dims
from kernels.block_causal_attention import block_causal_attention
from kernels.cached_chunk_attention import cached_chunk_attention

MEL_PER_FRAME = 2  # the second convolution has stride 2
FRAMES_PER_SECOND = 50  # 20 ms per encoder frame
LEAST_BLOCK = 15  # frames; a look of 100 ms ahead in place of 300 costs a third more errors
LEAST_AHEAD = 30  # frames behind a block with which it settles; 15 cost a twelfth more errors
FRAME_LOOKAHEAD = 1  # frames by which a block ends before its chunk of audio does


@dataclass(frozen=True)
class ConvEdges:
    """What the convolutions still need of the past, one row per stream; never run them twice."""

    mel: Tensor  # (S, 80, 2), the newest `mel_fill` columns valid, right-aligned
    mel_fill: Tensor  # (S,) int64
    conv: Tensor  # (S, d, 2), likewise
    conv_fill: Tensor  # (S,) int64

    @classmethod
    def fresh(cls, rows: int, n_mels: int, width: int, like: Tensor) -> "ConvEdges":
        """Edges of `rows` streams before their first frame: Whisper's zero padding is the first column."""
        one = torch.ones(rows, dtype=torch.int64)
        return cls(like.new_zeros(rows, n_mels, 2), one.clone(), like.new_zeros(rows, width, 2), one.clone())

    def reset(self, rows: Tensor) -> None:
        """Makes `rows` equal to fresh ones."""
        at = upload(rows, self.mel.device)
        self.mel[at] = 0
        self.conv[at] = 0
        self.mel_fill[rows] = 1
        self.conv_fill[rows] = 1


@dataclass(frozen=True)
class EncoderState:
    """One row per stream."""

    edges: ConvEdges
    pending: Tensor  # (S, chunk limit, d) frames of a chunk that is not complete
    pending_fill: Tensor  # (S,) int64
    recent: Tensor  # (S, blocks, d) frames whose features are provisional: those of the newest complete
    recent_fill: Tensor  # blocks, (S,) int64, and behind them those of the chunks that have come since
    chunk: Tensor  # (S,) int64, frames per chunk of each stream
    block: Tensor  # (S,) int64, frames per block (tau): whole chunks, LEAST_BLOCK at least
    cache: KVCache  # of all complete chunks, the recent ones included
    graphs: Graphs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graphs", Graphs(self.cache.k.device))


class Encoder(nn.Module):
    stride = MEL_PER_FRAME
    lookahead = 2  # mel frames; a frame also waits for the rest of its block, and settles with those behind

    positional_embedding: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        width, heads = dims.n_audio_state, dims.n_audio_head
        self.conv1 = Convolution(dims.n_mels, width, 3, padding=1)
        self.conv2 = Convolution(width, width, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(dims.n_audio_ctx, width))
        blocks = nn.ModuleList(Block(width, heads) for _ in range(dims.n_audio_layer))
        self.blocks = cast("Sequence[Block]", blocks)
        self.ln_post = nn.LayerNorm(width)
        self.dims = dims

    # -- everything at once

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 80, t) -> (B, t / 2, d), every frame seeing all others: the unmodified model's offline pass."""
        x = self.embed(mel)
        for block in self.blocks:
            normed = block.attn_ln(x)
            x = block.feed(x + block.attn(normed, normed, None))
        return self.ln_post(x)

    def forward_blocks(self, mel: Tensor, tau: int) -> tuple[Tensor, ...]:
        """What a stream with blocks of `tau` frames computes, all at once: training's view.

        Args:
            mel: (B, 80, t)

        Returns:
            Settled features, those of one step before that, and so on to what a block is as the newest:
            1 + `blocks_ahead` times (B, t / 2, d). The newest blocks of a stream never settle; here they do, as if
            the stream went on with nothing.
        """
        x = self.embed(mel)
        n_frames = x.shape[1]
        of_frame = frame_blocks(n_frames, tau, x.device)
        x = x.repeat(1, 1 + blocks_ahead(tau), 1)
        for block in self.blocks:
            normed = block.attn_ln(x)
            q, k, v = block.attn.queries_keys_values(normed)
            x = block.feed(x + block.attn.merge(block_causal_attention(q, k, v, of_frame)))
        return self.ln_post(x).split(n_frames, dim=1)

    def embed(self, mel: Tensor) -> Tensor:
        """(B, 80, t) -> (B, t / 2, d): both convolutions over everything, and positions."""
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        return x + self.positional_embedding[: x.shape[1]]

    # -- as a stream

    def init_state(self, rows: int, chunk: int = 15, chunk_limit: int = 50) -> EncoderState:
        """State of `rows` fresh streams with chunks of `chunk` frames (20 ms each), at most `chunk_limit`."""
        weight, dims, heads = self.conv1.weight, self.dims, self.dims.n_audio_head
        width = dims.n_audio_state
        return EncoderState(
            edges=ConvEdges.fresh(rows, dims.n_mels, width, weight),
            pending=weight.new_zeros(rows, chunk_limit, width),
            pending_fill=torch.zeros(rows, dtype=torch.int64),
            recent=weight.new_zeros(rows, LEAST_AHEAD + 2 * max(chunk_limit, 2 * LEAST_BLOCK), width),
            recent_fill=torch.zeros(rows, dtype=torch.int64),
            chunk=torch.full((rows,), chunk, dtype=torch.int64),
            block=torch.full((rows,), block_of(chunk), dtype=torch.int64),
            cache=KVCache.allocate(dims.n_audio_layer, rows, heads, dims.n_audio_ctx, width // heads, weight),
        )

    def reset(self, state: EncoderState, rows: Tensor, chunk: int) -> None:
        """Makes `rows` equal to fresh ones with chunks of `chunk` frames."""
        assert 0 < chunk <= state.pending.shape[1]
        state.edges.reset(rows)
        state.pending_fill[rows] = 0
        state.recent_fill[rows] = 0
        state.chunk[rows] = chunk
        state.block[rows] = block_of(chunk)
        state.cache.free(rows)

    @staticmethod
    def phase(state: EncoderState, row: int) -> tuple[int, ...]:
        """Rows with equal phases may step together."""
        numbers = (state.chunk, state.pending_fill, state.recent_fill, state.cache.lengths)
        chunk, pending, recent, heard = (int(each[row]) for each in numbers)
        return chunk, pending, recent, int(heard > recent)

    def step(self, mel: Tensor, state: EncoderState, rows: Tensor) -> tuple[Tensor, int, EncoderState]:
        """Encodes every chunk that the new mel frames complete, and the frames that are not settled again.

        Args:
            mel: (B, 80, t) new frames, any t >= 0.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows in the same phase.

        Returns:
            (B, T, d) features, T >= 0, those from the newest block on provisional; how many of them,
            from the first, take the place of the newest features returned before; and the state.
        """
        chunk, fill, replaced, _ = self.phase(state, int(rows[0]))
        assert len({self.phase(state, row) for row in rows.tolist()}) == 1, "rows must be in the same phase"
        x = self.convolve(mel, state.edges, rows)
        at = upload(rows, x.device)
        x = torch.cat([state.pending[at, :fill], x], dim=1)
        # The first chunk of a stream is one frame short (FRAME_LOOKAHEAD).
        features, done, size = x[:, :0], 0, chunk if replaced else chunk - FRAME_LOOKAHEAD
        while x.shape[1] - done >= max(size, 1):
            if size:
                again = int(state.recent_fill[rows[0]])
                encoded = self._encode_chunk(x[:, done : done + size], state, rows, at)
                features = torch.cat([features[:, : features.shape[1] - again], encoded], dim=1)
            done, size = done + size, chunk
        rest = x[:, done:]
        state.pending[at, : rest.shape[1]] = rest
        state.pending_fill[rows] = rest.shape[1]
        return features, replaced if features.shape[1] else 0, state

    def convolve(self, mel: Tensor, edges: ConvEdges, rows: Tensor) -> Tensor:
        """(B, 80, t) -> (B, T, d): both convolutions over carried edges, without padding."""
        at = upload(rows, mel.device)
        mel = _with_edge(mel.to(self.conv1.weight.dtype), edges.mel, edges.mel_fill, rows, at)
        x = mel.new_zeros(len(rows), self.dims.n_audio_state, 0)
        if mel.shape[2] >= 3:
            x = F.gelu(self.conv1.within(mel))
        _keep_edge(mel, mel.shape[2] - x.shape[2], edges.mel, edges.mel_fill, rows, at)
        x = _with_edge(x, edges.conv, edges.conv_fill, rows, at)
        n_frames = max(0, (x.shape[2] - 1) // 2)
        y = x.new_zeros(len(rows), 0, self.dims.n_audio_state)
        if n_frames:
            y = F.gelu(self.conv2.within(x)).transpose(1, 2)
        _keep_edge(x, x.shape[2] - 2 * n_frames, edges.conv, edges.conv_fill, rows, at)
        return y

    def _encode_chunk(self, x: Tensor, state: EncoderState, rows: Tensor, at: Tensor) -> Tensor:
        """The recent frames again and a chunk behind them (B, T, d), through all layers: the features of both.

        Args:
            rows, at: (B,) the same rows on the host and on the device.
        """
        cache, again = state.cache, int(state.recent_fill[rows[0]])
        x = torch.cat([state.recent[at, :again], x], dim=1)
        cache.rewind(rows, again)
        settled, block = int(cache.lengths[rows[0]]), int(state.block[rows[0]])
        recent = x[:, max(0, n_settled(settled + x.shape[1], block) - settled) :]
        state.recent[at, : recent.shape[1]] = recent
        state.recent_fill[rows] = recent.shape[1]
        start = cache.room(rows, x.shape[1])
        features = state.graphs(self._layers, state.cache, [x], [rows, start])
        cache.advance(rows, x.shape[1])
        return features

    def _layers(self, cache: KVCache, x: Tensor, rows: Tensor, start: Tensor) -> Tensor:
        """Frames (B, T, d) that stand at `start` (B,) of their rows -> features; their keys and values are kept."""
        positions = start[:, None] + torch.arange(x.shape[1], device=start.device)
        behind = start + x.shape[1]
        x = x + self.positional_embedding[positions]
        for i, block in enumerate(self.blocks):
            q, k, v = block.attn.queries_keys_values(block.attn_ln(x))
            cache.put(i, rows, start, k, v)
            heads = cached_chunk_attention(q, cache.k[i], cache.v[i], rows, behind)
            x = block.feed(x + block.attn.merge(heads))
        return self.ln_post(x)


def block_of(chunk: int) -> int:
    """Frames per block for chunks of `chunk` frames: as many whole chunks as make LEAST_BLOCK."""
    return -(-LEAST_BLOCK // chunk) * chunk


def blocks_ahead(block: int) -> int:
    """How many blocks of `block` frames a block is encoded together with, as they come, before it settles."""
    return -(-LEAST_AHEAD // block)


def n_settled(n_frames: int, block: int) -> int:
    """How many of the first `n_frames` frames of a stream are in blocks that have settled."""
    n_blocks = (n_frames + FRAME_LOOKAHEAD) // block - blocks_ahead(block)
    return max(0, n_blocks * block - FRAME_LOOKAHEAD)


def frame_blocks(n_frames: int, tau: int, device: torch.device | str = "cpu") -> Tensor:
    """(T,) int64: the block of each frame; blocks end at frames k * tau - FRAME_LOOKAHEAD."""
    return (torch.arange(n_frames, device=device) + FRAME_LOOKAHEAD) // tau


def _with_edge(x: Tensor, edge: Tensor, fill: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    n = int(fill[rows[0]])
    assert bool((fill[rows] == n).all()), "rows must be in the same phase"
    return torch.cat([edge[at, :, 2 - n :], x], dim=2)


def _keep_edge(x: Tensor, n: int, edge: Tensor, fill: Tensor, rows: Tensor, at: Tensor) -> None:
    assert 0 <= n <= 2
    if n:
        edge[at, :, 2 - n :] = x[:, :, x.shape[2] - n :]
    fill[rows] = n
