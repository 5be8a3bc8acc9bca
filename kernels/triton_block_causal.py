"""The Triton twin of `block_causal_attention`, forward and backward.

The mask is never built. A query of block b in view i sees the settled frames (view 0) of the blocks up to b - i, and
in each other view j the one block b + j - i. All bounds are edges of blocks, so tiles that nobody sees are not even
loaded, and only tiles across an edge are masked. Backward, the queries of a view that see a key are a run, too.
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


def block_edges(block: Tensor, views: int) -> Tensor:
    """(2 V, T) int32, for each frame: where the (V - 1)th block before its own begins, to the Vth behind it.

    Its own begins in row V - 1.
    """
    return torch.stack([torch.searchsorted(block, block + n) for n in range(1 - views, views + 1)]).int()


@triton.jit
def locate_queries(
    edges: tl.tensor, n_frames: tl.tensor, views: tl.constexpr, tile_q: tl.constexpr
) -> tl.tuple:
    """This program's queries: their view, frames, first and last frame, and the row of `edges` that tells how many
    settled frames each knows. The rows behind it bound what each sees in views 1, 2, ..."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those that see most go first
    view, first = tile % views, tile // views * tile_q
    last = tl.minimum(first + tile_q, n_frames) - 1
    return view, first + tl.arange(0, tile_q), first, last, edges + (views - view) * n_frames


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
    views: tl.constexpr,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The outputs and log-sum-exps of one tile of queries."""
    at, number = locate(views * n_frames, heads, width)
    view, frames, first, last, known_at = locate_queries(edges, n_frames, views, tile_q)
    inside, stride = frames < n_frames, heads * width
    own = at + view * n_frames * stride
    q_rows = load_rows(q + own, stride, frames, n_frames, width, tile_d, False)
    acc = tl.zeros([tile_q, tile_d], tl.float32)
    row_max = tl.full([tile_q], -float("inf"), tl.float32)
    row_sum = tl.zeros([tile_q], tl.float32)
    low, high = tl.zeros([tile_q], tl.int32), tl.load(known_at + frames, mask=inside, other=0)
    sure = tl.load(known_at + first) // tile_k * tile_k
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, 0, sure, low, high, scale,
        width, tile_k, tile_d, True,
    )  # fmt: skip
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, sure, tl.load(known_at + last), low, high, scale,
        width, tile_k, tile_d, False,
    )  # fmt: skip
    for _ in tl.static_range(1, views):
        begin, low = tl.load(known_at + first), high
        at, known_at = at + n_frames * stride, known_at + n_frames
        high = tl.load(known_at + frames, mask=inside, other=0)
        acc, row_max, row_sum = attend(
            acc, row_max, row_sum, q_rows, k + at, v + at, stride, begin, tl.load(known_at + last), low, high, scale,
            width, tile_k, tile_d, False,
        )  # fmt: skip
    acc, own_lse = finish(acc, row_max, row_sum)
    tl.store(lse + number + view * n_frames + frames, own_lse, mask=inside)
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
    views: tl.constexpr,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradient of one tile of queries; leaves delta = sum(out * out_grad) for `key_gradient_kernel`."""
    at, number = locate(views * n_frames, heads, width)
    view, frames, first, last, known_at = locate_queries(edges, n_frames, views, tile_q)
    inside, stride = frames < n_frames, heads * width
    own, number = at + view * n_frames * stride, number + view * n_frames
    q_rows = load_rows(q + own, stride, frames, n_frames, width, tile_d, False)
    out_rows = load_rows(out + own, stride, frames, n_frames, width, tile_d, False)
    grad_rows = load_rows(out_grad + own, stride, frames, n_frames, width, tile_d, False)
    own_lse = tl.load(lse + number + frames, mask=inside, other=0.0)
    own_delta = tl.sum(out_rows.to(tl.float32) * grad_rows.to(tl.float32), 1)
    tl.store(delta + number + frames, own_delta, mask=inside)
    grad = tl.zeros([tile_q, tile_d], tl.float32)
    low, high = tl.zeros([tile_q], tl.int32), tl.load(known_at + frames, mask=inside, other=0)
    sure = tl.load(known_at + first) // tile_k * tile_k
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, 0, sure, low, high, scale,
        width, tile_k, tile_d, True,
    )  # fmt: skip
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, sure, tl.load(known_at + last), low,
        high, scale, width, tile_k, tile_d, False,
    )  # fmt: skip
    for _ in tl.static_range(1, views):
        begin, low = tl.load(known_at + first), high
        at, known_at = at + n_frames * stride, known_at + n_frames
        high = tl.load(known_at + frames, mask=inside, other=0)
        grad = fold_query_gradient(
            grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, begin, tl.load(known_at + last), low,
            high, scale, width, tile_k, tile_d, False,
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
    views: tl.constexpr,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradients of one tile of keys and values.

    A settled key of block b is seen by the queries of view i from block b + i on; one in another view j by those of
    block b + i - j.
    """
    at, number = locate(views * n_frames, heads, width)
    tile, n_tiles = tl.program_id(0), tl.cdiv(n_frames, tile_k)
    view, first = tile // n_tiles, tile % n_tiles * tile_k  # settled keys, which more queries see, go first
    frames, last = first + tl.arange(0, tile_k), tl.minimum(first + tile_k, n_frames) - 1
    inside, stride = frames < n_frames, heads * width
    own = at + view * n_frames * stride
    k_rows = load_rows(k + own, stride, frames, n_frames, width, tile_d, False)
    v_rows = load_rows(v + own, stride, frames, n_frames, width, tile_d, False)
    own_k_grad = tl.zeros([tile_k, tile_d], tl.float32)
    own_v_grad = tl.zeros([tile_k, tile_d], tl.float32)
    for asking in tl.static_range(views):  # the view of the queries
        low_at = edges + (views - 1 + asking - view) * n_frames
        high_at = low_at + n_frames
        low = tl.load(low_at + frames, mask=inside, other=n_frames)
        high = tl.where(view > 0, tl.load(high_at + frames, mask=inside, other=0), n_frames)
        begin = tl.load(low_at + first)
        sure = begin + tl.cdiv(tl.load(low_at + last) - begin, tile_q) * tile_q  # from it on, all see all
        sure = tl.where(view > 0, tl.load(high_at + last), tl.minimum(sure, n_frames))
        q_at, out_grad_at = q + at + asking * n_frames * stride, out_grad + at + asking * n_frames * stride
        lse_at, delta_at = lse + number + asking * n_frames, delta + number + asking * n_frames
        own_k_grad, own_v_grad = fold_key_gradient(
            own_k_grad, own_v_grad, k_rows, v_rows, q_at, out_grad_at, lse_at, delta_at, stride,
            begin, sure, low, high, scale, width, tile_q, tile_d, False,
        )  # fmt: skip
        own_k_grad, own_v_grad = fold_key_gradient(
            own_k_grad, own_v_grad, k_rows, v_rows, q_at, out_grad_at, lse_at, delta_at, stride,
            sure, tl.where(view > 0, 0, n_frames), low, high, scale, width, tile_q, tile_d, True,
        )  # fmt: skip
    store_rows(k_grad + own, stride, frames, n_frames, own_k_grad * scale, width, tile_d)
    store_rows(v_grad + own, stride, frames, n_frames, own_v_grad, width, tile_d)


class _BlockCausal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> Tensor:
        q, k, v = rows_first(q), rows_first(k), rows_first(v)
        edges = block_edges(block, q.shape[2] // len(block))
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
    (batch, heads, n_positions, width), n_frames = q.shape, edges.shape[1]
    out, lse = new_rows(q), q.new_empty((batch, heads, n_positions), dtype=torch.float32)
    views = n_positions // n_frames
    tile_q, tile_k, warps = (32, 32, 4) if q.dtype == torch.float32 else (128, 64, 8)
    arguments = {
        "q": q, "k": k, "v": v, "out": out, "lse": lse, "edges": edges,
        "n_frames": n_frames, "heads": heads, "scale": width**-0.5,
        "views": views, "width": width, "tile_q": tile_q, "tile_k": tile_k, "tile_d": tile_of(width),
    }  # fmt: skip
    grid = (views * tiles(n_frames, tile_q), batch * heads)
    return out, lse, Launch(forward_kernel, grid, arguments, warps, 3)


def plan_backward(
    out_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, edges: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """Gradients of q, k, v, still unwritten, and the launches that write them, in this order."""
    (batch, heads, n_positions, width), n_frames = q.shape, edges.shape[1]
    q_grad, k_grad, v_grad, delta = new_rows(q), new_rows(k), new_rows(v), torch.empty_like(lse)
    views = n_positions // n_frames
    shared = {
        "q": q, "k": k, "v": v, "out_grad": out_grad, "lse": lse, "delta": delta, "edges": edges,
        "n_frames": n_frames, "heads": heads, "scale": width**-0.5, "views": views, "width": width,
        "tile_d": tile_of(width),
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
    n_queries = views * tiles(n_frames, of_queries["tile_q"])
    n_keys = views * tiles(n_frames, of_keys["tile_k"])
    warps = 4 if exact else 8
    return (q_grad, k_grad, v_grad), [
        Launch(query_gradient_kernel, (n_queries, batch * heads), shared | of_queries, warps, 3),
        Launch(key_gradient_kernel, (n_keys, batch * heads), shared | of_keys, warps, 2),
    ]
