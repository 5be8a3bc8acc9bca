"""Products of 8-bit weights and 7-bit inputs: exact in integers, near the real ones, and every row for itself."""

import pytest
import torch

from kernels.int7_linear import int7_linear, int7_linear_reference, pack

if "fbgemm" not in torch.backends.quantized.supported_engines:
    pytest.skip("no FBGEMM for this CPU", allow_module_level=True)


@pytest.mark.parametrize("rows", [1, 3, 11, 48])
def test_the_operation_is_its_reference(rows: int) -> None:
    x, weight = torch.randn(rows, 384) * 3, torch.randn(5_003, 384)
    truth = int7_linear_reference(x, weight)
    assert (int7_linear(x, pack(weight)) - truth).norm() < 1e-5 * truth.norm()


def test_between_two_steps_it_rounds_as_its_reference() -> None:
    x = torch.arange(-63, 63.5, 0.5).repeat(2, 1)  # every step, and every middle between two
    x *= torch.tensor([[1.0], [0.7]])
    weight = torch.eye(x.shape[1])
    assert torch.allclose(
        int7_linear(x, pack(weight)), int7_linear_reference(x, weight), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(sign: int) -> None:
    x, weight = torch.ones(2, 384), torch.full((64, 384), float(sign))
    torch.testing.assert_close(int7_linear(x, pack(weight)), torch.full((2, 64), 384.0 * sign))


def test_it_is_near_the_floating_point_product() -> None:
    x, weight = torch.randn(50, 384), torch.randn(384, 384) * 384**-0.5
    truth = x @ weight.T
    error = (int7_linear(x, pack(weight)) - truth).norm() / truth.norm()
    assert 1e-4 < error < 3e-2


def test_rows_do_not_depend_on_who_shares_the_batch() -> None:
    x, weight = torch.randn(67, 384), pack(torch.randn(1152, 384))
    x[5] *= 1_000
    together = int7_linear(x, weight)
    for n in (1, 2, 13, 40):
        assert torch.equal(int7_linear(x[:n], weight), together[:n])
    x[9] = torch.nan
    beside = int7_linear(x, weight)
    assert torch.equal(beside[:9], together[:9]) and torch.equal(beside[10:], together[10:])


def test_shapes_and_silence() -> None:
    weight = pack(torch.randn(5, 64))
    assert int7_linear(torch.randn(2, 3, 64), weight).shape == (2, 3, 5)
    assert int7_linear(torch.zeros(1, 0, 64), weight).shape == (1, 0, 5)
    assert torch.equal(int7_linear(torch.zeros(2, 64), weight), torch.zeros(2, 5))
