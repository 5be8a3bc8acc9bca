"""Random right contexts: of every kind, within bounds, the same for the same draw."""

from collections import Counter

import numpy as np
import pytest
import torch

from adapters.ancat.policies import LONGEST_CHUNK, random_policy
from asr.transducer.schedule import named

LAYERS, SPAN, N = 3, 16, 40


def kind(spans: torch.Tensor) -> str:
    """What (L, B, T) spans look like."""
    if not spans.any():
        return "causal"
    if (spans == spans[:, :, :1]).all():
        return "layerwise"
    steps = spans.diff(dim=-1)
    saws = (steps == -1) | (steps > 0) | ((spans[..., 1:] == SPAN) & (steps == 0))
    return "chunked" if saws.all() and (spans == spans[0, 0]).all() else "wandering"


def test_every_kind_is_drawn_and_none_looks_too_far() -> None:
    seen: Counter[str] = Counter()
    means = []
    for seed in range(200):
        policy = random_policy(np.random.default_rng(seed), LAYERS)
        spans = torch.stack([policy(layer, 2, N, SPAN) for layer in range(LAYERS)])
        assert spans.shape == (LAYERS, 2, N)
        assert spans.dtype == torch.int64
        assert spans.min() >= 0
        assert spans.max() <= SPAN
        seen[kind(spans)] += 1
        if kind(spans) == "wandering":
            means.append(float(spans.float().mean()))
            assert not torch.equal(spans[0], spans[1])
            assert not torch.equal(spans[0, 0], spans[0, 1])
        if kind(spans) == "chunked":
            assert spans.max() < LONGEST_CHUNK
    assert set(seen) == {"causal", "layerwise", "chunked", "wandering"}
    assert min(seen.values()) >= 15
    assert min(means) < 1 < 3 < max(means)


def test_the_same_draw_is_the_same_policy() -> None:
    for seed in range(20):
        one, same = (random_policy(np.random.default_rng(seed), LAYERS) for _ in range(2))
        for layer in (2, 0, 1, 2):
            assert torch.equal(one(layer, 2, N, SPAN), same(layer, 2, N, SPAN))


def test_controls_have_names() -> None:
    assert named("adaptive", LAYERS) is None
    layered, cut, causal = (
        named("layerwise:2,0,1", LAYERS),
        named("chunked:3", LAYERS),
        named("causal", LAYERS),
    )
    assert layered is not None
    assert cut is not None
    assert causal is not None
    assert [layered(layer, 1, 2, SPAN).tolist() for layer in range(LAYERS)] == [[[2, 2]], [[0, 0]], [[1, 1]]]
    assert cut(0, 1, 5, SPAN).tolist() == [[2, 1, 0, 2, 1]]
    assert not causal(1, 1, 5, SPAN).any()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "later",
        "chunked",
        "chunked:0",
        "chunked:a",
        "chunked:1,2",
        "layerwise:1,1",
        "layerwise:1,1,-1",
        "causal:3",
    ],
)
def test_what_is_no_policy_is_told_what_is(name: str) -> None:
    with pytest.raises(ValueError, match=f"no policy {name!r}: choose adaptive, causal, chunked:SIZE"):
        named(name, LAYERS)
