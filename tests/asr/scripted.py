"""A decoder that follows a script, for tests of searches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.cache import KVCache
from asr.checkpoint import Vocabulary
from asr.decoder import DecoderState
from asr.search import GreedySearch, Hypothesis, Search, SearchState

N_TOKENS = 10  # 0..9 are text
EOT = 10
PREFIX = (11, 12)
TEXT_CTX = 80

Script = Callable[[list[int], list[int]], list[float]]  # (text tokens, audio) -> logits of what follows


class ScriptedDecoder:
    """A decoder whose frames are integers and whose logits a script tells; caches and padding are real."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.n_fed = 0
        self.ln = torch.nn.LayerNorm(1).requires_grad_(False)
        self.dims = Dims(TEXT_CTX)

    def init_state(self, rows: int) -> DecoderState:
        like = self.ln.weight
        return DecoderState(
            audio=KVCache.allocate(1, rows, 1, 100, 1, like),
            text=KVCache.allocate(1, rows, 1, TEXT_CTX, 1, like),
        )

    def reset(self, state: DecoderState, rows: Tensor) -> None:
        state.audio.free(rows)
        state.text.free(rows)

    def listen(self, features: Tensor, state: DecoderState, rows: Tensor, replaced: int = 0) -> None:
        state.audio.rewind(rows, replaced)
        state.audio.write(0, rows, features[:, None], features[:, None])
        state.audio.advance(rows, features.shape[1])

    def hidden(
        self,
        tokens: Tensor,
        state: DecoderState,
        rows: Tensor,
        audio_rows: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        audio_rows = rows if audio_rows is None else audio_rows
        self.n_fed += 1
        state.text.write(0, rows, tokens[:, None, :, None].float(), tokens[:, None, :, None].float())
        before = state.text.lengths[rows].tolist()
        state.text.advance(rows, tokens.shape[1] if counts is None else counts)
        out = torch.full(
            (*tokens.shape, EOT + 1 + len(PREFIX)), 99.0
        )  # specials beyond EOT always score best
        for i, (row, audio_row) in enumerate(zip(rows.tolist(), audio_rows.tolist(), strict=True)):
            said, heard = contents(state.text, row), contents(state.audio, audio_row)
            for t in range(tokens.shape[1]):
                text = said[len(PREFIX) : before[i] + t + 1]
                out[i, t, : EOT + 1] = torch.tensor(self.script(text, heard))
        return out

    @staticmethod
    def project(hidden: Tensor) -> Tensor:
        """What the script tells are logits already."""
        return hidden


@dataclass(frozen=True)
class Dims:
    n_text_ctx: int


def contents(cache: KVCache, row: int) -> list[int]:
    return cache.k[0, row, 0, : int(cache.lengths[row]), 0].int().tolist()


def favour(token: int, by: float = 5.0) -> list[float]:
    return [by if i == token else 0.0 for i in range(EOT + 1)]


def dictation(text: list[int], heard: list[int]) -> list[float]:
    """Each frame says its number; 0 is silence. What has been said is not looked at, but counted."""
    spoken = [frame for frame in heard if frame]
    return favour(spoken[len(text)] if len(text) < len(spoken) else EOT)


def whim(text: list[int], heard: list[int]) -> list[float]:
    """Another opinion with every token and every eight frames, and often EOT."""
    g = torch.Generator().manual_seed(hash((*text, -1, heard[0], len(heard) // 8)) % 2**31)
    logits = torch.randn(EOT + 1, generator=g)
    logits[EOT] += 1
    return logits.tolist()


def digits(text: str) -> list[int]:
    return [int(char) for char in text if char.isdecimal()]


@dataclass(frozen=True)
class DigitTokenizer:
    """Every digit is a token; spaces are nothing."""

    sot_prev: int = 13

    def encode(self, text: str, disallowed_special: tuple[str, ...]) -> list[int]:
        return digits(text)


VOCABULARY = Vocabulary(DigitTokenizer(), PREFIX, EOT)


def search_over(script: Script, kind: type[Search] = GreedySearch, **options) -> Search:
    return kind(ScriptedDecoder(script), VOCABULARY, **options)


def frames(*numbers: int) -> Tensor:
    """One stream's features (1, T, 1)."""
    return torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1)


def hear(
    search: Search, state: SearchState, *numbers: int, row: int = 0, max_tokens: int = 20, replaced: int = 0
) -> Hypothesis:
    (hypothesis,), _ = search.step(frames(*numbers), state, torch.tensor([row]), max_tokens, replaced)
    return hypothesis
