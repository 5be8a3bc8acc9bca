"""Weights in half precision: the product of float32 inputs with them, and every row for itself."""

import pytest
import torch

from kernels import half_linear
from kernels.half_linear import half_linear_reference, pack

if "fbgemm" not in torch.backends.quantized.supported_engines:
    pytest.skip("no FBGEMM for this CPU", allow_module_level=True)

SHAPES = [((1,), 64, 5), ((3,), 384, 384), ((2, 30), 384, 1536), ((31,), 1536, 384), ((2, 0), 240, 384)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_the_operation_is_its_reference(
    rows: tuple[int, ...], inputs: int, outputs: int, biased: bool
) -> None:
    x, weight = torch.randn(*rows, inputs) * 3, torch.randn(outputs, inputs) * inputs**-0.5
    bias = torch.randn(outputs) if biased else None
    out = half_linear.half_linear(x, pack(weight, bias))
    torch.testing.assert_close(out, half_linear_reference(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_rows_do_not_depend_on_who_shares_the_batch() -> None:
    x, weight = torch.randn(200, 384), pack(torch.randn(1152, 384), torch.randn(1152))
    together = half_linear.half_linear(x, weight)
    for n in range(1, 200):
        assert torch.equal(half_linear.half_linear(x[:n], weight), together[:n]), n
    x[9] = torch.nan
    beside = half_linear.half_linear(x, weight)
    assert torch.equal(beside[:9], together[:9]) and torch.equal(beside[10:], together[10:])


def test_packing_leaves_the_choice_of_an_engine_as_it_was() -> None:
    before = torch.backends.quantized.engine
    pack(torch.randn(5, 64))
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_it_is_for_cpus_with_avx2_and_no_more(
    monkeypatch: pytest.MonkeyPatch, narrow: bool, wide: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: narrow)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: wide)
    assert half_linear.supported() == expected
