"""A GPU on paper: tensors that say they lie on cuda:0 and are computed by the CPU, for machines that have no GPU.

What a GPU would refuse or make the host wait for shows: tensors of both sides in one operation raise; copies that the
host waits for, and answers that it reads, are written down. CUDA graphs are recorded operation by operation and
replayed on the same buffers, without the Python around them, so a number of the host's that was baked in shows, too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.limit_cross_attention import limit_cross_attention
from kernels.slot_append import slot_append

ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
#: Where PyTorch takes indices from the host, and copies them while the host waits.
INDEXING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN._index_put_impl_.default}
#: What the host must know of to go on.
QUESTIONS = {
    ATEN._local_scalar_dense.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.equal.default,
}
PINNED = "_is_pinned_on_paper"


class PaperTensor(Tensor):
    """Numbers of the CPU's that are said to lie on the GPU."""

    data_: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> "PaperTensor":
        made: PaperTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, data.shape, data.stride(), dtype=data.dtype, device=torch.device("cuda", 0)
        )
        made.data_ = data
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of a GPU on paper that is put away")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PaperTensor({self.data_})"


class PaperGpu(TorchDispatchMode):
    """While it is entered, cuda:0 is on paper.

    Attributes:
        waits: the operations at which the host waited for the GPU, in order.
        captures, replays: how many graphs were captured, and how often any ran.
        stream: the current one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.captures = self.replays = 0
        self.recording: list[Callable[[], None]] | None = None
        self.default = self.stream = PaperStream()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, PaperTensor)]
        wanted = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not there and wanted != "cuda":
            return func(*args, **kwargs)
        here = [x for x in tensors if not isinstance(x, PaperTensor) and x.dim()]
        leaves = wanted == "cpu" or (func is ATEN.copy_.default and not isinstance(args[0], PaperTensor))
        if func in COPIES and (here or leaves):
            flags = [*args[2:], kwargs.get("non_blocking")]
            if leaves or True not in flags or not all(getattr(x, PINNED, False) for x in here):
                self.wait(func)
        elif here and func in INDEXING:
            self.wait(func)
        elif here:
            raise RuntimeError(f"{func}: tensors of the host and of the GPU")
        if func in QUESTIONS or (func in INDEXING and any(x.dtype == torch.bool for x in _indices(args))):
            self.wait(func)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("non_blocking", None)
        inner_args, inner_kwargs = pytree.tree_map_only(PaperTensor, lambda x: x.data_, (args, kwargs))
        aliases = func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns)
        out = self.launch(lambda: func(*inner_args, **inner_kwargs), aliases=aliases)
        if leaves:
            return args[0] if func is ATEN.copy_.default else out
        if func._schema.is_mutable and isinstance(args[0], PaperTensor):
            return args[0]  # in place
        return pytree.tree_map_only(Tensor, PaperTensor, out)

    def launch(self, run: Callable[[], Any], *, aliases: bool) -> Any:
        """What `run` computes; `aliases` if its results lie where its arguments do."""
        out = run()
        if self.recording is not None:

            def again() -> None:
                new = run()
                if not aliases:
                    for old, x in zip(pytree.tree_leaves(out), pytree.tree_leaves(new), strict=True):
                        old.copy_(x)

            self.recording.append(again)
        return out

    def wait(self, func: Any) -> None:
        if self.recording is not None:
            raise RuntimeError(f"{func}: not permitted while a stream is captured")
        self.waits.append(str(func))

    # -- what stands in for torch.cuda and Triton

    @contextmanager
    def capture(
        self, graph: "PaperGraph", pool: object, stream: "PaperStream", *, capture_error_mode: str
    ) -> Iterator[None]:
        assert pool is not None and capture_error_mode == "thread_local"
        assert self.recording is None, "one capture at a time"
        assert stream.priority == self.stream.priority, (
            "kernels keep the priority that they are captured with"
        )
        own, self.stream, self.recording = self.stream, stream, graph.launches
        try:
            yield
        finally:
            self.recording = None
        self.stream = own  # not where it fails, as torch
        self.captures += 1

    @contextmanager
    def within(self, stream: "PaperStream") -> Iterator[None]:
        own, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = own

    def set_stream(self, stream: "PaperStream") -> None:
        self.stream = stream

    def attention(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, limits: Tensor) -> Tensor:
        given = self.numbers(q, k_cache, v_cache, slots, limits)
        return PaperTensor(self.launch(lambda: limit_cross_attention(*given), aliases=False))

    def append(self, *tensors: Tensor) -> None:
        given = self.numbers(*tensors)
        self.launch(lambda: slot_append(*given), aliases=True)

    @staticmethod
    def numbers(*tensors: Tensor) -> list[Tensor]:
        """What the tensors hold, which must all lie on the GPU: from the host, a launch would wait for them."""
        assert all(isinstance(x, PaperTensor) for x in tensors)
        return [x.data_ for x in tensors if isinstance(x, PaperTensor)]


class PaperStream:
    """Stands in for torch.cuda.Stream. All is done at once on paper; which streams one waits for is written down."""

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        self.priority = priority
        self.awaited: list[PaperStream] = []

    def wait_stream(self, other: "PaperStream") -> None:
        self.awaited.append(other)

    def record_event(self) -> "PaperStream":
        """What has been launched here so far: on paper, the stream itself."""
        return self

    wait_event = wait_stream


class PaperGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    gpu: PaperGpu

    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    def replay(self) -> None:
        self.gpu.replays += 1
        for again in self.launches:
            again()


def _indices(args: Any) -> list[Tensor]:
    return [x for x in args[1] if isinstance(x, Tensor)]


def pinned(x: Tensor) -> Tensor:
    """Stands in for Tensor.pin_memory."""
    copy = x.clone()
    setattr(copy, PINNED, True)
    return copy


_make_tensor = torch.tensor


def _tensor(data: Any, *, device: torch.device | str | None = None, **how: Any) -> Tensor:
    """Stands in for torch.tensor, which brings numbers to a device where no mode sees it."""
    made = _make_tensor(data, **how)
    return made if device is None else made.to(device)


@contextmanager
def paper_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PaperGpu]:
    """A GPU to compute on within the block."""
    gpu = PaperGpu()
    if torch.cuda.is_available():
        torch.cuda.init()  # a real one must not be taken for initialised by what follows
    torch._C._ensureCUDADeviceGuardSet()  # else the driver is asked about each tensor's device
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        patch.setattr(Tensor, "pin_memory", pinned)
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "Stream", PaperStream)
        patch.setattr(torch.cuda, "stream", gpu.within)
        patch.setattr(torch.cuda, "set_stream", gpu.set_stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: gpu.stream)
        patch.setattr(Tensor, "record_stream", lambda x, stream: None)
        patch.setattr(torch.cuda, "default_stream", lambda device=None: gpu.default)
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        patch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (PaperGraph,), {"gpu": gpu}))
        patch.setattr(torch.cuda, "graph", gpu.capture)
        patch.setattr(kernels, "triton_slots", gpu, raising=False)
        with gpu:
            yield gpu
