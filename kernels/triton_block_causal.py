"""The Triton twin of `block_causal_attention`, forward and backward.

The mask is never built. What a position sees is one run of frames [0, shown): those before `known` in their settled
version, the others in their provisional one. Both bounds are edges of blocks, so tiles that nobody sees are not even
loaded, and only tiles across an edge are masked. Backward, the queries that see a key are runs between edges, too.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.launch import Launch, new_rows, rows_first, tile_of, tiles
from kernels.triton_softmax import (
    attend,
    finish,
    fold_key_gradient,
    fold_query_gradient,
    load_rows,
    locate,
    store_rows,
)

#: Rows of `block_edges`.
BEFORE, FIRST, END, AFTER = (tl.constexpr(i) for i in range(4))


def block_edges(block: Tensor) -> Tensor:
    """(4, T) int32, for each frame: where the block before its own begins, where its own begins and ends, and where
    the next one ends."""
    edges = [
        torch.searchsorted(block, block - 1),
        torch.searchsorted(block, block),
        torch.searchsorted(block, block, right=True),
        torch.searchsorted(block, block + 1, right=True),
    ]
    return torch.stack(edges).int()


@triton.jit
def locate_queries(edges: tl.tensor, n_frames: tl.tensor, tile_q: tl.constexpr) -> tl.tuple:
    """This program's queries: half (1: provisional), frames, what each knows and is shown, and the extremes:
    what all of them know, what any knows, and what any is shown."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those that see most go first
    half, first = tile % 2, tile // 2 * tile_q
    frames, last = first + tl.arange(0, tile_q), tl.minimum(first + tile_q, n_frames) - 1
    known_at, shown_at = edges + (END - half) * n_frames, edges + (AFTER - half) * n_frames
    known = tl.load(known_at + frames, mask=frames < n_frames, other=0)
    shown = tl.load(shown_at + frames, mask=frames < n_frames, other=0)
    return (
        half,
        frames,
        known,
        shown,
        tl.load(known_at + first),
        tl.load(known_at + last),
        tl.load(shown_at + last),
    )


@triton.jit
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    edges: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The outputs and log-sum-exps of one tile of queries."""
    at, number = locate(2 * n_frames, heads, width)
    half, frames, known, shown, known_to_all, known_to_any, shown_to_any = locate_queries(
        edges, n_frames, tile_q
    )
    stride = heads * width
    own = at + half * n_frames * stride
    q_rows = load_rows(q + own, stride, frames, n_frames, width, tile_d, False)
    acc = tl.zeros([tile_q, tile_d], tl.float32)
    row_max = tl.full([tile_q], -float("inf"), tl.float32)
    row_sum = tl.zeros([tile_q], tl.float32)
    zero = tl.zeros([tile_q], tl.int32)
    sure = known_to_all // tile_k * tile_k
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, 0, sure, zero, known, scale,
        width, tile_k, tile_d, True,
    )  # fmt: skip
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, sure, known_to_any, zero, known, scale,
        width, tile_k, tile_d, False,
    )  # fmt: skip
    at += n_frames * stride
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, known_to_all, shown_to_any, known, shown, scale,
        width, tile_k, tile_d, False,
    )  # fmt: skip
    acc, own_lse = finish(acc, row_max, row_sum)
    tl.store(lse + number + half * n_frames + frames, own_lse, mask=frames < n_frames)
    store_rows(out + own, stride, frames, n_frames, acc, width, tile_d)


@triton.jit
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    q_grad: tl.tensor,
    edges: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradient of one tile of queries; leaves delta = sum(out * out_grad) for `key_gradient_kernel`."""
    at, number = locate(2 * n_frames, heads, width)
    half, frames, known, shown, known_to_all, known_to_any, shown_to_any = locate_queries(
        edges, n_frames, tile_q
    )
    stride = heads * width
    own, number = at + half * n_frames * stride, number + half * n_frames
    q_rows = load_rows(q + own, stride, frames, n_frames, width, tile_d, False)
    out_rows = load_rows(out + own, stride, frames, n_frames, width, tile_d, False)
    grad_rows = load_rows(out_grad + own, stride, frames, n_frames, width, tile_d, False)
    own_lse = tl.load(lse + number + frames, mask=frames < n_frames, other=0.0)
    own_delta = tl.sum(out_rows.to(tl.float32) * grad_rows.to(tl.float32), 1)
    tl.store(delta + number + frames, own_delta, mask=frames < n_frames)
    grad = tl.zeros([tile_q, tile_d], tl.float32)
    zero = tl.zeros([tile_q], tl.int32)
    sure = known_to_all // tile_k * tile_k
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, 0, sure, zero, known, scale,
        width, tile_k, tile_d, True,
    )  # fmt: skip
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, sure, known_to_any, zero, known, scale,
        width, tile_k, tile_d, False,
    )  # fmt: skip
    at += n_frames * stride
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, known_to_all, shown_to_any, known, shown,
        scale, width, tile_k, tile_d, False,
    )  # fmt: skip
    store_rows(q_grad + own, stride, frames, n_frames, grad * scale, width, tile_d)


