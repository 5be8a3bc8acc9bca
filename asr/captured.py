"""What a step computes on a GPU, as one CUDA graph per shape: a launch in place of a hundred, from Python each.

A step divides into what the host decides (rows, lengths, how many tokens) and a *part*: a function of tensors whose
shapes alone the host knows, which writes into preallocated caches. The part is met once as it is, which compiles and
loads what it needs, captured when its shape is met again, and replayed from then on. One that cannot be captured is
launched as it is. On a CPU it is simply called.

Batches are rounded up to powers of two, so that there are few shapes: the last row is repeated, and writes the same
numbers to the same places.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_GRAPHS = 128  # of a state: batches of 1, 2, ... 64 in the few sizes of chunks that clients ask for

_one_capture = threading.Lock()  # CUDA allows a process one at a time

logger = logging.getLogger(__name__)

Part = Callable[..., Tensor]  # (state, *inputs, *numbers) -> (B, ...)


def rounded(n: int) -> int:
    """The power of two that holds `n`."""
    return 1 << (n - 1).bit_length()


@dataclass
class _Shape:
    """A part in one shape: the buffers that it reads, and once it is captured the graph and what that writes."""

    inputs: list[Tensor]  # (rounded B, ...) each
    plan: Tensor  # (n, rounded B) int64, the columns of all numbers
    graph: torch.cuda.CUDAGraph | None = None
    out: Tensor | None = None
    refused: bool = False  # capturing it has failed once

    def fill(self, inputs: Sequence[Tensor], plan: Tensor) -> None:
        for own, x in zip(self.inputs, inputs, strict=True):
            own[: len(x)].copy_(x)
            own[len(x) :].copy_(x[-1:].expand_as(own[len(x) :]))
        self.plan.copy_(plan, non_blocking=True)


class Graphs:
    """The parts of one state, whose tensors the graphs read and write.

    Args:
        device: of that state.
        most: shapes that are kept; beyond them the one that was not used for longest goes.
    """

    def __init__(self, device: torch.device, most: int = MOST_GRAPHS) -> None:
        self.device = device
        self.most = most
        self._shapes: OrderedDict[tuple[object, ...], _Shape] = OrderedDict()
        self._pool: Any = None  # memory that all graphs compute in: one runs at a time
        self._stream: torch.cuda.Stream | None = None

    def __call__(
        self, part: Part, state: object, inputs: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> Tensor:
        """`part(state, *inputs, *numbers)`, on the device.

        Args:
            part: known by its name; it may not ask for what any tensor holds.
            state: always the same.
            inputs: (B, ...) on the device.
            numbers: (B,) or (B, n) int64 on the host, where they go to the device at once.

        Returns:
            (B, ...), the caller's own.
        """
        if self.device.type == "cpu":
            return part(state, *inputs, *numbers)
        n, size = len(numbers[0]), rounded(len(numbers[0]))
        widths = [x.shape[1] if x.dim() == 2 else None for x in numbers]
        key = (part.__name__, size, *(x.shape[1:] for x in inputs), *widths)
        columns = torch.cat([x.reshape(n, -1) for x in numbers], dim=1)
        plan = columns[torch.arange(size).clamp(max=n - 1)].T.contiguous().pin_memory()
        shape, known = self._shape(key, inputs, plan), key in self._shapes
        shape.fill(inputs, plan)

        def run() -> Tensor:
            return part(state, *shape.inputs, *_split(shape.plan, widths))

        if not known:
            self._keep(key, shape)
        elif shape.graph is None and not shape.refused:
            try:
                shape.graph, shape.out = self._captured(run)
            except RuntimeError:  # as all that CUDA and its allocator refuse; nothing has been computed
                shape.refused = True
                logger.warning("no CUDA graph of %s: it is launched step by step", key, exc_info=True)
        if shape.graph is None or shape.out is None:
            return run()[:n]
        shape.graph.replay()
        return shape.out[:n].clone()  # its memory is the next graph's, too

    def _shape(self, key: tuple[object, ...], inputs: Sequence[Tensor], plan: Tensor) -> _Shape:
        if key in self._shapes:
            self._shapes.move_to_end(key)
            return self._shapes[key]
        buffers = [x.new_empty(plan.shape[1], *x.shape[1:]) for x in inputs]
        return _Shape(buffers, torch.empty(plan.shape, dtype=plan.dtype, device=self.device))

    def _keep(self, key: tuple[object, ...], shape: _Shape) -> None:
        self._shapes[key] = shape
        if len(self._shapes) > self.most:
            self._shapes.popitem(last=False)

    def _captured(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of what `run` launches, which it has done before, and where its result will lie."""
        with _one_capture, torch.cuda.device(self.device):
            own = torch.cuda.current_stream()
            if self._stream is None:  # kernels of a graph have the priority of the stream that captured them
                self._stream = torch.cuda.Stream(priority=own.priority)
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on: second passes, and the engines of a pool. A capture that fails may leave its
            # stream the current one, which the outer block puts right.
            with (
                torch.cuda.stream(own),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                out = run()
            return graph, out


def _split(plan: Tensor, widths: Sequence[int | None]) -> list[Tensor]:
    """(n, B) columns -> the (B,) and (B, width) tensors that they were."""
    parts, at = [], 0
    for width in widths:
        parts.append(plan[at] if width is None else plan[at : at + width].T)
        at += width or 1
    return parts
