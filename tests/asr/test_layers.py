"""Serving meets few shapes, however audio and words come."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asr.checkpoint import Whisper
from asr.layers import Attention, Convolution, Linear, linear
from asr.precision import lay_out
from kernels.int8_linear import padded

#: which argument has the rows
PRODUCTS = {"aten.mm": 0, "aten.addmm": 1, "aten.bmm": 0, "mkldnn._linear_pointwise": 0}


class Rows(TorchDispatchMode):
    """Notes how many rows each bfloat16 product has."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[int] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = PRODUCTS.get(str(op.overloadpacket))
        if place is not None and args[place].dtype == torch.bfloat16:
            self.met.add(args[place].shape[-2])
        return op(*args, **(kwargs or {}))


def test_few_numbers_of_rows_stand_for_all() -> None:
    assert len({padded(n) for n in range(1, 513)}) <= 40
    assert all(n <= padded(n) < n + max(1, min(30, n / 4)) for n in range(1, 2_000))
    assert all(padded(padded(n)) == padded(n) for n in range(2_000))
    assert padded(30) - 30 <= 2 and padded(1_500) == 1_500


@pytest.mark.parametrize("shape", [(1, 9, 64), (3, 11, 64), (33, 64), (1, 0, 64), (2, 4, 64)])
def test_padding_changes_nothing(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(5, 64), torch.randn(5)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    torch.testing.assert_close(linear(*half), F.linear(*half))


@torch.no_grad()
@pytest.mark.parametrize("rows", [(7,), (1, 30), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_weight_is_the_same_weight(rows: tuple[int, ...], bias: bool) -> None:
    layer = Linear(64, 96, bias=bias).to(torch.bfloat16)
    x = torch.randn(*rows, 64, dtype=torch.bfloat16)
    expected = layer(x)
    names = set(layer.state_dict())
    layer.pack()
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) == names


@torch.no_grad()
@pytest.mark.parametrize("rows", [(7,), (1, 30), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_halved_weight_is_nearly_the_same_weight(rows: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(64, 96, bias=bias), torch.randn(*rows, 64)
    expected, names = layer(x), set(layer.state_dict())
    layer.pack()
    assert layer.halved is not None and set(layer.state_dict()) == names
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=2e-3)
    assert layer.weight.shape == (96, 64) and layer.weight.untyped_storage().nbytes() == 4


@torch.no_grad()
@pytest.mark.parametrize(("stride", "n"), [(1, 3), (1, 31), (2, 30), (2, 31)])
def test_a_packed_convolution_is_nearly_the_same(stride: int, n: int) -> None:
    layer, x = Convolution(80, 96, 3, stride=stride, padding=1), torch.randn(2, 80, n)
    padded_out, within = layer(x), layer.within(x)
    layer.pack()
    assert layer.halved is not None
    torch.testing.assert_close(layer(x), padded_out, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(layer.within(x), within, rtol=1e-2, atol=2e-3)


@torch.no_grad()
def test_joined_products_are_the_three() -> None:
    attention, x = Attention(64, 2), torch.randn(3, 5, 64)
    expected = attention.queries_keys_values(x)
    attention.join()
    for joined, own in zip(attention.queries_keys_values(x), expected, strict=True):
        torch.testing.assert_close(joined, own)


@torch.no_grad()
def test_what_is_joined_is_not_kept_twice(make_tiny: Callable[[int], Whisper]) -> None:
    model = make_tiny(3).to(torch.bfloat16)
    lay_out(model)
    for attention in (block.attn for half in (model.encoder, model.decoder) for block in half.blocks):
        assert attention.joined is not None
        for part, own in zip(attention.parts, attention.joined.weight.chunk(3), strict=True):
            assert torch.equal(part.weight, own)
            assert part.weight.data_ptr() == own.data_ptr()
            assert part.packed is None


@torch.no_grad()
def test_what_is_laid_out_is_not_kept_twice(make_tiny: Callable[[int], Whisper]) -> None:
    """All float32 weights of products are let go of: the embedding, biases and norms are left."""
    model = make_tiny(3)
    lay_out(model)
    kept = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for weight in model.parameters()
    }
    embedding = model.decoder.token_embedding.weight
    assert sum(kept.values()) - embedding.nbytes < 0.1 * embedding.nbytes
    products = [module for module in model.modules() if isinstance(module, Linear | Convolution)]
    assert products and all(bool(module.weight.isnan().all()) for module in products)


@torch.no_grad()
@pytest.mark.parametrize("serving", [False, True])
def test_words_of_any_length_meet_few_shapes(make_tiny: Callable[[int], Whisper], serving: bool) -> None:
    model = make_tiny(3).to(torch.bfloat16)
    if serving:
        lay_out(model)
    decoder, row = model.decoder, torch.tensor([0])
    state = decoder.init_state(1)
    features = torch.randn(1, 40, 64, dtype=torch.bfloat16)
    with Rows() as rows:
        for n in [*range(2, 30), 447]:
            decoder.reset(state, row)
            decoder.listen(features[:, : n % 37 + 1], state, row)
            tokens = torch.arange(n)[None]
            scores, hidden = decoder.alignment_pass(tokens, [(0, 1)], decoder.heard(state, 0))
            assert scores.shape == (1, n, n % 37 + 1) and hidden.shape == (n, 64)
            assert decoder.logits(tokens, state, row).shape[:2] == (1, n)
    assert rows.met <= {padded(n) for n in range(1, 512)} | {model.dims.n_text_ctx}
    assert len(rows.met) > 5


@torch.no_grad()
def test_the_alignment_pass_does_not_see_its_padding(tiny: Whisper) -> None:
    audio = tiny.decoder.keys_values(torch.randn(1, 20, 64))
    tokens = torch.randint(0, 50_000, (1, 16))

    def scores(n: int) -> tuple[Tensor, Tensor]:
        return tiny.decoder.alignment_pass(tokens[:, :n], [(0, 0), (1, 1)], audio)

    whole, hidden = scores(16)  # needs no padding
    torch.testing.assert_close(scores(13)[0], whole[:, :13], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores(13)[1], hidden[:13], rtol=1e-3, atol=1e-3)
