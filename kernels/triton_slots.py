"""The Triton twins of the operations on slot caches: attention of new queries, and the append.

One kernel serves `cached_chunk_attention` and `limit_cross_attention`: a length is a limit that all queries of a row
share. Where rows and heads are too few to fill the device, the cache of each is split among several programs whose
partial softmaxes a second kernel joins (flash-decoding). No launch waits for the host or depends on the lengths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import Launch, new_rows, rows_first, tile_of, tiles
from kernels.triton_softmax import attend, finish, load_rows, store_rows

TILE_K = 64
LEAST_SHARE = 128  # keys per program, below which joining costs more than splitting gains
MOST_SPLITS = 16
PROGRAMS_PER_PROCESSOR = 2  # that fill a device


@triton.jit
def attention_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    slots: tl.tensor,
    limits: tl.tensor,
    limits_row: tl.tensor,
    limits_query: tl.tensor,
    n_queries: tl.tensor,
    heads: tl.tensor,
    capacity: tl.tensor,
    scale: tl.tensor,
    splits: tl.constexpr,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """One tile of queries of one row and head, over its share of the slot."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    queries = tl.program_id(1) * tile_q + tl.arange(0, tile_q)
    inside = queries < n_queries
    limit = tl.load(limits + row * limits_row + queries * limits_query, mask=inside, other=0).to(tl.int32)
    longest = tl.max(limit, 0)
    shortest = tl.min(tl.where(inside, limit, longest), 0)
    share = tl.cdiv(tl.cdiv(longest, tile_k), splits) * tile_k
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, longest)
    sure = tl.maximum(
        begin, tl.minimum(end, shortest // tile_k * tile_k)
    )  # before it, all queries see all keys

    slot = tl.load(slots + row).to(tl.int64)
    k_at = k_cache + (slot * heads + head) * capacity * width
    v_at = v_cache + (slot * heads + head) * capacity * width
    first = row * n_queries * heads + head  # of the rows of (B, u, H, D)
    q_rows = load_rows(q + first * width, heads * width, queries, n_queries, width, tile_d, False)
    q_rows = q_rows.to(k_cache.dtype.element_ty)
    acc = tl.zeros([tile_q, tile_d], tl.float32)
    row_max = tl.full([tile_q], -float("inf"), tl.float32)
    row_sum = tl.zeros([tile_q], tl.float32)
    low = tl.zeros([tile_q], tl.int32)
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k_at, v_at, width, begin, sure, low, limit, scale, width, tile_k, tile_d, True
    )  # fmt: skip
    limit = tl.minimum(limit, end)
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k_at, v_at, width, sure, end, low, limit, scale, width, tile_k, tile_d, False
    )  # fmt: skip
    acc, own_lse = finish(acc, row_max, row_sum)
    if splits > 1:
        first += tl.program_id(2) * (tl.num_programs(0).to(tl.int64) * n_queries)
        tl.store(lse + first + queries * heads, own_lse, mask=inside)
    store_rows(out + first * width, heads * width, queries, n_queries, acc, width, tile_d)


