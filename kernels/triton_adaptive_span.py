"""The Triton twin of `adaptive_span_attention`, forward and backward.

Keys before a tile of queries are only windowed; among its own frames and those ahead, the right mask multiplies the
exponentials. The largest score is that of what is seen; what is not seen may be larger, and matters only to the
gradient of its mask, where it is bounded.
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
    dot,
    finish,
    fold_key_gradient,
    fold_query_gradient,
    load_rows,
    locate,
    scored,
    store_rows,
)

#: LARGEST_UNSEEN of the torch path, to base 2.
MOST_EXPONENT = tl.constexpr(20 * 1.4426950408889634)

OTHER_TILE = 32  # rows of the other side that a program takes at a time


@triton.jit
def mask_of(
    right: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    n_frames: tl.tensor,
    span: tl.tensor,
    left: tl.tensor,
) -> tl.tuple:
    """The masks of `query` frames on `key` frames, which broadcast; whether in reach at all; whether ahead."""
    ahead = key - query
    ahead_of = (ahead > 0) & (ahead <= span) & (key < n_frames) & (query < n_frames)
    soft = tl.load(right + query * span + ahead - 1, mask=ahead_of, other=0.0).to(tl.float32)
    behind = (ahead <= 0) & (ahead >= -left)
    return tl.where(behind, 1.0, soft), behind | ahead_of, ahead_of


@triton.jit
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    span: tl.tensor,
    left: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The outputs and log-sum-exps of one tile of queries."""
    at, number = locate(n_frames, heads, width)
    stride, first = heads * width, tl.program_id(0) * tile_q
    frames = first + tl.arange(0, tile_q)
    right += (tl.program_id(1) // heads).to(tl.int64) * n_frames * span
    q_rows = load_rows(q + at, stride, frames, n_frames, width, tile_d, False)
    acc = tl.zeros([tile_q, tile_d], tl.float32)
    row_max = tl.full([tile_q], -float("inf"), tl.float32)
    row_sum = tl.zeros([tile_q], tl.float32)
    acc, row_max, row_sum = attend(
        acc, row_max, row_sum, q_rows, k + at, v + at, stride, tl.maximum(first - left, 0), first,
        frames - left, first + tl.zeros_like(frames), scale, width, tile_k, tile_d, False,
    )  # fmt: skip
    end = tl.minimum(first + tile_q + span, n_frames)
    for start in range(first, end, tile_k):
        keys = start + tl.arange(0, tile_k)
        k_rows = load_rows(k + at, stride, keys, end, width, tile_d, False)
        v_rows = load_rows(v + at, stride, keys, end, width, tile_d, False)
        mask, _, _ = mask_of(right, frames[:, None], keys[None, :], n_frames, span, left)
        scores = tl.where(mask > 0, scored(q_rows, k_rows, scale), -float("inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(scores - base[:, None]) * mask
        rescale = tl.exp2(row_max - base)
        acc = acc * rescale[:, None] + dot(weights.to(v_rows.dtype), v_rows)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
    acc, own_lse = finish(acc, row_max, row_sum)
    tl.store(lse + number + frames, own_lse, mask=frames < n_frames)
    store_rows(out + at, stride, frames, n_frames, acc, width, tile_d)


@triton.jit
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    q_grad: tl.tensor,
    right_grad: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    span: tl.tensor,
    left: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradients of one tile of queries and of its masks, for one head; leaves delta for `key_gradient_kernel`."""
    at, number = locate(n_frames, heads, width)
    stride, first = heads * width, tl.program_id(0) * tile_q
    frames = first + tl.arange(0, tile_q)
    right += (tl.program_id(1) // heads).to(tl.int64) * n_frames * span
    q_rows = load_rows(q + at, stride, frames, n_frames, width, tile_d, False)
    out_rows = load_rows(out + at, stride, frames, n_frames, width, tile_d, False)
    grad_rows = load_rows(out_grad + at, stride, frames, n_frames, width, tile_d, False)
    own_lse = tl.load(lse + number + frames, mask=frames < n_frames, other=0.0)
    own_delta = tl.sum(out_rows.to(tl.float32) * grad_rows.to(tl.float32), 1)
    tl.store(delta + number + frames, own_delta, mask=frames < n_frames)
    grad = tl.zeros([tile_q, tile_d], tl.float32)
    grad = fold_query_gradient(
        grad, q_rows, grad_rows, own_lse, own_delta, k + at, v + at, stride, tl.maximum(first - left, 0), first,
        frames - left, first + tl.zeros_like(frames), scale, width, tile_k, tile_d, False,
    )  # fmt: skip
    end = tl.minimum(first + tile_q + span, n_frames)
    for start in range(first, end, tile_k):
        keys = start + tl.arange(0, tile_k)
        k_rows = load_rows(k + at, stride, keys, end, width, tile_d, False)
        v_rows = load_rows(v + at, stride, keys, end, width, tile_d, False)
        mask, within, ahead = mask_of(right, frames[:, None], keys[None, :], n_frames, span, left)
        exponents = scored(q_rows, k_rows, scale) - own_lse[:, None]
        exponents = tl.where(mask > 0, exponents, tl.minimum(exponents, MOST_EXPONENT))
        slopes = tl.exp2(exponents) * (dot(grad_rows, tl.trans(v_rows)) - own_delta[:, None])
        slopes = tl.where(within, slopes, 0.0)  # of the weight before its mask
        to_right = frames[:, None] * span + keys[None, :] - frames[:, None] - 1
        tl.store(right_grad + number * span + to_right, slopes, mask=ahead)
        grad += dot((slopes * mask).to(k_rows.dtype), k_rows)
    store_rows(q_grad + at, stride, frames, n_frames, grad * scale, width, tile_d)


@triton.jit
def key_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    right: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    k_grad: tl.tensor,
    v_grad: tl.tensor,
    n_frames: tl.tensor,
    heads: tl.tensor,
    span: tl.tensor,
    left: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """The gradients of one tile of keys and v_rows."""
    at, number = locate(n_frames, heads, width)
    stride, first = heads * width, tl.program_id(0) * tile_k
    keys, after = first + tl.arange(0, tile_k), tl.minimum(first + tile_k, n_frames)
    right += (tl.program_id(1) // heads).to(tl.int64) * n_frames * span
    k_rows = load_rows(k + at, stride, keys, n_frames, width, tile_d, False)
    v_rows = load_rows(v + at, stride, keys, n_frames, width, tile_d, False)
    own_k_grad = tl.zeros([tile_k, tile_d], tl.float32)
    own_v_grad = tl.zeros([tile_k, tile_d], tl.float32)
    own_k_grad, own_v_grad = fold_key_gradient(
        own_k_grad, own_v_grad, k_rows, v_rows, q + at, out_grad + at, lse + number, delta + number, stride,
        after, tl.minimum(after + left, n_frames), keys, keys + left + 1, scale, width, tile_q, tile_d, False,
    )  # fmt: skip
    for start in range(tl.maximum(first - span, 0), after, tile_q):
        frames = start + tl.arange(0, tile_q)
        q_rows = load_rows(q + at, stride, frames, after, width, tile_d, False)
        grad_rows = load_rows(out_grad + at, stride, frames, after, width, tile_d, False)
        own_lse = tl.load(lse + number + frames, mask=frames < after, other=float("inf"))
        own_delta = tl.load(delta + number + frames, mask=frames < after, other=0.0)
        mask, _, _ = mask_of(right, frames[None, :], keys[:, None], n_frames, span, left)
        exponents = scored(k_rows, q_rows, scale) - own_lse[None, :]
        exponents = tl.where(mask > 0, exponents, -float("inf"))
        weights = tl.exp2(exponents) * mask  # (keys, queries)
        own_v_grad += dot(weights.to(q_rows.dtype), grad_rows)
        slopes = weights * (dot(v_rows, tl.trans(grad_rows)) - own_delta[None, :])
        own_k_grad += dot(slopes.to(q_rows.dtype), q_rows)
    store_rows(k_grad + at, stride, keys, n_frames, own_k_grad * scale, width, tile_d)
    store_rows(v_grad + at, stride, keys, n_frames, own_v_grad, width, tile_d)


class _AdaptiveSpan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, right: Tensor, left: int) -> Tensor:
        q, k, v, right = rows_first(q), rows_first(k), rows_first(v), right.contiguous()
        out, lse, launch = plan_forward(q, k, v, right, left)
        launch.run()
        ctx.save_for_backward(q, k, v, right, out, lse)
        ctx.left = left
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, right, out, lse = ctx.saved_tensors
        gradients, right_grad, launches = plan_backward(
            rows_first(out_grad), q, k, v, right, out, lse, ctx.left
        )
        for launch in launches:
            launch.run()
        return (*gradients, right_grad.sum(1).to(right.dtype), None)


def attention(q: Tensor, k: Tensor, v: Tensor, right: Tensor, left: int) -> Tensor:
    """Twin of `adaptive_span_attention`; shapes as there, all on one device and q, k, v of one type."""
    assert q.dtype == k.dtype == v.dtype
    out: Tensor = _AdaptiveSpan.apply(q, k, v, right, left)
    return out


def plan_forward(q: Tensor, k: Tensor, v: Tensor, right: Tensor, left: int) -> tuple[Tensor, Tensor, Launch]:
    """Outputs and log-sum-exps (to base 2), still unwritten, and the launch that writes them.

    Args:
        q, k, v: as `rows_first` leaves them; right: contiguous.
    """
    batch, heads, n_frames, _ = q.shape
    out, lse = new_rows(q), q.new_empty((batch, heads, n_frames), dtype=torch.float32)
    arguments = {"q": q, "k": k, "v": v, "right": right, "out": out, "lse": lse, **_numbers(q, right, left)}
    tile = _tile(q)
    arguments |= {"tile_q": tile, "tile_k": OTHER_TILE}
    return out, lse, Launch(forward_kernel, (tiles(n_frames, tile), batch * heads), arguments, 4, 2)


def plan_backward(
    out_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, right: Tensor, out: Tensor, lse: Tensor, left: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, list[Launch]]:
    """Gradients of q, k, v and, head by head, of `right` (B, H, T, R), and the launches that write them, in order."""
    batch, heads, n_frames, _ = q.shape
    q_grad, k_grad, v_grad, delta = new_rows(q), new_rows(k), new_rows(v), torch.empty_like(lse)
    right_grad = right.new_zeros((batch, heads, *right.shape[1:]), dtype=torch.float32)
    shared = {"q": q, "k": k, "v": v, "right": right, "out_grad": out_grad, "lse": lse, "delta": delta}
    shared |= _numbers(q, right, left)
    tile = _tile(q)
    of_queries = {
        "out": out,
        "q_grad": q_grad,
        "right_grad": right_grad,
        "tile_q": tile,
        "tile_k": OTHER_TILE,
    }
    of_keys = {"k_grad": k_grad, "v_grad": v_grad, "tile_q": OTHER_TILE, "tile_k": tile}
    grid = tiles(n_frames, tile), batch * heads
    launches = [
        Launch(query_gradient_kernel, grid, shared | of_queries, 4, 2),
        Launch(key_gradient_kernel, grid, shared | of_keys, 4, 2),
    ]
    return (q_grad, k_grad, v_grad), right_grad, launches


def _tile(q: Tensor) -> int:
    """Rows that a program answers for: no more than a usual window, and what fits into registers."""
    return 32 if q.dtype == torch.float32 else 64


def _numbers(q: Tensor, right: Tensor, left: int) -> dict[str, Any]:
    """The arguments that are numbers, but for the tiles."""
    _, heads, n_frames, width = q.shape
    return {
        "n_frames": n_frames, "heads": heads, "span": right.shape[2], "left": left,
        "scale": width**-0.5, "width": width, "tile_d": tile_of(width),
    }  # fmt: skip
