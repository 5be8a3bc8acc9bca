"""Every Triton kernel against its reference: compiled where a GPU is, else interpreted (test_interpreter.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kernels import bench
from kernels.adaptive_span_attention import adaptive_span_attention_reference, span_mask
from kernels.block_causal_attention import block_causal_attention_reference
from kernels.cached_chunk_attention import cached_chunk_attention_reference
from kernels.limit_cross_attention import limit_cross_attention_reference
from kernels.masked_attention import masked_attention_reference
from kernels.slot_append import slot_append_reference

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
SLOTS, CAPACITY = 5, 203


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote holds NaN, so that a read of it shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(own: Tensor, true: Tensor, dtype: torch.dtype) -> None:
    assert own.shape == true.shape
    assert own.dtype == dtype
    distance, size = (own.float() - true).norm().item(), true.norm().item()
    assert distance <= TOLERANCES[dtype] * max(1, size), f"{distance} of {size}"  # NaN is never near


def pairs(dtype: torch.dtype, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves of `dtype`, and float32 ones of the same values for the reference."""
    own = [x.to(dtype) for x in tensors]
    return [x.clone().requires_grad_() for x in own], [x.float().requires_grad_() for x in own]


def ragged(n_frames: int) -> Tensor:
    """Blocks of many lengths, some of whose numbers nobody has."""
    steps = torch.randint(0, 3, (n_frames,), generator=torch.Generator().manual_seed(n_frames))
    return (steps.cumsum(0) // 4 * 3 // 2).to(DEVICE)


def blocks(n_frames: int, tau: int) -> Tensor:
    return (torch.arange(n_frames, device=DEVICE) + 1) // tau


@pytest.mark.parametrize(
    ("rows", "block", "views", "width", "dtype"),
    [
        pytest.param(2, blocks(1, 1), 3, 64, torch.float32, id="one frame"),
        pytest.param(2, blocks(37, 1), 2, 64, torch.float32, id="tau 1"),
        pytest.param(1, blocks(70, 5), 7, 33, torch.float32, id="tau 5, seven views, odd width"),
        pytest.param(1, blocks(131, 15), 3, 64, torch.float32, id="tau 15"),
        pytest.param(1, blocks(129, 50), 2, 64, torch.float32, id="tau 50"),
        pytest.param(1, blocks(64, 300), 2, 64, torch.float32, id="one block"),
        pytest.param(1, blocks(75, 15), 1, 64, torch.float32, id="one view"),
        pytest.param(1, ragged(90), 3, 64, torch.float32, id="ragged blocks"),
        pytest.param(1, blocks(203, 15), 3, 64, torch.bfloat16, id="bfloat16"),
        pytest.param(1, blocks(67, 8), 2, 64, torch.float16, id="float16"),
    ],
)
def test_block_causal(rows: int, block: Tensor, views: int, width: int, dtype: torch.dtype) -> None:
    from kernels.triton_block_causal import attention

    shape = (rows, 2, views * len(block), width)
    own, true = pairs(dtype, *(drawn(*shape, seed=seed) for seed in range(3)))
    weight = drawn(*shape, seed=3)
    with poisoned():
        out = attention(*own, block)
        out.backward(weight.to(dtype))
    expected = block_causal_attention_reference(*true, block)
    expected.backward(weight.to(dtype).float())
    assert_near(out, expected, dtype)
    for mine, theirs in zip(own, true, strict=True):
        assert_near(mine.grad, theirs.grad, dtype)


@pytest.mark.parametrize(
    ("rows", "n_frames", "span", "left", "width", "dtype"),
    [
        pytest.param(2, 1, 3, 4, 64, torch.float32, id="one frame"),
        pytest.param(2, 45, 5, 7, 64, torch.float32, id="narrow window"),
        pytest.param(1, 101, 16, 64, 33, torch.float32, id="odd width"),
        pytest.param(1, 70, 40, 200, 64, torch.float32, id="all the past"),
        pytest.param(2, 33, 0, 9, 64, torch.float32, id="no span"),
        pytest.param(1, 150, 16, 64, 64, torch.bfloat16, id="bfloat16"),
    ],
)
@pytest.mark.parametrize("hard", [False, True])
def test_adaptive_span(
    rows: int, n_frames: int, span: int, left: int, width: int, dtype: torch.dtype, hard: bool
) -> None:
    from kernels.triton_adaptive_span import attention

    shape = (rows, 2, n_frames, width)
    own, true = pairs(dtype, *(drawn(*shape, seed=seed) for seed in range(3)))
    right = drawn(rows, n_frames, span, seed=4).sigmoid()
    right = (right > 0.5).float() if hard else right
    own_right, true_right = (right.clone().requires_grad_() for _ in range(2))
    weight = drawn(*shape, seed=3)
    with poisoned():
        out = attention(*own, own_right, left)
        out.backward(weight.to(dtype))
    expected = adaptive_span_attention_reference(*true, true_right, left)
    expected.backward(weight.to(dtype).float())
    assert_near(out, expected, dtype)
    for mine, theirs in zip(own, true, strict=True):
        assert_near(mine.grad, theirs.grad, dtype)
    distance, size = (own_right.grad - true_right.grad).norm().item(), true_right.grad.norm().item()
    assert distance <= TOLERANCES[dtype] * max(1, size), f"{distance} of {size}"


def test_a_masked_frame_far_ahead_in_score_drowns_nothing() -> None:
    from kernels.triton_adaptive_span import attention

    q, k, v = drawn(1, 1, 40, 64), drawn(1, 1, 40, 64, seed=1), drawn(1, 1, 40, 64, seed=2)
    q[:, :, :, 0], k[:, :, 20, 0] = 40, 40  # frame 20 would have nearly all of everybody's weight
    right = torch.zeros(1, 40, 8, device=DEVICE)
    leaves = [x.requires_grad_() for x in (q, k, v, right)]
    with poisoned():
        out = attention(*leaves, left=3)
        out.sum().backward()
    expected = masked_attention_reference(q, k, v, span_mask(right, 3)[:, None] > 0)
    assert_near(out, expected.detach(), torch.float32)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def caches(heads: int, width: int, dtype: torch.dtype, longest: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Keys and values (S, H, T_max, D), NaN but for the first `longest[slot]` entries of each slot."""
    k, v = (drawn(SLOTS, heads, CAPACITY, width, seed=seed).to(dtype) for seed in (1, 2))
    for slot in range(SLOTS):
        k[slot, :, longest.get(slot, 0) :] = torch.nan
        v[slot, :, longest.get(slot, 0) :] = torch.nan
    return k, v


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    ("n_queries", "width", "dtype"),
    [
        (1, 64, torch.float32),
        (30, 64, torch.float32),
        (50, 33, torch.float32),
        (70, 64, torch.bfloat16),
        (5, 64, torch.float16),
    ],
)
def test_cached_chunk(n_queries: int, width: int, dtype: torch.dtype, splits: int) -> None:
    from kernels.triton_slots import attention

    slots, lengths = torch.tensor([3, 0, 4, 1]), torch.tensor([CAPACITY, 1, 0, 130])
    k, v = caches(2, width, dtype, dict(zip(slots.tolist(), lengths.tolist(), strict=True)))
    q = drawn(4, 2, n_queries, width)
    with poisoned():
        out = attention(q, k, v, slots, lengths[:, None].expand(4, n_queries), splits)
    expected = cached_chunk_attention_reference(q.to(dtype).float(), k.float(), v.float(), slots, lengths)
    assert out.dtype == q.dtype
    assert_near(out.to(dtype), expected, dtype)


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limit_cross(dtype: torch.dtype, splits: int) -> None:
    """Limits in any order, and two texts made of the same audio."""
    from kernels.triton_slots import attention

    slots = torch.tensor([2, 2, 0])
    limits = torch.tensor([[64, 1, CAPACITY, 65, 0], [7, 7, 7, 7, 7], [3, 4, 5, 6, 7]])
    k, v = caches(3, 64, dtype, {2: CAPACITY, 0: 7})
    q = drawn(3, 3, 5, 64).to(dtype)
    with poisoned():
        out = attention(q, k, v, slots, limits, splits)
    assert_near(out, limit_cross_attention_reference(q.float(), k.float(), v.float(), slots, limits), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_append(dtype: torch.dtype) -> None:
    from kernels.triton_slots import append

    slots, starts = torch.tensor([4, 1]), torch.tensor([0, CAPACITY - 67])
    k, v = drawn(2, 3, 67, 33, seed=3), drawn(2, 3, 67, 33, seed=4)
    own, true = (caches(3, 33, dtype, {4: 90, 1: 200, 2: 9}) for _ in range(2))
    append(*own, slots, starts, k, v)
    slot_append_reference(*true, slots, starts, k, v)
    for mine, theirs in zip(own, true, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, atol=0, rtol=0)


def test_the_benchmark_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import triton_adaptive_span, triton_block_causal, triton_slots

    def cached(q: Tensor, k: Tensor, v: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
        return triton_slots.attention(q, k, v, slots, lengths[:, None].expand(len(q), q.shape[2]))

    monkeypatch.setattr(bench, "cached_chunk_attention", cached)
    monkeypatch.setattr(bench, "limit_cross_attention", triton_slots.attention)
    monkeypatch.setattr(bench, "slot_append", triton_slots.append)
    monkeypatch.setattr(bench, "block_causal_attention", triton_block_causal.attention)
    monkeypatch.setattr(bench, "adaptive_span_attention", triton_adaptive_span.attention)
    small = bench.Scale((2,), capacity=40, chunk=7, windows=2, frames=(21,), tau=4, heads=2, width=16)
    names = set()
    for case in bench.cases(small, torch.device(DEVICE), torch.float32):
        case.contestants.pop(bench.FLEX, None)
        bench.agree(case)
        names.add(case.name.partition(",")[0])
    assert names == set(bench.KERNELS)
