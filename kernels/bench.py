"""Times every kernel where a GPU is: `python -m kernels.bench`.

Beside each time stand those of torch's SDPA with a mask and of FlexAttention, and a floor that no kernel goes below:
bytes moved over measured copy bandwidth, or arithmetic over measured matrix rate, whichever is larger. What is timed
is first proved to compute the same.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.adaptive_span_attention import adaptive_span_attention, span_mask
from kernels.block_causal_attention import block_causal_attention, block_causal_mask, steps_of
from kernels.cached_chunk_attention import cached_chunk_attention
from kernels.limit_cross_attention import limit_cross_attention
from kernels.slot_append import slot_append

OURS, SDPA, FLEX, INDEXING = "ours", "SDPA, mask", "FlexAttention", "indexing"
FORWARD_FLOPS, BACKWARD_FLOPS = (
    4,
    10,
)  # per pair of query and key and element of a head: two products, and five
AGREEMENT = 2e-2  # relative distance of results that are rounded to bfloat16 on different ways

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One operation at one size, done in several ways, each of which returns what all should agree on."""

    name: str
    size: str
    contestants: dict[str, Callable[[], tuple[Tensor, ...]]]
    n_bytes: int  # that must be read or written
    n_flops: int


@dataclass(frozen=True)
class Scale:
    """How large the cases are; heads are those of tiny.en."""

    streams: tuple[int, ...] = (1, 16, 64, 256)
    capacity: int = 1500  # frames of a full slot
    chunk: int = 45  # queries of an encoder step of 300 ms: the newest block and the two before
    windows: int = 16
    frames: tuple[int, ...] = (500, 1500)  # of a window in training
    tau: int = 15
    views: int = 3  # of a block of `tau` frames
    heads: int = 6
    width: int = 64


