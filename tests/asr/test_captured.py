"""Parts of a step on a GPU on paper: one capture a shape, the caller's own results, and no wait for the host."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from asr.captured import Graphs
from asr.device import FIRST, own_stream
from tests.paper_gpu import PaperGpu, paper_gpu

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PaperGpu]:
    with paper_gpu(monkeypatch) as gpu:
        yield gpu


@dataclass
class Kept:
    """A state: what each row was given last, and how often Python ran the part."""

    given: Tensor
    n_calls: int = 0


def part(state: Kept, x: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
    """(B, t), (B,), (B, n) -> (B, t), by way of the state."""
    state.n_calls += 1
    state.given[rows] = x
    return state.given[rows] * 2 + steps.sum(1, keepdim=True)


def call(
    graphs: Graphs, state: Kept, rows: list[int], width: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """What the graphs give and what is right, both on the host."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(rows), width, generator=generator)
    steps = torch.randint(9, (len(rows), 2), generator=generator)
    out = graphs(part, state, [x.to(state.given.device)], [torch.tensor(rows), steps])
    return out.cpu(), x * 2 + steps.sum(1, keepdim=True)


def kept(device: torch.device, width: int = 3) -> Kept:
    return Kept(torch.zeros(8, width, device=device))


def test_one_capture_a_shape_at_its_second_meeting(gpu: PaperGpu) -> None:
    graphs, state = Graphs(GPU), kept(GPU)
    for seed, (captures, replays) in enumerate([(0, 0), (1, 1), (1, 2), (1, 3)]):
        rows = [seed, 7, seed + 1]
        own, right = call(graphs, state, rows, seed=seed)
        assert torch.equal(own, right)
        assert (gpu.captures, gpu.replays) == (captures, replays)
    assert state.n_calls == 2


def test_batches_are_rounded_up_and_rows_beyond_change_nothing(gpu: PaperGpu) -> None:
    graphs, state = Graphs(GPU), kept(GPU)
    for rows in ([0, 1, 2, 3], [3, 1, 0], [2, 0, 1, 3], [1, 0, 2]):
        own, right = call(graphs, state, rows)
        assert torch.equal(own, right)
    assert gpu.captures == 1
    assert not state.given[4:].cpu().any()
    call(graphs, state, [0, 1])
    call(graphs, state, [0, 1])
    assert gpu.captures == 2


def test_results_are_the_callers_own(gpu: PaperGpu) -> None:
    """Graphs share memory: the next replay must not change what the last one gave."""
    graphs, state = Graphs(GPU), kept(GPU)
    call(graphs, state, [0])
    x, numbers = torch.ones(1, 3, device=GPU), [torch.tensor([0]), torch.zeros(1, 2, dtype=torch.int64)]
    first = graphs(part, state, [x], numbers)
    second = graphs(part, state, [x * 5], numbers)
    assert (first.tolist(), second.tolist()) == ([[2.0] * 3], [[10.0] * 3])


def test_the_shape_longest_unused_goes(gpu: PaperGpu) -> None:
    graphs, state = Graphs(GPU, most=2), kept(GPU)
    for rows in ([0], [0], [0, 1], [0, 1], [0], [0, 1, 2]):  # the last displace two rows, not one
        call(graphs, state, rows)
    assert (gpu.captures, gpu.replays) == (2, 3)
    call(graphs, state, [0])
    assert (gpu.captures, gpu.replays) == (2, 4)
    for captures in (2, 3):
        own, right = call(graphs, state, [4, 5])
        assert torch.equal(own, right)
        assert gpu.captures == captures


def test_the_host_waits_for_nothing(gpu: PaperGpu) -> None:
    graphs, state = Graphs(GPU), kept(GPU)
    x = torch.ones(3, 3, device=GPU)
    for _ in range(3):
        graphs(part, state, [x], [torch.tensor([0, 1, 2]), torch.zeros(3, 2, dtype=torch.int64)])
    assert gpu.replays == 2 and gpu.waits == []


def test_a_shape_that_cannot_be_captured_is_launched_as_it_is(
    gpu: PaperGpu, caplog: pytest.LogCaptureFixture
) -> None:
    """What reads a tensor may not be captured. It says so once, and other shapes and parts are captured as ever."""

    def asks(state: None, x: Tensor, rows: Tensor) -> Tensor:
        return x * float(x[0, 0]) if len(x) == 1 else x * 3

    graphs, numbers = Graphs(GPU), [torch.tensor([0])]
    for number in range(4):
        x = torch.full((1, 3), float(number), device=GPU)
        assert graphs(asks, None, [x], numbers).tolist() == [[number**2] * 3]
        assert gpu.stream is gpu.default
    assert gpu.captures == 0 and gpu.replays == 0
    (said,) = caplog.records
    assert said.levelname == "WARNING" and "asks" in said.getMessage()
    for _ in range(2):
        assert (
            graphs(asks, None, [torch.ones(2, 3, device=GPU)], [torch.tensor([0, 1])]).tolist()
            == [[3] * 3] * 2
        )
    assert (gpu.captures, gpu.replays) == (1, 1)
    assert len(caplog.records) == 1


def test_kernels_are_captured_with_the_priority_of_their_thread(gpu: PaperGpu) -> None:
    own_stream(GPU, FIRST)
    graphs, state = Graphs(GPU), kept(GPU)
    for _ in range(3):
        own, right = call(graphs, state, [0, 1])
        assert torch.equal(own, right)
    assert gpu.replays == 2  # the GPU on paper compares the priorities


def test_on_a_cpu_it_is_simply_called() -> None:
    state = kept(torch.device("cpu"))
    graphs = Graphs(torch.device("cpu"))
    for n in range(1, 4):
        own, right = call(graphs, state, [2, 4, 1])
        assert torch.equal(own, right) and state.n_calls == n
