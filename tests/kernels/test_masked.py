"""Attention over everything at once, on both of its ways, against its reference."""

import pytest
import torch

from kernels.masked_attention import masked_attention, masked_attention_reference


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_equals_the_reference_with_gradients(dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=generator) for n in (7, 40, 40))
    mask = torch.rand(2, 1, 7, 40, generator=generator) > 0.5 if masked else None
    own = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    true = [x.to(dtype).float().requires_grad_() for x in (q, k, v)]
    out, expected = masked_attention(*own, mask), masked_attention_reference(*true, mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(own, true, strict=True):
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=3 * tolerance, rtol=3 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_masked_is_not_seen(dtype: torch.dtype) -> None:
    q, k, v = (torch.ones(1, 1, 2, 4, dtype=dtype) for _ in range(3))
    v = v * torch.tensor([1.0, 5.0], dtype=dtype)[:, None]
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_attention(q, k, v, mask)[0, 0, :, 0].tolist() == [1.0, 3.0]