@triton.jit
def join_kernel(
    parts: tl.tensor,
    lse: tl.tensor,
    out: tl.tensor,
    splits: tl.constexpr,
    width: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """One row (of B u H) of the result from its parts, each weighed by its share of the softmax."""
    row, n_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    split, columns = tl.arange(0, splits), tl.arange(0, tile_d)
    own_lse = tl.load(lse + split * n_rows + row)
    top = tl.max(own_lse, 0)
    weights = tl.exp2(own_lse - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(weights, 0)
    part = tl.load(
        parts + (split * n_rows + row)[:, None] * width + columns[None, :],
        mask=(weights > 0)[:, None] & (columns < width)[None, :],
        other=0.0,
    )
    joined = tl.sum(part * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * width + columns, joined.to(out.dtype.element_ty), mask=columns < width)


@triton.jit
def append_kernel(
    k: tl.tensor,
    v: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    slots: tl.tensor,
    starts: tl.tensor,
    n_new: tl.tensor,
    heads: tl.tensor,
    capacity: tl.tensor,
    width: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """A tile of new keys and values of one row and head, behind what its slot holds."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    rows = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    slot, start = tl.load(slots + row).to(tl.int64), tl.load(starts + row).to(tl.int64)
    source = (row * n_new * heads + head) * width
    target = ((slot * heads + head) * capacity + start) * width
    keys = load_rows(k + source, heads * width, rows, n_new, width, tile_d, False)
    store_rows(k_cache + target, width, rows, n_new, keys, width, tile_d)
    values = load_rows(v + source, heads * width, rows, n_new, width, tile_d, False)
    store_rows(v_cache + target, width, rows, n_new, values, width, tile_d)


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, limits: Tensor, splits: int | None = None
) -> Tensor:
    """Twin of `limit_cross_attention`; a limit of 0 gives zeros.

    Args:
        q: (B, H, u, D); k_cache, v_cache: (S, H, T_max, D), contiguous.
        slots: (B,) int64; limits: (B, u) int64; both on any device, any strides.
        splits: programs that share a slot, a power of two; None: as many as fill the device.
    """
    out, launches = plan_attention(q, k_cache, v_cache, slots, limits, splits)
    for launch in launches:
        launch.run()
    return out


def plan_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, limits: Tensor, splits: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, still unwritten, and the launches that write it."""
    assert k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.dtype == v_cache.dtype
    (n_rows, heads, n_queries, width), capacity = q.shape, k_cache.shape[2]
    tile_q, tile_d = min(64, tile_of(n_queries)), tile_of(width)
    programs = n_rows * heads * tiles(n_queries, tile_q)
    splits = splits or _splits(programs, capacity, q.device)
    out = new_rows(q)
    parts, lse = out, q.new_empty(0, dtype=torch.float32)
    if splits > 1:
        parts = q.new_empty((splits, n_rows, n_queries, heads, width), dtype=torch.float32)
        lse = q.new_empty((splits, n_rows, n_queries, heads), dtype=torch.float32)
    slots, limits = slots.to(q.device, non_blocking=True), limits.to(q.device, non_blocking=True)
    launches = [
        Launch(
            attention_kernel,
            (n_rows * heads, tiles(n_queries, tile_q), splits),
            {
                "q": rows_first(q), "k_cache": k_cache, "v_cache": v_cache, "out": parts, "lse": lse,
                "slots": slots, "limits": limits,
                "limits_row": limits.stride(0), "limits_query": limits.stride(1),
                "n_queries": n_queries, "heads": heads, "capacity": capacity, "scale": width**-0.5,
                "splits": splits, "width": width, "tile_q": tile_q, "tile_k": TILE_K, "tile_d": tile_d,
            },
            stages=3,
        )
    ]  # fmt: skip
    if splits > 1:
        arguments = {
            "parts": parts,
            "lse": lse,
            "out": out,
            "splits": splits,
            "width": width,
            "tile_d": tile_d,
        }
        launches.append(Launch(join_kernel, (n_rows * n_queries * heads,), arguments, warps=1))
    return out, launches


def _splits(programs: int, capacity: int, device: torch.device) -> int:
    """How many programs share a slot: enough to fill the device, each with LEAST_SHARE keys of a full slot."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    )
    wanted = tiles(processors * PROGRAMS_PER_PROCESSOR, max(1, programs))
    return min(tile_of(wanted, 1), tile_of(max(1, capacity // LEAST_SHARE), 1), MOST_SPLITS)


def append(k_cache: Tensor, v_cache: Tensor, slots: Tensor, starts: Tensor, k: Tensor, v: Tensor) -> None:
    """Twin of `slot_append`; shapes as there, caches contiguous."""
    plan_append(k_cache, v_cache, slots, starts, k, v).run()


def plan_append(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, starts: Tensor, k: Tensor, v: Tensor
) -> Launch:
    """The launch that appends."""
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    n_rows, heads, n_new, width = k.shape
    tile_rows = min(64, tile_of(n_new))
    arguments = {
        "k": rows_first(k), "v": rows_first(v), "k_cache": k_cache, "v_cache": v_cache,
        "slots": slots.to(k.device, non_blocking=True), "starts": starts.to(k.device, non_blocking=True),
        "n_new": n_new, "heads": heads, "capacity": k_cache.shape[2],
        "width": width, "tile_rows": tile_rows, "tile_d": tile_of(width),
    }  # fmt: skip
    return Launch(append_kernel, (n_rows * heads, tiles(n_new, tile_rows)), arguments)
