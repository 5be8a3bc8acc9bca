"""A quantised model is the same model, a little coarser."""

from collections.abc import Callable

import pytest
import torch

from asr import quantised
from asr.checkpoint import Whisper
from asr.quantised import Int8Linear, for_serving, quantise


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def test_a_quantised_model_computes_nearly_the_same(make_tiny: Callable[[int], Whisper]) -> None:
    model, coarse = make_tiny(3), quantise(make_tiny(3))
    mel, tokens = torch.randn(2, 80, 120), torch.randint(0, 50_000, (2, 7))
    features, near = model.encoder(mel), coarse.encoder(mel)
    assert 0 < _relative(near, features) < 0.05
    rows = torch.arange(2)
    logits = []
    for decoder in (model.decoder, coarse.decoder):
        state = decoder.init_state(2)
        decoder.listen(features, state, rows)
        logits.append(decoder.logits(tokens, state, rows))
    assert 0 < _relative(logits[1], logits[0]) < 0.1
    audio = [(k.float(), v.float()) for k, v in coarse.decoder.keys_values(features)]
    scores, hidden = coarse.decoder.alignment_pass(tokens[:1], [(0, 0)], [(k[:1], v[:1]) for k, v in audio])
    assert scores.shape == (1, 7, 60) and bool(hidden.isfinite().all())


@torch.no_grad()
def test_a_stream_is_the_same_in_company(make_tiny: Callable[[int], Whisper]) -> None:
    encoder = quantise(make_tiny(3)).encoder
    chunks = [torch.randn(3, 80, 30) for _ in range(4)]
    state, alone = encoder.init_state(4), encoder.init_state(1)
    for mel in chunks:
        together, _, _ = encoder.step(mel, state, torch.tensor([2, 0, 3]))
        single, _, _ = encoder.step(mel[1:2], alone, torch.tensor([0]))
        # Products are equal to the bit; convolutions are not, and may tip an input over to the next step.
        assert _relative(together[1:2], single) < 5e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("integers", "halves", "dtype"),
    [(False, True, torch.bfloat16), (False, False, torch.float32), (True, True, torch.float32)],
)
def test_serving_takes_what_the_machine_multiplies(
    make_tiny: Callable[[int], Whisper],
    monkeypatch: pytest.MonkeyPatch,
    integers: bool,
    halves: bool,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(quantised, "supported", lambda: integers)
    monkeypatch.setattr(quantised, "_multiplies_bfloat16", lambda: halves)
    model = for_serving(make_tiny(3))
    assert model.decoder.ln.weight.dtype == dtype
    assert any(isinstance(module, Int8Linear) for module in model.modules()) == integers
    assert bool(model.encoder(torch.randn(1, 80, 40)).isfinite().all())
