"""Attention under a right span per frame: against its reference, and where masks are 0."""

import pytest
import torch
from torch import Tensor

from kernels.adaptive_span_attention import (
    adaptive_span_attention,
    adaptive_span_attention_reference,
    span_mask,
)


def drawn(n: int, span: int, *, hard: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, v (2, 3, n, 8) and right masks (2, n, span)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for _ in range(3))
    right = torch.rand(2, n, span, generator=generator)
    return q, k, v, (right > 0.4).float().cumprod(-1) if hard else right.cumprod(-1)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("n", "span", "left"), [(1, 3, 4), (5, 8, 2), (30, 4, 7), (30, 1, 0), (21, 6, 50)])
def test_equals_the_reference_with_gradients(
    n: int, span: int, left: int, dtype: torch.dtype, tolerance: float, hard: bool
) -> None:
    inputs = drawn(n, span, hard=hard, dtype=dtype)
    own = [x.clone().requires_grad_() for x in inputs]
    true = [x.float().clone().requires_grad_() for x in inputs]
    out = adaptive_span_attention(*own, left)
    expected = adaptive_span_attention_reference(*true, left)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(own, true, strict=True):
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=5 * tolerance, rtol=5 * tolerance)


def test_the_mask_is_ones_to_the_left_and_spans_to_the_right() -> None:
    right = torch.tensor([[[0.9, 0.5], [0.8, 0.4], [0.7, 0.3], [0.6, 0.2]]])
    torch.testing.assert_close(
        span_mask(right, 1),
        torch.tensor([[[1, 0.9, 0.5, 0], [1, 1, 0.8, 0.4], [0, 1, 1, 0.7], [0, 0, 1, 1]]]),
    )


def test_a_frame_that_is_not_seen_changes_nothing() -> None:
    q, k, v, right = drawn(12, 4, hard=True)
    out = adaptive_span_attention(q, k, v, right, 3)
    seen = span_mask(right, 3)[0]
    assert 0 < seen.mean() < 0.8
    for j in range(12):
        louder_k, louder_v = k.clone(), v.clone()
        louder_k[:, :, j] *= 3
        louder_v[:, :, j] += 100
        changed = (adaptive_span_attention(q, louder_k, louder_v, right, 3) - out)[0].abs().amax(dim=(0, 2))
        assert (changed[seen[:, j] == 0] < 1e-5).all()
        assert (changed[seen[:, j] == 1] > 1e-2).all()


def test_what_is_masked_out_still_knows_what_it_is_worth() -> None:
    """At a mask of 0 the gradient is that of letting the frame in a little: finite, and not 0."""
    q, k, v, _ = drawn(9, 3, hard=True)
    right = torch.zeros(2, 9, 3, requires_grad=True)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))

    def worth(masks: Tensor) -> Tensor:
        return (adaptive_span_attention(q.double(), k.double(), v.double(), masks, 3) * weight).sum()

    worth(right).backward()
    assert right.grad is not None
    assert right.grad.isfinite().all()
    little = torch.zeros(2, 9, 3)
    little[1, 4, 2] = 1e-3
    with torch.no_grad():
        slope = (worth(little) - worth(torch.zeros(2, 9, 3))) / 1e-3
    assert float(right.grad[1, 4, 2]) == pytest.approx(float(slope), rel=0.02)
    assert abs(float(slope)) > 1e-2


def test_a_score_that_is_not_seen_does_not_drown_those_that_are() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    k[0, 0, 3] = q[0, 0, 2] * 400  # frame 2 would look at nothing but frame 3
    right = torch.zeros(1, 4, 2)
    seen = adaptive_span_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3], right[:, :3], left=3)
    right.requires_grad_()
    out = adaptive_span_attention(q, k, v, right, left=3)
    torch.testing.assert_close(out[:, :, :3], seen)
    out.sum().backward()
    assert bool(right.grad.isfinite().all())
