"""What the Triton kernels share on the device: tiles of rows, the running softmax over tiles of keys, its gradients.

Method: FlashAttention-2 (Dao, arXiv 2307.08691). Exponentials and log-sum-exps are to base 2, as the hardware's are.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(n_rows: tl.tensor, heads: tl.tensor, width: tl.constexpr) -> tl.tuple:
    """Of this program's batch row and head: its first element, and its first number of (B, H, n_rows)."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    return (batch * n_rows * heads + head) * width, tl.program_id(1).to(tl.int64) * n_rows


@triton.jit
def load_rows(
    base: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    end: tl.tensor,
    width: tl.constexpr,
    tile_d: tl.constexpr,
    whole: tl.constexpr,
) -> tl.tensor:
    """(rows, tile_d) of a matrix; zeros beyond column `width` and, unless `whole`, from row `end` on."""
    columns = tl.arange(0, tile_d)
    inside = columns[None, :] < width
    if not whole:
        inside = inside & (rows[:, None] < end)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    end: tl.tensor,
    tile: tl.tensor,
    width: tl.constexpr,
    tile_d: tl.constexpr,
) -> None:
    """Writes a (rows, tile_d) tile, but nothing beyond column `width` or from row `end` on."""
    columns = tl.arange(0, tile_d)
    inside = (columns[None, :] < width) & (rows[:, None] < end)
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def dot(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """a @ b in float32; float32 factors are not rounded to TensorFloat-32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def scored(q: tl.tensor, k: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """(queries, keys) scores, ready for exp2."""
    return dot(q, tl.trans(k)) * (scale * LOG2E)


@triton.jit
def seen(keys: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """(rows, keys) bool: each row has its own bounds, low <= key < high."""
    return (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])


@triton.jit
def attend(
    acc: tl.tensor,
    row_max: tl.tensor,
    row_sum: tl.tensor,
    q: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    stride: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
    whole: tl.constexpr,
) -> tl.tuple:
    """Folds the keys [begin, end) into a running softmax: (acc, row_max, row_sum) -> the same.

    A query sees the keys in [low, high), high <= end; `whole`: all of them, in whole tiles.
    """
    for start in range(begin, end, tile_k):
        keys = start + tl.arange(0, tile_k)
        k = load_rows(k_at, stride, keys, end, width, tile_d, whole)
        scores = scored(q, k, scale)
        if not whole:
            scores = tl.where(seen(keys, low, high), scores, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        base = new_max
        if not whole:  # a row may have seen nothing yet
            base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(scores - base[:, None])
        rescale = tl.exp2(row_max - base)
        v = load_rows(v_at, stride, keys, end, width, tile_d, whole)
        acc = acc * rescale[:, None] + dot(weights.to(v.dtype), v)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def finish(acc: tl.tensor, row_max: tl.tensor, row_sum: tl.tensor) -> tl.tuple:
    """The outputs of a running softmax and their log-sum-exp; a row that saw nothing has zeros and -inf."""
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)
    return acc / row_sum[:, None], row_max + tl.log2(row_sum)


@triton.jit
def fold_query_gradient(
    grad: tl.tensor,
    q: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    stride: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_k: tl.constexpr,
    tile_d: tl.constexpr,
    whole: tl.constexpr,
) -> tl.tensor:
    """Adds what the keys [begin, end) give to the gradient of a tile of queries; bounds as for `attend`."""
    for start in range(begin, end, tile_k):
        keys = start + tl.arange(0, tile_k)
        k = load_rows(k_at, stride, keys, end, width, tile_d, whole)
        v = load_rows(v_at, stride, keys, end, width, tile_d, whole)
        exponents = scored(q, k, scale) - lse[:, None]
        if not whole:
            exponents = tl.where(seen(keys, low, high), exponents, -float("inf"))
        weights = tl.exp2(exponents)
        slopes = weights * (dot(out_grad, tl.trans(v)) - delta[:, None])
        grad += dot(slopes.to(k.dtype), k)
    return grad


@triton.jit
def fold_key_gradient(
    k_grad: tl.tensor,
    v_grad: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    q_at: tl.tensor,
    out_grad_at: tl.tensor,
    lse_at: tl.tensor,
    delta_at: tl.tensor,
    stride: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    tile_q: tl.constexpr,
    tile_d: tl.constexpr,
    whole: tl.constexpr,
) -> tl.tuple:
    """Adds what the queries [begin, end) give to a tile of keys; those in [low, high) see a key, or all (`whole`)."""
    for start in range(begin, end, tile_q):
        frames = start + tl.arange(0, tile_q)
        q = load_rows(q_at, stride, frames, end, width, tile_d, False)
        out_grad = load_rows(out_grad_at, stride, frames, end, width, tile_d, False)
        lse = tl.load(lse_at + frames, mask=frames < end, other=float("inf"))  # no weight beyond the end
        delta = tl.load(delta_at + frames, mask=frames < end, other=0.0)
        exponents = scored(k, q, scale) - lse[None, :]  # (keys, queries)
        if not whole:
            exponents = tl.where(seen(frames, low, high), exponents, -float("inf"))
        weights = tl.exp2(exponents)
        v_grad += dot(weights.to(q.dtype), out_grad)
        slopes = weights * (dot(v, tl.trans(out_grad)) - delta[None, :])
        k_grad += dot(slopes.to(q.dtype), q)
    return k_grad, v_grad
