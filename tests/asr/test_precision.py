"""What serving computes with, and that it is the same model."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from asr import precision
from asr.checkpoint import Whisper
from asr.precision import Int8Unembedding, for_serving, for_training, serve_vocabulary, unembedding
from kernels import half_linear, int7_linear, int8_linear

WITH_VNNI = pytest.mark.skipif(
    not int8_linear.supported(), reason="without VNNI, sums of two products overflow"
)


@pytest.mark.parametrize("native", [False, True])
def test_training_takes_bfloat16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with for_training(torch.device("cpu")):
        product = torch.nn.Linear(4, 4)(torch.ones(1, 4))
    assert product.dtype == (torch.bfloat16 if native else torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("vnni", [False, pytest.param(True, marks=WITH_VNNI)])
@pytest.mark.parametrize(("halves", "narrow"), [(False, False), (True, False), (False, True)])
def test_serving_takes_what_the_machine_multiplies(
    make_tiny: Callable[[int], Whisper],
    monkeypatch: pytest.MonkeyPatch,
    vnni: bool,
    halves: bool,
    narrow: bool,
) -> None:
    monkeypatch.setattr(int8_linear, "supported", lambda: vnni)
    monkeypatch.setattr(half_linear, "supported", lambda: narrow)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: halves)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model, served = make_tiny(3), for_serving(make_tiny(3))
    assert served.decoder.ln.weight.dtype == (torch.bfloat16 if halves else torch.float32)
    assert isinstance(served.decoder.unembedding, Int8Unembedding) == (vnni or narrow)
    attention, convolutions = served.encoder.blocks[0].attn, (served.encoder.conv1, served.encoder.conv2)
    assert (attention.joined is not None) == (halves or narrow)
    assert (attention.out.halved is not None) == narrow
    assert all((convolution.halved is not None) == narrow for convolution in convolutions)
    hidden = torch.randn(2, 7, 64)
    truth = model.decoder.project(hidden)
    near = served.decoder.project(hidden.to(served.decoder.ln.weight.dtype)).float()
    assert float((near - truth).norm() / truth.norm()) < 0.02 * (vnni or narrow or halves) + 1e-6
    mel = torch.randn(1, 80, 40)
    features, expected = served.encoder(mel).float(), model.encoder(mel)
    assert float((features - expected).norm() / expected.norm()) < (0.02 if halves else 2e-3 * narrow + 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", [pytest.param(int8_linear, marks=WITH_VNNI), int7_linear])
def test_the_best_tokens_are_scored_as_the_model_scores_them(
    make_tiny: Callable[[int], Whisper], monkeypatch: pytest.MonkeyPatch, kind: ModuleType
) -> None:
    monkeypatch.setattr(int8_linear, "supported", lambda: kind is int8_linear)
    monkeypatch.setattr(half_linear, "supported", lambda: True)
    embedding = make_tiny(3).decoder.token_embedding
    hidden = torch.randn(3, 5, 64)
    truth, near = hidden @ embedding.weight.T, unembedding(embedding)(hidden)
    best = truth >= truth.amax(-1, keepdim=True) - 0.8 * precision.NEAR
    assert 15 <= int(best.sum()) < best.numel() / 10
    torch.testing.assert_close(near[best], truth[best], rtol=1e-5, atol=1e-4)
    assert torch.equal(near.argmax(-1), truth.argmax(-1))
    assert float((near - truth).abs().max()) > 1e-3  # the others are what integers make of them


@torch.no_grad()
def test_a_vocabulary_is_held_once_and_in_half_precision_where_that_is_exact(
    make_tiny: Callable[[int], Whisper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_linear, "supported", lambda: False)
    monkeypatch.setattr(half_linear, "supported", lambda: True)
    exact, other, beside = (make_tiny(3).decoder for _ in range(3))
    exact.token_embedding.weight.data = exact.token_embedding.weight.half().float()
    published, tokens, hidden = exact.token_embedding.weight, torch.arange(40)[None], torch.randn(3, 5, 64)
    for decoder in (exact, other):
        serve_vocabulary(decoder, None)
    assert other.token_embedding.weight.dtype == torch.float32  # it has more digits
    assert exact.token_embedding.weight.dtype == torch.float16
    assert torch.equal(exact.token_embedding(tokens) + exact.positional_embedding[:40],
                       published[tokens] + exact.positional_embedding[:40])  # fmt: skip
    truth, near = hidden @ published.T, exact.project(hidden)
    assert torch.equal(near.argmax(-1), truth.argmax(-1))
    for_serving(beside, exact)
    assert beside.token_embedding is exact.token_embedding and beside.unembedding is exact.unembedding