@triton.jit
def key_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    k_grad: tl.tensor,
    v_grad: tl.tensor,
    edges: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradients of one tile of keys and values.

    A settled key of block b is seen by the settled queries from block b on and the provisional ones from b + 1 on; a
    provisional key by the settled queries of block b - 1 and the provisional ones of block b.
    """
    at, number = locate(2 * n_frames, heads, width)
    tile, n_tiles = tl.program_id(0), tl.cdiv(n_frames, tile_k)
    half, first = tile // n_tiles, tile % n_tiles * tile_k  # settled keys, which more queries see, go first
    frames, last = first + tl.arange(0, tile_k), tl.minimum(first + tile_k, n_frames) - 1
    inside, stride = frames < n_frames, heads * width
    own = at + half * n_frames * stride
    k_rows = load_rows(k + own, stride, frames, n_frames, width, tile_d, False)
    v_rows = load_rows(v + own, stride, frames, n_frames, width, tile_d, False)
    own_k_grad = tl.zeros([tile_k, tile_d], tl.float32)
    own_v_grad = tl.zeros([tile_k, tile_d], tl.float32)
    for kind in tl.static_range(2):  # settled queries, then provisional ones
        low_at, high_at = edges + (FIRST + kind - half) * n_frames, edges + (FIRST + kind) * n_frames
        low = tl.load(low_at + frames, mask=inside, other=n_frames)
        high = tl.where(half == 1, tl.load(high_at + frames, mask=inside, other=0), n_frames)
        begin = tl.load(low_at + first)
        sure = begin + tl.cdiv(tl.load(low_at + last) - begin, tile_q) * tile_q  # from it on, all see all
        sure = tl.where(half == 1, tl.load(high_at + last), tl.minimum(sure, n_frames))
        q_at, out_grad_at = q + at + kind * n_frames * stride, out_grad + at + kind * n_frames * stride
        lse_at, delta_at = lse + number + kind * n_frames, delta + number + kind * n_frames
        own_k_grad, own_v_grad = fold_key_gradient(
            own_k_grad, own_v_grad, k_rows, v_rows, q_at, out_grad_at, lse_at, delta_at, stride,
            begin, sure, low, high, scale, width, tile_q, tile_d, False,
        )  # fmt: skip
        own_k_grad, own_v_grad = fold_key_gradient(
            own_k_grad, own_v_grad, k_rows, v_rows, q_at, out_grad_at, lse_at, delta_at, stride,
            sure, n_frames * (1 - half), low, high, scale, width, tile_q, tile_d, True,
        )  # fmt: skip
    store_rows(k_grad + own, stride, frames, n_frames, own_k_grad * scale, width, tile_d)
    store_rows(v_grad + own, stride, frames, n_frames, own_v_grad, width, tile_d)


class _BlockCausal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
        q, k, v, edges = rows_first(q), rows_first(k), rows_first(v), block_edges(block)
        out, lse, launch = plan_forward(q, k, v, edges)
        launch.run()
        ctx.save_for_backward(q, k, v, out, lse, edges)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gradients, launches = plan_backward(rows_first(out_grad), *ctx.saved_tensors)
        for launch in launches:
            launch.run()
        return (*gradients, None)


def attention(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
    """Twin of `block_causal_attention`; shapes as there, all on one device and q, k, v of one type."""
    assert q.dtype == k.dtype == v.dtype
    out: Tensor = _BlockCausal.apply(q, k, v, block)
    return out


def plan_forward(q: Tensor, k: Tensor, v: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Launch]:
    """Outputs and log-sum-exps (to base 2), still unwritten, and the launch that writes them.

    Args:
        q, k, v: as `rows_first` leaves them.
        edges: of `block_edges`.
    """
    (batch, heads, _, width), n_frames = q.shape, edges.shape[1]
    out, lse = new_rows(q), q.new_empty((batch, heads, 2 * n_frames), dtype=torch.float32)
    tile_q, tile_k, warps = (32, 32, 4) if q.dtype == torch.float32 else (128, 64, 8)
    arguments = {
        "q": q, "k": k, "v": v, "out": out, "lse": lse, "edges": edges,
        "n_frames": n_frames, "heads": heads, "scale": width**-0.5,
        "width": width, "tile_q": tile_q, "tile_k": tile_k, "tile_d": tile_of(width),
    }  # fmt: skip
    return out, lse, Launch(forward_kernel, (2 * tiles(n_frames, tile_q), batch * heads), arguments, warps, 3)


def plan_backward(
    out_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, edges: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """Gradients of q, k, v, still unwritten, and the launches that write them, in this order."""
    (batch, heads, _, width), n_frames = q.shape, edges.shape[1]
    q_grad, k_grad, v_grad, delta = new_rows(q), new_rows(k), new_rows(v), torch.empty_like(lse)
    shared = {
        "q": q, "k": k, "v": v, "out_grad": out_grad, "lse": lse, "delta": delta, "edges": edges,
        "n_frames": n_frames, "heads": heads, "scale": width**-0.5, "width": width, "tile_d": tile_of(width),
    }  # fmt: skip
    exact = q.dtype == torch.float32
    of_queries: dict[str, Any] = {
        "out": out,
        "q_grad": q_grad,
        "tile_q": 32 if exact else 128,
        "tile_k": 32 if exact else 64,
    }
    of_keys: dict[str, Any] = {
        "k_grad": k_grad,
        "v_grad": v_grad,
        "tile_q": 32,
        "tile_k": 32 if exact else 128,
    }
    n_queries, n_keys = 2 * tiles(n_frames, of_queries["tile_q"]), 2 * tiles(n_frames, of_keys["tile_k"])
    warps = 4 if exact else 8
    return (q_grad, k_grad, v_grad), [
        Launch(query_gradient_kernel, (n_queries, batch * heads), shared | of_queries, warps, 3),
        Launch(key_gradient_kernel, (n_keys, batch * heads), shared | of_keys, warps, 2),
    ]
