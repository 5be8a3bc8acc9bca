"""What serving computes with, and that it is the same model."""

from collections.abc import Callable

import pytest
import torch

from asr import precision
from asr.checkpoint import Whisper
from asr.precision import Int8Unembedding, for_serving


@torch.no_grad()
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_serving_takes_what_the_machine_multiplies(
    make_tiny: Callable[[int], Whisper], monkeypatch: pytest.MonkeyPatch, integers: bool, halves: bool
) -> None:
    monkeypatch.setattr(precision, "supported", lambda: integers)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: halves)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model, served = make_tiny(3), for_serving(make_tiny(3))
    assert served.decoder.ln.weight.dtype == (torch.bfloat16 if halves else torch.float32)
    assert isinstance(served.decoder.unembedding, Int8Unembedding) == integers
    hidden = torch.randn(2, 7, 64)
    truth = model.decoder.project(hidden)
    near = served.decoder.project(hidden.to(served.decoder.ln.weight.dtype)).float()
    assert float((near - truth).norm() / truth.norm()) < 0.02 * (integers or halves) + 1e-6


@torch.no_grad()
def test_the_best_tokens_are_scored_as_the_model_scores_them(make_tiny: Callable[[int], Whisper]) -> None:
    embedding = make_tiny(3).decoder.token_embedding
    hidden = torch.randn(3, 5, 64)
    truth, near = hidden @ embedding.weight.T, Int8Unembedding(embedding)(hidden)
    best = truth >= truth.amax(-1, keepdim=True) - 0.8 * precision.NEAR
    assert 15 <= int(best.sum()) < best.numel() / 10
    torch.testing.assert_close(near[best], truth[best], rtol=1e-5, atol=1e-4)
    assert torch.equal(near.argmax(-1), truth.argmax(-1))
    assert float((near - truth).abs().max()) > 1e-3  # the others are what integers make of them
