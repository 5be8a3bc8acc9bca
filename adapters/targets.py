"""Which token may be said when: the decoder's training queries for one window of audio.

At serving time a token's keys and values were computed with the audio that had been heard when it was put out,
and between tokens the decoder is asked again and again with a little more audio and answers EOT, "wait".
Training asks exactly these questions, all of them in one pass over one encoding (the emission-consistent
variant of CarelessWhisper's cuts): every token is predicted with the audio up to its own boundary, and at K
sampled boundaries the position after the tokens said so far must answer EOT.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.data import Example
from asr.encoder import FRAMES_PER_SECOND

IGNORED = -100  # target of positions without a loss
WINDOW_FRAMES = 1500  # all that Whisper's positions can tell apart

#: By how many chunks the tokens lag behind the audio, and the odds. Mostly not at all; a little, because the
#: stability check computes the newest tokens again with later audio; and much, so that a stream that missed a word
#: goes back for it instead of leaving it out.
LAGS = {0: 0.5, 1: 0.2, 2: 0.12, 4: 0.08, 8: 0.05, WINDOW_FRAMES: 0.05}


def chunks(seconds: float, tau: int) -> int:
    """How many chunks of `tau` frames hold `seconds` of audio, the last one filled up with silence."""
    return max(1, min(math.ceil(seconds * FRAMES_PER_SECOND / tau), WINDOW_FRAMES // tau))


@dataclass(frozen=True)
class Queries:
    """Decoder input for one example; the tokens come first, then the wait queries."""

    tokens: list[int]
    positions: list[int]
    seen: list[int]  # how many chunks of audio each position has heard
    targets: list[int]
    n_text: int  # how many are tokens


def plan(
    example: Example,
    prefix: tuple[int, ...],
    eot: int,
    tau: int,
    delay_s: float,
    cuts: int,
    rng: np.random.Generator,
) -> Queries:
    """The queries of one example.

    Args:
        prefix: what stands before the tokens; tells the model `delay_s`.
        tau: frames per chunk.
        delay_s: how long after its word's end a token is due.
        cuts: most wait queries that are asked.
    """
    chunk_s = tau / FRAMES_PER_SECOND
    n_chunks = chunks(example.seconds, tau)
    ends = np.maximum.accumulate(np.array([0.0, *example.ends]))[1:]
    due = np.ceil((ends + delay_s) / chunk_s).astype(np.int64).clip(min=1)
    due = due[due <= n_chunks]  # the audio ends before the others are due
    lag = int(rng.choice(list(LAGS), p=list(LAGS.values())))

    tokens = example.tokens[: len(due)]
    sequence = [*prefix, *tokens]
    start = len(prefix) - 1  # the position that predicts the first token
    seen = np.minimum(due + lag, n_chunks)
    last = int(rng.integers(seen[-1] if len(seen) else 1, n_chunks + 1))
    targets = [IGNORED] * start + list(tokens) + [eot]

    # A wait query at chunk k stands behind the tokens due by then, none of which may have seen more than k.
    said = np.searchsorted(due, np.arange(n_chunks + 1), side="right")  # tokens due by chunk k
    open_chunks = [k for k in range(1, n_chunks + 1) if said[k] == 0 or seen[said[k] - 1] <= k]
    waits = sorted(rng.permutation(open_chunks)[:cuts].tolist())
    # Every query attends to the prefix, so it must not have seen more than the earliest of them.
    seen_by = [min([*waits, *seen[:1].tolist(), last])] * start + seen.tolist() + [last]
    positions = [start + int(said[k]) for k in waits]
    return Queries(
        tokens=sequence + [sequence[p] for p in positions],
        positions=list(range(len(sequence))) + positions,
        seen=seen_by + waits,
        targets=targets + [eot] * len(waits),
        n_text=len(sequence),
    )


@dataclass(frozen=True)
class QueryBatch:
    tokens: Tensor  # (B, Q)
    positions: Tensor  # (B, Q)
    targets: Tensor  # (B, Q)
    self_mask: Tensor  # (B, 1, Q, Q) bool
    cross_mask: Tensor  # (B, 1, Q, V T) bool, over all views of the frames, settled ones first


def collate(queries: list[Queries], block: Tensor, views: int) -> QueryBatch:
    """Pads to one shape; a padded position sees only itself and the first chunk, and has no target.

    Args:
        block: (T,) int64, the block of each frame.
        views: V, how many times a block is encoded. After k chunks block k - 1 is as it looks at first, and
            blocks up to k - V have settled.
    """
    width = max(len(q.tokens) for q in queries)

    def column(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])

    tokens = column([q.tokens for q in queries], 0)
    positions = column([q.positions for q in queries], 0)
    targets = column([q.targets for q in queries], IGNORED)
    newest = column([q.seen for q in queries], 1)[:, :, None] - 1  # (B, Q, 1)
    is_text = torch.arange(width)[None] < torch.tensor([[q.n_text] for q in queries])  # (B, Q)
    earlier = positions[:, None, :] < positions[:, :, None]  # key position before query position
    self_mask = (earlier & is_text[:, None, :]) | torch.eye(width, dtype=torch.bool)
    behind = newest - block  # (B, Q, T) blocks that have come since
    cross_mask = torch.cat([behind >= views - 1, *(behind == n for n in reversed(range(views - 1)))], dim=-1)
    return QueryBatch(tokens, positions, targets, self_mask[:, None], cross_mask[:, None])
