"""Products of 8-bit integers: near the floating-point ones, and every row for itself."""

import pytest
import torch
import torch.nn.functional as F

from kernels.int8_linear import int8_linear, int8_linear_reference, pack, supported

SHAPES = [(1, 64, 5), (3, 384, 384), (11, 384, 1536), (31, 1536, 384), (2, 384, 50_257)]


@pytest.mark.skipif(not supported(), reason="without VNNI, sums of two products overflow")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_the_operation_is_its_reference(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, weight = torch.randn(rows, inputs) * 3, torch.randn(outputs, inputs) * inputs**-0.5
    bias = torch.randn(outputs) if biased else None
    truth = int8_linear_reference(x, weight, bias)
    out = int8_linear(x, pack(weight), bias)
    assert (out - truth).norm() < 1e-5 * truth.norm()


def test_it_is_near_the_floating_point_product() -> None:
    x, weight, bias = torch.randn(50, 384), torch.randn(384, 384) * 384**-0.5, torch.randn(384)
    x[:, 7] *= 20  # one input far larger than the others, as Whisper has them
    truth = F.linear(x, weight, bias)
    error = (int8_linear_reference(x, weight, bias) - truth).norm() / truth.norm()
    assert 1e-4 < error < 3e-2


def test_rows_do_not_depend_on_who_shares_the_batch() -> None:
    x, weight = torch.randn(67, 384), pack(torch.randn(1152, 384))
    x[5] *= 1_000
    together = int8_linear(x, weight)
    for n in (1, 2, 13, 40):
        assert torch.equal(int8_linear(x[:n], weight), together[:n])
    x[9] = torch.nan
    beside = int8_linear(x, weight)
    assert torch.equal(beside[:9], together[:9]) and torch.equal(beside[10:], together[10:])
    assert bool(beside[9].isnan().all())


def test_shapes_and_silence() -> None:
    weight, bias = pack(torch.randn(5, 64)), torch.randn(5)
    assert int8_linear(torch.randn(2, 3, 64), weight, bias).shape == (2, 3, 5)
    assert int8_linear(torch.zeros(1, 0, 64), weight, bias).shape == (1, 0, 5)
    torch.testing.assert_close(int8_linear(torch.zeros(2, 64), weight, bias), bias.expand(2, 5))
