"""Low-rank adapters: they alone learn, survive the disk, fold into the weights, and come off without a trace."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from adapters import lora, merged
from adapters.shipped import WEIGHTS, AdapterError, shipped
from asr.checkpoint import Whisper

ENCODER_RANK, DECODER_RANK = 4, 2


def outputs(model: Whisper) -> Tensor:
    """What the model makes of a bit of audio and text: features and logits in one tensor."""
    mel = torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[50257, 50362, 843, 523]])
    features = model.encoder(mel)
    causal = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    hidden = model.decoder(tokens, features, torch.arange(4)[None], causal, None)
    return torch.cat([features.flatten(), model.decoder.project(hidden).flatten()])


def trained(model: Whisper, steps: int = 2) -> PeftModel:
    """An adapter that has learnt something, if nothing useful."""
    torch.manual_seed(0)
    adapted = lora.attach(model, encoder_rank=ENCODER_RANK, decoder_rank=DECODER_RANK)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs(model).square().mean().backward()
        optimizer.step()
    return adapted


def test_a_fresh_adapter_changes_nothing(make_tiny: Callable[[int], Whisper]) -> None:
    model = make_tiny(0)
    before = outputs(model)
    lora.attach(model, encoder_rank=ENCODER_RANK, decoder_rank=DECODER_RANK)
    torch.testing.assert_close(outputs(model), before)


def test_every_projection_is_adapted_with_its_rank(make_tiny: Callable[[int], Whisper]) -> None:
    model = make_tiny(0)
    lora.attach(model, encoder_rank=ENCODER_RANK, decoder_rank=DECODER_RANK)
    ranks = {name: weight.shape[0] for name, weight in model.named_parameters() if "lora_A" in name}
    encoder = [rank for name, rank in ranks.items() if name.startswith("encoder.")]
    decoder = [rank for name, rank in ranks.items() if name.startswith("decoder.")]
    assert encoder == [ENCODER_RANK] * (6 * 2)  # query, key, value, out and two of the MLP, in two layers
    assert decoder == [DECODER_RANK] * (10 * 2)
    layers = [module for module in model.modules() if hasattr(module, "scaling")]
    assert {scale for layer in layers for scale in layer.scaling.values()} == {1.0}


def test_only_adapters_learn(make_tiny: Callable[[int], Whisper]) -> None:
    base = make_tiny(0)
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    model = make_tiny(0)
    trained(model)
    after = {
        name.replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    changed = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert all(bool(weight.any()) for weight in changed)
    assert not torch.allclose(outputs(model), outputs(base), atol=1e-2)


def test_saved_loaded_and_folded_it_says_the_same(
    make_tiny: Callable[[int], Whisper], tmp_path: Path
) -> None:
    lora.save(trained(make_tiny(0)), tmp_path / "half")
    unmerged = make_tiny(0)
    adapted = lora.load(unmerged, tmp_path / "half")
    assert not any(weight.requires_grad for weight in adapted.parameters())
    expected = outputs(unmerged).detach()
    folded = merged.fold(make_tiny(0), tmp_path / "half", merged.CARELESS)
    assert not any("lora_" in name or weight.requires_grad for name, weight in folded.named_parameters())
    torch.testing.assert_close(outputs(folded), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, outputs(make_tiny(0)), atol=1e-2)
    by_peft = adapted.merge_and_unload(safe_merge=True).state_dict()
    assert all(torch.equal(weight, by_peft[name]) for name, weight in folded.state_dict().items())


def test_folded_with_a_scale_of_its_own(make_tiny: Callable[[int], Whisper], tmp_path: Path) -> None:
    """What we train has a scale of 1; an adapter of somebody else may have another, and one for each half."""
    lora.save(trained(make_tiny(0)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"lora_alpha": 3 * DECODER_RANK, "alpha_pattern": {r"encoder\..*": ENCODER_RANK / 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    by_peft = lora.load(make_tiny(0), tmp_path).merge_and_unload(safe_merge=True).state_dict()
    folded = merged.fold(make_tiny(0), tmp_path, merged.CARELESS).state_dict()
    assert all(torch.equal(weight, by_peft[name]) for name, weight in folded.items())


@pytest.mark.parametrize("option", ["use_dora", "use_rslora", "fan_in_fan_out"])
def test_an_adapter_of_another_make_is_not_folded(
    make_tiny: Callable[[int], Whisper], tmp_path: Path, option: str
) -> None:
    lora.save(trained(make_tiny(0), steps=1), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, option: True}))
    with pytest.raises(AdapterError, match=f"cannot be put on this model: it was made with {option}"):
        merged.fold(make_tiny(0), tmp_path, merged.CARELESS)


def test_at_full_width_the_disk_changes_nothing(make_tiny: Callable[[int], Whisper], tmp_path: Path) -> None:
    model = make_tiny(0)
    lora.save(trained(model), tmp_path / "full", dtype=torch.float32)
    again = make_tiny(0)
    lora.load(again, tmp_path / "full", trainable=True)
    assert torch.equal(outputs(again), outputs(model))
    assert {n for n, w in again.named_parameters() if w.requires_grad} == {
        n for n, w in model.named_parameters() if w.requires_grad
    }


def test_taken_off_it_leaves_the_base_bit_for_bit(make_tiny: Callable[[int], Whisper]) -> None:
    adapted = trained(make_tiny(0))
    base = adapted.unload()
    expected = make_tiny(0).state_dict()
    assert base.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in base.state_dict().items())


def test_an_adapter_that_is_not_there(tiny: Whisper, tmp_path: Path) -> None:
    for take in (lora.load, partial(merged.fold, kind=merged.CARELESS)):
        with pytest.raises(AdapterError, match=r"adapter_config\.json"):
            take(tiny, tmp_path)


def test_an_adapter_for_another_model(make_tiny: Callable[[int], Whisper], tmp_path: Path) -> None:
    lora.save(trained(make_tiny(0), steps=1), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["r"] = 2 * DECODER_RANK
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for take in (lora.load, partial(merged.fold, kind=merged.CARELESS)):
        with pytest.raises(AdapterError, match="cannot be put on this model"):
            take(make_tiny(0), tmp_path)


def test_an_adapter_that_is_no_beginning(make_tiny: Callable[[int], Whisper], tmp_path: Path) -> None:
    fresh = lora.attach(make_tiny(0), encoder_rank=ENCODER_RANK, decoder_rank=2 * DECODER_RANK)
    with pytest.raises(AdapterError, match="cannot be read"):
        lora.read(fresh, tmp_path)
    lora.save(trained(make_tiny(0), steps=1), tmp_path)
    with pytest.raises(AdapterError, match="other ranks"):
        lora.read(fresh, tmp_path)


@pytest.mark.parametrize("mark", [None, "{", '{"lookahead_blocks": 0}'])
def test_an_adapter_that_was_taught_otherwise(
    make_tiny: Callable[[int], Whisper], tmp_path: Path, mark: str | None
) -> None:
    """It would load, and hear badly; but it is good enough to train on from there."""
    lora.save(trained(make_tiny(0), steps=1), tmp_path)
    if mark is None:
        (tmp_path / merged.CARELESS.file).unlink()
    else:
        (tmp_path / merged.CARELESS.file).write_text(mark)
    with pytest.raises(AdapterError, match="train it again"):
        lora.load(make_tiny(0), tmp_path)
    lora.read(lora.attach(make_tiny(0), encoder_rank=ENCODER_RANK, decoder_rank=DECODER_RANK), tmp_path)


def test_a_trunk_is_the_encoder_alone_and_begins_with_a_careless_one(
    make_tiny: Callable[[int], Whisper], tmp_path: Path
) -> None:
    careless = trained(make_tiny(0), steps=1)
    lora.save(careless, tmp_path / "careless")
    trunk = lora.attach(make_tiny(0), encoder_rank=ENCODER_RANK, decoder_rank=0)
    lora.read(trunk, tmp_path / "careless", part="encoder")
    taken = {k: v for k, v in trunk.state_dict().items() if "lora_" in k}
    given = careless.state_dict()
    assert taken
    assert all(".encoder." in name for name in taken)
    assert all(torch.allclose(weight, given[name], atol=1e-3) for name, weight in taken.items())
    lora.save(trunk, tmp_path / "trunk", kind=merged.TRUNK)
    lora.load(make_tiny(0), tmp_path / "trunk", kind=merged.TRUNK)
    with pytest.raises(AdapterError, match="asks of a careless"):
        lora.load(make_tiny(0), tmp_path / "trunk")


@pytest.mark.parametrize("folder", sorted(WEIGHTS.glob("careless-*")), ids=lambda folder: folder.name)
def test_shipped_adapters_are_taught_what_streams_ask(folder: Path) -> None:
    assert json.loads((folder / merged.CARELESS.file).read_text()) == merged.CARELESS.taught


def test_no_adapter_is_shipped_for_an_unknown_model() -> None:
    assert shipped("enormous.en") is None
