"""Tokens x features -> logits: Whisper's decoder, fed audio as it arrives.

`listen` appends cross-attention keys and values once per encoder frame; `logits` appends the tokens' own
keys and values. Both caches can be rewound. Rows are streams and may be at different places.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.cache import KVCache
from asr.captured import Graphs, rounded
from asr.layers import CrossBlock, linear
from asr.weights import Dims
from kernels.int8_linear import padded
from kernels.limit_cross_attention import limit_cross_attention


@dataclass(frozen=True)
class DecoderState:
    """One row per stream."""

    audio: KVCache  # cross-attention, one entry per encoder frame
    text: KVCache  # self-attention, one entry per token
    graphs: Graphs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graphs", Graphs(self.text.k.device))


class Decoder(nn.Module):
    def __init__(self, dims: Dims) -> None:
        super().__init__()
        width = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.n_text_ctx, width))
        blocks = nn.ModuleList(CrossBlock(width, dims.n_text_head) for _ in range(dims.n_text_layer))
        self.blocks = cast("Sequence[CrossBlock]", blocks)
        self.ln = nn.LayerNorm(width)
        self.unembedding: nn.Module | None = (
            None  # the embedding's product in another type, see asr/precision.py
        )
        self.dims = dims

    # -- everything at once: training and alignment

    def forward(
        self,
        tokens: Tensor,
        features: Tensor,
        positions: Tensor,
        self_mask: Tensor,
        cross_mask: Tensor | None,
    ) -> Tensor:
        """Hidden states of all tokens at once; `project` turns the wanted ones into logits.

        Args:
            tokens, positions: (B, u) int64; `positions` index the positional embedding.
            features: (B, T, d) of the encoder.
            self_mask: (B|1, 1, u, u) bool; cross_mask: (B, 1, u, T) bool, True where allowed.

        Returns:
            (B, u, d)
        """
        x = self.token_embedding(tokens) + self.positional_embedding[positions]
        for block in self.blocks:
            normed = block.attn_ln(x)
            x = x + block.attn(normed, normed, self_mask)
            x = block.feed(x + block.cross_attn(block.cross_attn_ln(x), features, cross_mask))
        return self.ln(x)

    def project(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) logits, tied to the token embedding."""
        if self.unembedding is not None:
            return cast(Tensor, self.unembedding(hidden))
        return linear(hidden, self.token_embedding.weight.to(hidden.dtype))

    def alignment_pass(
        self, tokens: Tensor, heads: list[tuple[int, int]], audio: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forces one sequence and tells what chosen cross-attention heads look at.

        Args:
            tokens: (1, u)
            heads: (layer, head) pairs.
            audio: each layer's cross-attention keys and values (1, H, T, D): `keys_values` or `heard`.

        Returns:
            (n_heads, u, T) scores before the softmax, and (u, d) hidden states.
        """
        u, context = tokens.shape[1], self.dims.n_text_ctx
        # As `padded` says; nothing before the padding sees it.
        tokens = F.pad(tokens, (0, min(padded(u), context) - u))
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=x.device).tril()
        scores: dict[tuple[int, int], Tensor] = {}
        for i, (block, (k, v)) in enumerate(zip(self.blocks, audio, strict=True)):
            normed = block.attn_ln(x)
            x = x + block.attn(normed, normed, causal)
            q = block.cross_attn.queries(block.cross_attn_ln(x)).to(k.dtype)
            for head in (head for layer, head in heads if layer == i):
                scores[i, head] = q[0, head, :u].float() @ k[0, head].float().T * q.shape[-1] ** -0.5
            x = block.feed(x + block.cross_attn.merge(F.scaled_dot_product_attention(q, k, v).to(x.dtype)))
        return torch.stack([scores[pair] for pair in heads]), self.ln(x)[0, :u]

    def keys_values(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's cross-attention keys and values (B, H, T, D) of features (B, T, d)."""
        return [block.cross_attn.keys_values(features) for block in self.blocks]

    @staticmethod
    def heard(state: "DecoderState", row: int) -> list[tuple[Tensor, Tensor]]:
        """Each layer's cross-attention keys and values (1, H, T, D) of all that `row` has heard."""
        n = int(state.audio.lengths[row])
        layers = range(state.audio.k.shape[0])
        return [(state.audio.k[i, row, None, :, :n], state.audio.v[i, row, None, :, :n]) for i in layers]

    # -- as a stream

    def init_state(self, rows: int) -> DecoderState:
        dims, heads = self.dims, self.dims.n_text_head
        width, like = dims.n_text_state // heads, self.token_embedding.weight
        return DecoderState(
            audio=KVCache.allocate(dims.n_text_layer, rows, heads, dims.n_audio_ctx, width, like),
            text=KVCache.allocate(dims.n_text_layer, rows, heads, dims.n_text_ctx, width, like),
        )

    def reset(self, state: DecoderState, rows: Tensor) -> None:
        """Makes `rows` equal to fresh ones."""
        state.audio.free(rows)
        state.text.free(rows)

    def listen(self, features: Tensor, state: DecoderState, rows: Tensor, replaced: int = 0) -> None:
        """Appends encoder frames (B, T, d) to what `rows` (B,) have heard, the newest `replaced` frames dropped."""
        state.audio.rewind(rows, replaced)
        if n := features.shape[1]:
            state.graphs(self._listen, state, [features], [rows, state.audio.room(rows, n)])
            state.audio.advance(rows, n)

    def _listen(self, state: DecoderState, features: Tensor, rows: Tensor, start: Tensor) -> Tensor:
        for i, (k, v) in enumerate(self.keys_values(features)):
            state.audio.put(i, rows, start, k, v)
        return start

    def logits(
        self, tokens: Tensor, state: DecoderState, rows: Tensor, audio_rows: Tensor | None = None
    ) -> Tensor:
        """(B, u) -> (B, u, V): `hidden`, and what follows each token."""
        return self.project(self.hidden(tokens, state, rows, audio_rows)).float()

    def hidden(
        self,
        tokens: Tensor,
        state: DecoderState,
        rows: Tensor,
        audio_rows: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Appends `tokens` (B, u) and returns their hidden states (B, u, d), which `project` turns into logits.

        Every token sees all audio heard so far. A row with fewer than u tokens is padded on the right: what
        stands there counts for nothing, and the others come out as if it were not there.

        Args:
            tokens: on the host, wherever the model is.
            rows: (B,) rows of the text.
            audio_rows: (B,) what each of them listens to, where several texts are made of the same audio.
            counts: (B,) int64 on the host, the tokens of each row; None: u.
        """
        audio_rows = rows if audio_rows is None else audio_rows
        n, start = tokens.shape[1], state.text.room(rows, tokens.shape[1])
        counts = torch.full_like(rows, n) if counts is None else counts
        if state.graphs.device.type != "cpu":  # padded likewise, so that there are few shapes
            most = state.text.capacity - int(start.max())
            tokens = F.pad(tokens, (0, min(rounded(n), most) - n))
        numbers = [tokens, counts, rows, audio_rows, start, state.audio.lengths[audio_rows]]
        hidden = state.graphs(self._hidden, state, [], numbers)
        state.text.advance(rows, counts)
        return hidden[:, :n]

    def _hidden(
        self,
        state: DecoderState,
        tokens: Tensor,
        counts: Tensor,
        rows: Tensor,
        audio_rows: Tensor,
        start: Tensor,
        heard: Tensor,
    ) -> Tensor:
        """`hidden` of tokens that stand at `start` (B,) of their rows, when `heard` (B,) frames have come."""
        order = torch.arange(tokens.shape[1], device=start.device)
        positions = start[:, None] + order  # (B, u)
        own = order < counts[:, None]
        text_limits, audio_limits = (positions + 1) * own, heard[:, None] * own
        x = self.token_embedding(tokens) + self.positional_embedding[positions]
        for i, block in enumerate(self.blocks):
            q, k, v = block.attn.queries_keys_values(block.attn_ln(x))
            state.text.put(i, rows, start, k, v)
            heads = limit_cross_attention(q, state.text.k[i], state.text.v[i], rows, text_limits)
            x = x + block.attn.merge(heads)
            q = block.cross_attn.queries(block.cross_attn_ln(x))
            heads = limit_cross_attention(q, state.audio.k[i], state.audio.v[i], audio_rows, audio_limits)
            x = block.feed(x + block.cross_attn.merge(heads))
        return self.ln(x)
