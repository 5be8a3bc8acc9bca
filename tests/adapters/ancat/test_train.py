"""Training for real, of tiny models on whistles: it learns, it waits as it is told, and it resumes exactly."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.ancat.corpus import Clip, Corpus, FeatureCache
from adapters.ancat.train import CHECKPOINT, LOG, Recipe, Trainer
from asr.transducer.model import Transducer
from asr.transducer.pieces import Pieces

RECIPE = Recipe(steps=6, batch_seconds=8.0, learning_rate=3e-3, warmup=3, masked=0.1)
FRAME_MS = 40
AT_MOST_MS = 2 * 4 * FRAME_MS  # layers, frames of a span


@pytest.fixture
def make_trainer(
    make_model: Callable[[], Transducer], corpus: Corpus, cache: FeatureCache
) -> Callable[..., Trainer]:
    def make(
        out: Path,
        recipe: Recipe = RECIPE,
        features: FeatureCache | None = cache,
        change: Callable[[Transducer], object] = lambda model: None,
    ) -> Trainer:
        model = make_model()
        change(model)
        return Trainer(model, corpus, recipe, out, features)

    return make


def eager(model: Transducer) -> None:
    """Schedulers that begin by waiting for all they may."""
    for layer in model.encoder.layers:
        layer.scheduler.own.bias.data.fill_(1.0)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: w.detach().clone() for n, w in trainer.model.named_parameters()}


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def test_the_losses_fall(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=60)
    trainer, told = make_trainer(tmp_path, recipe), []
    before = weights(trainer)
    trainer.run(progress=lambda step, record: told.append(step))
    records = logged(tmp_path)
    assert [record["step"] for record in records] == told == list(range(1, 61))
    for loss in ("rnnt", "ctc"):
        values = [record[loss] for record in records]
        assert mean(values[-10:]) < 0.6 * mean(values[:5])
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("trunk."))
    assert not torch.equal(before["predictor.mix.weight"], after["predictor.mix.weight"])
    assert len({record["latency_ms"] for record in records}) > 10, "right contexts are drawn anew"
    assert not trainer.model.training


@pytest.mark.parametrize("policy", ["random", "adaptive"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    make_trainer: Callable[..., Trainer], tmp_path: Path, policy: str
) -> None:
    recipe = replace(RECIPE, policy=policy, target_ms=40, price_rate=0.5)
    whole = make_trainer(tmp_path / "whole", recipe)
    whole.run()

    def interrupt(step: int, _: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "pieces", recipe).run(save_every=3, progress=interrupt)
    resumed = make_trainer(tmp_path / "pieces", recipe)
    assert resumed.step == 3
    assert (resumed.price > 0) == (policy == "adaptive")
    resumed.run()
    assert resumed.price == whole.price
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    assert logged(tmp_path / "pieces")[-1] == logged(tmp_path / "whole")[-1]


def test_a_finished_run_has_nothing_left_to_do(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(RECIPE, steps=1)).run()
    again = make_trainer(tmp_path, replace(RECIPE, steps=1))
    before = weights(again)
    again.run()
    assert again.step == len(logged(tmp_path)) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in weights(again).items())


def test_the_price_of_latency_drives_the_true_latency_down(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=60, policy="adaptive", target_ms=80, learning_rate=1e-2)
    waited, prices = {}, {}
    for rate in (0.0, 0.05):
        out = tmp_path / str(rate)
        make_trainer(out, replace(recipe, price_rate=rate), change=eager).run()
        waited[rate] = [record["latency_ms"] for record in logged(out)]
        prices[rate] = [record["price"] for record in logged(out)]
    assert mean(waited[0.0][:3]) > 0.7 * AT_MOST_MS
    assert mean(waited[0.05][:3]) > 0.7 * AT_MOST_MS
    assert mean(waited[0.0][-10:]) > 160, "for its own sake, nothing waits less"
    assert mean(waited[0.05][-10:]) < 120
    assert set(prices[0.0]) == {0.0}
    assert 0 < max(prices[0.05]) <= 1


@pytest.mark.parametrize(("policy", "latency_ms"), [("causal", 0), ("layerwise:1,0", 40), ("chunked:3", 40)])
def test_controls_train_under_their_own_policy(
    make_trainer: Callable[..., Trainer], tmp_path: Path, policy: str, latency_ms: float
) -> None:
    make_trainer(tmp_path, replace(RECIPE, steps=2, policy=policy)).run()
    for record in logged(tmp_path):
        assert record["latency_ms"] == pytest.approx(latency_ms, abs=4)  # less at the end of clips
        assert record["price"] == 0


def test_without_a_cache_the_trunk_learns_from_audio(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def thaw(model: Transducer) -> None:
        model.trunk.encoder.blocks[0].requires_grad_(True)

    recipe = replace(RECIPE, steps=4, guided=3)
    trainer = make_trainer(tmp_path, recipe, features=None, change=thaw)
    before = weights(trainer)
    trainer.run()
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert {"trunk.mix", "trunk.encoder.blocks.0.attn.query.weight", "ctc.weight"} <= changed
    assert not any(name.startswith(("trunk.encoder.blocks.1.", "trunk.encoder.conv1")) for name in changed)
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)["weights"]
    assert changed <= kept.keys()
    resumed = make_trainer(tmp_path, recipe, features=None, change=thaw)
    assert resumed.step == 4
    assert all(torch.equal(weight, weights(trainer)[name]) for name, weight in weights(resumed).items())


def test_without_an_alignment_the_first_steps_teach_all_the_same(
    make_model: Callable[[], Transducer], clips: list[Clip], pieces: Pieces, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=1, guided=4, trunk_learning_rate=0.0)
    Trainer(make_model(), Corpus(clips, pieces), recipe, tmp_path).run()
    assert logged(tmp_path)[0]["grad_norm"] > 0