def cases(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """All cases, each made when it is asked for."""
    for build in KERNELS.values():
        yield from build(scale, device, dtype)


def _cached_chunk(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for streams in scale.streams:
        yield _slots("cached_chunk_attention", scale, streams, scale.chunk, device, dtype)


def _limit_cross(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for streams in scale.streams:
        yield _slots("limit_cross_attention", scale, streams, 1, device, dtype)


def _slots(
    name: str, scale: Scale, streams: int, n_queries: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """Every slot is full; SDPA and FlexAttention are spared the gathering, for slots lie in the order of rows."""
    capacity = scale.capacity
    q = _drawn((streams, scale.heads, n_queries, scale.width), device, dtype)
    k, v = (
        torch.randn((streams, scale.heads, capacity, scale.width), device=device, dtype=dtype)
        for _ in range(2)
    )
    slots = torch.arange(streams, device=device)
    lengths = torch.full((streams,), capacity, device=device)
    limits = lengths[:, None].expand(streams, n_queries)
    mask = torch.arange(capacity, device=device) < limits[:, None, :, None]
    flex = _flex(lambda row, _, query, key: key < limits[row, query], streams, n_queries, capacity, device)

    def ours() -> tuple[Tensor, ...]:
        if name == "cached_chunk_attention":
            return (cached_chunk_attention(q, k, v, slots, lengths),)
        return (limit_cross_attention(q, k, v, slots, limits),)

    contestants = {
        OURS: ours,
        SDPA: lambda: (F.scaled_dot_product_attention(q, k, v, attn_mask=mask),),
        FLEX: lambda: (flex(q, k, v),),
    }
    n_flops = FORWARD_FLOPS * k.numel() * n_queries
    return Case(name, f"{streams} x {n_queries} against {capacity}", contestants, _bytes(q, q, k, v), n_flops)


def _append(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    streams, shape = scale.streams[-1], (scale.streams[-1], scale.heads, scale.capacity, scale.width)
    new = [_drawn((streams, scale.heads, scale.chunk, scale.width), device, dtype) for _ in range(2)]
    own, other = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(2))
    slots = torch.arange(streams, device=device).flip(0)
    starts = torch.full((streams,), scale.capacity - scale.chunk, device=device)
    at = (slots[:, None], slice(None), starts[:, None] + torch.arange(scale.chunk, device=device))

    def ours() -> tuple[Tensor, ...]:
        slot_append(own[0], own[1], slots, starts, new[0], new[1])
        return tuple(own)

    def indexed() -> tuple[Tensor, ...]:
        for cache, x in zip(other, new, strict=True):
            cache[at] = x.transpose(1, 2)
        return tuple(other)

    size = f"{streams} x {scale.chunk} into {scale.capacity}"
    yield Case("slot_append", size, {OURS: ours, INDEXING: indexed}, 2 * _bytes(*new), 0)


def _block_causal(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for n_frames in scale.frames:
        yield from _block_causal_of(n_frames, scale, device, dtype)


def _block_causal_of(n_frames: int, scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    block = (torch.arange(n_frames, device=device) + 1) // scale.tau
    mask = block_causal_mask(block, scale.views)
    step, n_positions = steps_of(block, scale.views), scale.views * n_frames
    ways: dict[str, Attention] = {
        OURS: lambda q, k, v: block_causal_attention(q, k, v, block),
        SDPA: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        FLEX: _flex(
            lambda _row, _head, query, key: torch.where(
                key < n_frames, step[key] <= step[query], step[key] == step[query]
            ),
            1, n_positions, n_positions, device,
        ),
    }  # fmt: skip
    yield from _trained("block_causal_attention", scale, ways, mask[None], device, dtype)


def _adaptive_span(scale: Scale, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for n_frames in scale.frames:
        yield from _adaptive_span_of(n_frames, scale, device, dtype)


def _adaptive_span_of(
    n_frames: int, scale: Scale, device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """Hard masks, as SDPA and FlexAttention know no others; what a mask of 0 or 1 costs us, a soft one does."""
    span, left = 16, 64
    spans = torch.randint(0, span + 1, (scale.windows, n_frames, 1), device=device)
    reach = torch.arange(span, device=device)
    inside = torch.arange(n_frames, device=device)[:, None] + 1 + reach < n_frames
    right = ((reach < spans) & inside).float()
    mask = span_mask(right, left) > 0
    ways: dict[str, Attention] = {
        OURS: lambda q, k, v: adaptive_span_attention(q, k, v, right, left),
        SDPA: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]),
        FLEX: _flex(
            lambda row, _, query, key: mask[row, query, key], scale.windows, n_frames, n_frames, device
        ),
    }
    yield from _trained("adaptive_span_attention", scale, ways, mask, device, dtype)


def _trained(
    name: str,
    scale: Scale,
    ways: dict[str, Attention],
    mask: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Case]:
    """The forward pass, and then both, of a window whose mask is `mask` (B|1, T, T)."""
    shape = (scale.windows, scale.heads, mask.shape[-1], scale.width)
    q, k, v = (_drawn(shape, device, dtype) for _ in range(3))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out_grad = _drawn(shape, device, dtype)
    pairs = int(mask.sum()) * (scale.windows // len(mask)) * scale.heads
    size = f"{scale.windows} x {mask.shape[-1]} positions"

    def forward(way: Attention) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (way(q, k, v),)

    def both(way: Attention) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(way(*leaves), leaves, out_grad)

    n_bytes, n_flops = _bytes(q, q, k, v), FORWARD_FLOPS * pairs * scale.width
    yield Case(f"{name}, forward", size, {by: forward(way) for by, way in ways.items()}, n_bytes, n_flops)
    n_flops += BACKWARD_FLOPS * pairs * scale.width
    yield Case(f"{name}, both", size, {by: both(way) for by, way in ways.items()}, 3 * n_bytes, n_flops)


def _flex(
    seen: Callable[..., Tensor], rows: int, n_queries: int, n_keys: int, device: torch.device
) -> Attention:
    """FlexAttention under a mask that is built once; compiled where it is timed."""
    mask = create_block_mask(seen, rows, None, n_queries, n_keys, device=str(device))
    attention = flex_attention
    if device.type == "cuda":
        torch.compiler.reset()  # or, after eight shapes, it would silently go on uncompiled
        attention = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: attention(q, k, v, block_mask=mask)  # type: ignore[return-value]


def _drawn(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, H, T, D) in the layout of a projection's output."""
    batch, heads, rows, width = shape
    x = torch.randn((batch, rows, heads, width), device=device, dtype=dtype)
    return x.transpose(1, 2)


def _bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def agree(case: Case) -> None:
    """Raises AssertionError, naming the contestant, where one does not compute what ours does."""
    ours = case.contestants[OURS]()
    for name, contestant in case.contestants.items():
        for own, other in zip(ours, contestant(), strict=True):
            distance = (own.float() - other.float()).norm() / own.float().norm()
            assert distance < AGREEMENT, (
                f"{name} differs from ours by {distance:.1%} in {case.name} ({case.size})"
            )


def measure(
    scale: Scale, device: torch.device, dtype: torch.dtype, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Times of all cases in milliseconds, and what the device can do at best."""
    from triton.testing import do_bench

    def milliseconds(way: Callable[[], Any]) -> float:
        return float(do_bench(way, return_mode="median"))  # empties the cache of level 2 before each run

    bytes_per_ms = _copy_rate(device, milliseconds)
    flops_per_ms = _matrix_rate(device, dtype, milliseconds)
    rows = []
    for case in cases(scale, device, dtype):
        progress(f"{case.name}, {case.size}")
        agree(case)
        floors = case.n_bytes / bytes_per_ms, case.n_flops / flops_per_ms
        times = {name: milliseconds(contestant) for name, contestant in case.contestants.items()}
        bound = "bytes" if floors[0] > floors[1] else "arithmetic"
        rows.append(
            {"kernel": case.name, "size": case.size, "floor_ms": max(floors), "bound": bound, "ms": times}
        )
    return {
        "device": torch.cuda.get_device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "copy_gb_per_s": bytes_per_ms / 1e6,
        "matrix_tflop_per_s": flops_per_ms / 1e9,
        "rows": rows,
    }


def _copy_rate(device: torch.device, milliseconds: Callable[[Callable[[], Any]], float]) -> float:
    """Bytes read and written per millisecond by a plain copy."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))


def _matrix_rate(
    device: torch.device, dtype: torch.dtype, milliseconds: Callable[[Callable[[], Any]], float]
) -> float:
    """Additions and multiplications per millisecond of a large matrix product."""
    square = torch.randn((8192, 8192), device=device, dtype=dtype)
    return 2 * 8192**3 / milliseconds(lambda: square @ square)


def table(rows: list[dict[str, Any]]) -> Table:
    """One line per case; a row without times was not measured."""
    shown = Table("kernel", "size", "floor, ms", "bound by", *(f"{name}, ms" for name in (OURS, SDPA, FLEX)))
    shown.add_column("of the floor")
    for row in rows:
        if "ms" not in row:
            shown.add_row(row["kernel"], "", "", "", "not measured", "not measured", "not measured", "")
            continue
        times = row["ms"]
        others = [f"{times[name]:.3f}" if name in times else "-" for name in (SDPA, FLEX)]
        if INDEXING in times:
            others[0] = f"{times[INDEXING]:.3f} ({INDEXING})"
        share = f"{row['floor_ms'] / times[OURS]:.0%}"
        floor = f"{row['floor_ms']:.3f}"
        shown.add_row(row["kernel"], row["size"], floor, row["bound"], f"{times[OURS]:.3f}", *others, share)
    return shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("kernels-bench.json"), help="where figures go as JSON"
    )
    out: Path = parser.parse_args(arguments).out
    if not out.parent.is_dir():
        parser.error(f"{out.parent} is no folder: create it, or choose another --out")
    console = Console()
    if not torch.cuda.is_available():
        console.print(table([{"kernel": name} for name in KERNELS]))
        console.print(
            "There is no GPU here, so nothing was measured: run this where torch.cuda.is_available()."
        )
        return 0
    with Console(stderr=True).status("measuring copies and products ...") as status:
        report = measure(Scale(), torch.device("cuda"), torch.bfloat16, status.update)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, out)
    console.print(table(report["rows"]))
    console.print(
        f"{report['device']}, {report['dtype']}: copies {report['copy_gb_per_s']:,.0f} GB/s,"
        f" multiplies {report['matrix_tflop_per_s']:,.0f} TFLOP/s. Figures: {out}"
    )
    return 0


KERNELS: dict[str, Callable[[Scale, torch.device, torch.dtype], Iterator[Case]]] = {
    "cached_chunk_attention": _cached_chunk,
    "limit_cross_attention": _limit_cross,
    "slot_append": _append,
    "block_causal_attention": _block_causal,
    "adaptive_span_attention": _adaptive_span,
}

if __name__ == "__main__":
    sys.exit(main())
