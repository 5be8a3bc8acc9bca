"""The streaming twin of the adaptive layers: exact, ragged, and as late as the recursion says."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.transducer.encoder import AdaptiveEncoder, EncoderDims
from asr.transducer.executor import PIECE, Executor, Ready
from asr.transducer.schedule import Policy, chunked, layerwise

DIMS = EncoderDims(features=12, width=16, heads=2, layers=3, span=4, left=6)
POLICIES = {
    "adaptive": None,
    "causal": layerwise(0, 0, 0),
    "layerwise": layerwise(4, 0, 2),
    "chunked": chunked(5),
}


@pytest.fixture(scope="module")
def encoder() -> AdaptiveEncoder:
    """A random encoder whose schedulers answer yes and no, frame by frame."""
    torch.manual_seed(3)
    encoder = AdaptiveEncoder(DIMS).eval().requires_grad_(False)
    for layer in encoder.layers:
        layer.scheduler.own.weight.normal_(0, 0.5)
        layer.scheduler.offer.weight.normal_(0, 0.5)
        layer.scheduler.own.bias.fill_(0.5)
    return encoder


def features(rows: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, n, DIMS.features, generator=torch.Generator().manual_seed(seed))


@contextmanager
def narrowest(encoder: AdaptiveEncoder) -> Iterator[list[float]]:
    """Collects by how much each layer's closest decision was taken."""
    margins: list[float] = []

    def note(_: object, __: object, logits: Tensor) -> None:
        margins.append(float(logits.abs().min()))

    hooks = [layer.scheduler.register_forward_hook(note) for layer in encoder.layers]
    yield margins
    for hook in hooks:
        hook.remove()


def stream(executor: Executor, x: Tensor, sizes: list[int]) -> Ready:
    """One stream fed in pieces of `sizes`, then ended."""
    state, row = executor.init_state(3), torch.tensor([1])
    parts, start = [], 0
    for size in [*sizes, x.shape[1]]:
        piece = x[:, start : start + size]
        start += piece.shape[1]
        ready, state = executor.step(piece, state, row, ending=start == x.shape[1])
        assert int(ready.counts) == ready.frames.shape[1]
        parts.append(ready)
        if start == x.shape[1]:
            break
    return Ready(
        torch.cat([p.frames for p in parts], 1),
        sum(p.counts for p in parts),
        torch.cat([p.done for p in parts], 1),
    )


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@given(n=st.integers(1, 90), sizes=st.lists(st.integers(0, PIECE + 9), max_size=30))
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_a_stream_equals_everything_at_once(
    encoder: AdaptiveEncoder, policy: Policy | None, n: int, sizes: list[int]
) -> None:
    x = features(1, n, seed=n)
    with narrowest(encoder) as margins:
        whole, schedule = encoder(x, torch.tensor([n]), policy)
    assume(min(margins, default=1.0) > 1e-5)  # of yes and no; rounding may turn what is closer
    ready = stream(Executor(encoder, policy), x, sizes)
    torch.testing.assert_close(ready.frames, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(ready.done, schedule.done)


def test_spans_vary(encoder: AdaptiveEncoder) -> None:
    """Else the tests above would prove little."""
    _, schedule = encoder(features(1, 80), torch.tensor([80]))
    assert all(len(span.unique()) >= 3 for span in schedule.spans)


def test_a_frame_comes_out_with_the_feature_that_completes_it(encoder: AdaptiveEncoder) -> None:
    x, executor, row = features(1, 60), Executor(encoder), torch.tensor([0])
    _, schedule = encoder(x, torch.tensor([60]))
    state, clock = executor.init_state(1), []
    for i in range(60):
        ready, state = executor.step(x[:, i : i + 1], state, row, ending=i == 59)
        clock += [i] * int(ready.counts)
    assert clock == schedule.done[0].tolist()


def test_ragged_rows_equal_each_alone(encoder: AdaptiveEncoder) -> None:
    """Rows that have heard different amounts and wait for different spans step together; strangers stay NaN."""
    executor, lengths = Executor(encoder), (47, 30, 64)
    x = features(3, 64, seed=9)
    state = executor.init_state(4)
    for layer in state.layers:
        for ring in (layer.x, layer.k, layer.v, layer.offer):
            ring.fill_(torch.nan)
    heard: list[list[Tensor]] = [[], [], []]
    for start in range(0, 64, 4):
        here = [b for b in range(3) if start < lengths[b]]
        ready, state = executor.step(x[here, start : start + 4], state, torch.tensor(here))
        for i, b in enumerate(here):
            heard[b].append(ready.frames[i, : ready.counts[i]])
    for b, n in enumerate(lengths):
        n_heard = -(-n // 4) * 4
        ready, state = executor.step(x[b : b + 1, :0], state, torch.tensor([b]), ending=True)
        alone = stream(Executor(encoder), x[b : b + 1, :n_heard], [n_heard])
        torch.testing.assert_close(torch.cat([*heard[b], ready.frames[0]])[None], alone.frames)


def test_reset_equals_fresh(encoder: AdaptiveEncoder) -> None:
    executor, x, row = Executor(encoder), features(1, 40), torch.tensor([0])
    state = executor.init_state(1)
    first, state = executor.step(x, state, row, ending=True)
    executor.reset(state, row)
    again, state = executor.step(x, state, row, ending=True)
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.done, again.done)


def test_nothing_is_waited_for_without_lookahead(encoder: AdaptiveEncoder) -> None:
    executor = Executor(encoder, layerwise(0, 0, 0))
    ready, _ = executor.step(features(1, 10), executor.init_state(1), torch.tensor([0]))
    assert ready.counts.tolist() == [10]
    assert ready.done.tolist() == [list(range(10))]
