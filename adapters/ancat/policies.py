"""Right contexts that training draws at random, so that every mask a head will ever see is in distribution."""

import numpy as np
import torch
from torch import Tensor

from asr.transducer.schedule import Policy, chunked, layerwise

LONGEST_CHUNK = 18


def random_policy(rng: np.random.Generator, layers: int) -> Policy:
    """One batch's policy: causal, layerwise, chunked, or spans that wander from frame to frame."""
    kind = rng.random()
    if kind < 0.15:
        return layerwise(*[0] * layers)
    if kind < 0.35:
        return layerwise(*rng.integers(0, 5, layers).tolist())
    if kind < 0.6:
        return chunked(int(rng.integers(2, LONGEST_CHUNK + 1)))
    return _wandering(rng)


def _wandering(rng: np.random.Generator) -> Policy:
    """Spans geometric in size, of a mean drawn per batch, held for a few frames each."""
    mean, hold, seed = rng.uniform(0.3, 5.0), int(rng.integers(1, 5)), int(rng.integers(2**31))

    def policy(layer: int, batch: int, n_frames: int, span: int) -> Tensor:
        own = np.random.default_rng((seed, layer))
        drawn = own.geometric(1 / (1 + mean), (batch, -(-n_frames // hold))) - 1
        return torch.from_numpy(drawn.repeat(hold, axis=1)[:, :n_frames].clip(max=span))

    return policy
