"""When frames are done: the recursion against a walk over every dependency, and its differentiable twin."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.transducer.schedule import (
    Scheduler,
    chunked,
    clamp_to_end,
    completion,
    layerwise,
    right_of,
    soft_completion,
    soft_right_of,
    spans_of,
)

SPAN = 5


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Tensor], Tensor]:
    """Spans (B, T) of a few layers, and the rows' lengths."""
    batch, n_frames, layers = draw(st.integers(1, 3)), draw(st.integers(1, 14)), draw(st.integers(1, 4))
    row = st.lists(st.integers(0, SPAN), min_size=n_frames, max_size=n_frames)
    rows = st.lists(row, min_size=batch, max_size=batch)
    spans = [torch.tensor(draw(rows)) for _ in range(layers)]
    lengths = draw(st.lists(st.integers(1, n_frames), min_size=batch, max_size=batch))
    return spans, torch.tensor(lengths)


def newest_needed(spans: list[list[int]], length: int, frame: int) -> int:
    """The newest input on any way back from a frame of the last layer: a walk over time x layers, node by node.

    A node needs all that it sees in the layer below, and its forerunner: frames come out in order.
    """
    waiting, seen, newest = [(len(spans), frame)], set(), 0
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        layer, i = node
        if layer == 0:
            newest = max(newest, i)
            continue
        last = min(i + spans[layer - 1][i], length - 1)
        waiting += [(layer - 1, j) for j in range(last + 1)]
        if i:
            waiting.append((layer, i - 1))
    return newest


@given(schedules())
def test_completion_is_what_a_walk_over_all_dependencies_finds(drawn: tuple[list[Tensor], Tensor]) -> None:
    spans, lengths = drawn
    done = completion(spans, lengths)
    for row, length in enumerate(lengths.tolist()):
        own = [layer[row].tolist() for layer in spans]
        expected = [newest_needed(own, length, i) for i in range(length)]
        assert done[row, :length].tolist() == expected


@given(schedules())
def test_soft_completion_of_hard_masks_is_completion(drawn: tuple[list[Tensor], Tensor]) -> None:
    spans, lengths = drawn
    rights = [clamp_to_end(right_of(layer, SPAN), lengths) for layer in spans]
    done, soft = completion(spans, lengths), soft_completion(rights)
    for row, length in enumerate(lengths.tolist()):
        assert soft[row, :length].tolist() == done[row, :length].tolist()


def test_soft_masks_understate_the_latency() -> None:
    """A soft mask is the odds of spans: the latency to expect of all their outcomes is never below the soft one."""
    n_frames, lengths, generator = 4, torch.tensor([4]), torch.Generator().manual_seed(0)
    for _ in range(5):
        right = clamp_to_end(torch.rand(1, n_frames, 2, generator=generator).cumprod(-1), lengths)
        at_least = torch.cat([torch.ones(n_frames, 1), right[0], torch.zeros(n_frames, 1)], dim=1)
        odds = -at_least.diff(dim=1)  # (T, 3) of a span of 0, 1 and 2
        expected = torch.zeros(n_frames)
        for outcome in product(range(3), repeat=n_frames):
            spans = torch.tensor(outcome)
            likely = odds.gather(1, spans[:, None]).prod()
            expected += likely * completion([spans[None]], lengths)[0]
        soft = soft_completion([right])[0]
        assert (soft <= expected + 1e-5).all()
        assert (soft < expected - 1e-3).any()


def test_more_waiting_is_never_sooner_and_its_gradient_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 30, SPAN, generator=generator).requires_grad_() for _ in range(3)]
    lengths = torch.tensor([30, 17])
    rights = [clamp_to_end(soft_right_of(layer, 0.5), lengths) for layer in logits]
    soft_completion(rights).sum().backward()
    for layer in logits:
        assert layer.grad is not None
        assert (layer.grad >= 0).all()
        assert (layer.grad[0] > 0).any(dim=-1).float().mean() > 0.5
        assert (layer.grad[1, 16:] == 0).all()


def test_adding_up_spans_understates_the_latency() -> None:
    """One frame that waits delays all behind it: the reason for the recursion."""
    spans = [torch.tensor([[4, 0, 0, 0, 0, 0, 0, 0]])] * 2
    latency = completion(spans, torch.tensor([8])) - torch.arange(8)
    assert latency.tolist() == [[4, 3, 2, 1, 0, 0, 0, 0]]
    spans = [torch.tensor([[0, 0, 0, 0, 3, 0, 0, 0]]), torch.tensor([[0, 3, 0, 0, 0, 0, 0, 0]])]
    latency = completion(spans, torch.tensor([8])) - torch.arange(8)
    assert latency.tolist() == [[0, 6, 5, 4, 3, 2, 1, 0]]  # 21 frames of waiting, where the spans add up to 6


@given(frame=st.integers(0, 11), seed=st.integers(0, 5))
def test_whether_to_wait_is_decided_by_what_has_come(frame: int, seed: int) -> None:
    """The question after r frames of waiting is answered from frames up to i + r."""
    torch.manual_seed(seed)
    scheduler, x = Scheduler(8, SPAN), torch.randn(1, 12, 8)
    other = x.clone()
    other[:, frame:] = torch.randn(1, 12 - frame, 8)
    newest = torch.arange(12)[:, None] + torch.arange(SPAN)  # frame that each answer rests on
    same = (scheduler(x) == scheduler(other))[0]
    assert same[newest < frame].all()
    assert not same[(newest >= frame) & (newest < 12)].any()


def test_a_span_is_the_number_of_leading_yeses() -> None:
    logits = torch.tensor([[[-1.0, 9, 9], [9, -1, 9], [0, 1, -1], [3, 2, 1]]])
    assert spans_of(logits).tolist() == [[0, 1, 2, 3]]
    assert right_of(spans_of(logits), 3).tolist() == [[[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert (
        soft_right_of(logits, 1e-3)[0, [0, 1, 3]] - right_of(spans_of(logits), 3)[0, [0, 1, 3]]
    ).abs().max() < 1e-6


@pytest.mark.parametrize("size", [1, 3, 4, SPAN + 1])
def test_a_chunk_is_done_with_its_last_frame(size: int) -> None:
    spans = [chunked(size)(layer, 2, 13, SPAN) for layer in range(3)]
    done = completion(spans, torch.tensor([13, 8]))
    for row, length in enumerate((13, 8)):
        ends = [min(i // size * size + size, length) - 1 for i in range(length)]
        assert done[row, :length].tolist() == ends


def test_layers_wait_one_after_another() -> None:
    spans = [layerwise(2, 0, 9)(layer, 1, 20, SPAN) for layer in range(3)]
    done = completion(spans, torch.tensor([20]))
    assert done.tolist() == [[min(i + 2 + SPAN, 19) for i in range(20)]]
