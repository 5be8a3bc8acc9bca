"""Training: it runs, it stops, and it goes on as if it had never stopped."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from adapters import lora
from adapters.align import AlignedClip
from adapters.data import Augmentation, Examples
from adapters.train import CHECKPOINT, CURVES, LOG, Recipe, Trainer
from asr.checkpoint import Whisper

WIDTH = 64
RECIPE = Recipe(steps=4, batch_seconds=4.0, warmup=2, encoder_rank=4, decoder_rank=2, cuts=6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[AlignedClip]:
    """Four noises of a second or two that are said to be words, and one that nobody understood."""
    folder, made, offset = tmp_path_factory.mktemp("clips"), [], 0
    for i in range(5):
        n = 16_000 + 4_000 * i
        path = folder / f"{i}.wav"
        soundfile.write(path, np.random.default_rng(i).standard_normal(n) * 0.1, 16_000)
        words = [("Ask", 0.1, 0.4), ("not.", 0.4, 0.8)] if i else None
        made.append(AlignedClip(str(i), str(path), n / 16_000, words, offset, n // 320))
        offset += n // 320
    return made


@pytest.fixture
def make_trainer(make_tiny: Callable[[int], Whisper], clips: list[AlignedClip]) -> Callable[..., Trainer]:
    n_rows = clips[-1].offset + clips[-1].frames
    features = np.random.default_rng(0).standard_normal((n_rows, WIDTH)).astype(np.float16)

    def make(out: Path, recipe: Recipe = RECIPE) -> Trainer:
        model = make_tiny(0)
        examples = Examples(clips, model.vocabulary, Augmentation(), seed=1)
        return Trainer(model, examples, features, recipe, out)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {n: w.detach().clone() for n, w in trainer.adapted.named_parameters() if w.requires_grad}


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def test_a_run_learns_logs_and_leaves_an_adapter(
    make_trainer: Callable[..., Trainer], make_tiny: Callable[[int], Whisper], tmp_path: Path
) -> None:
    trainer, told = make_trainer(tmp_path), []
    before = weights(trainer)
    trainer.run(progress=lambda step, record: told.append(step))
    assert trainer.step == RECIPE.steps
    assert told == [1, 2, 3, 4]
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    records = logged(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for key in ("words", "waits", "distillation", "grad_norm"):
        assert all(math.isfinite(record[key]) for record in records)
    assert max(record["waits"] for record in records) > 0
    assert max(record["distillation"] for record in records) > 0
    rates = [record["lr"] for record in records]
    assert rates[0] == RECIPE.learning_rate / 2
    assert rates[1] == rates[2] == RECIPE.learning_rate
    assert RECIPE.learning_rate / 20 < rates[3] < rates[2]
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")
    model = make_tiny(0)
    lora.load(model, tmp_path / "adapter")
    saved = {n: w for n, w in model.named_parameters() if "lora_" in n}
    trained = {n: w for n, w in trainer.model.named_parameters() if "lora_" in n}
    assert saved.keys() == trained.keys()
    for name, weight in trained.items():
        torch.testing.assert_close(saved[name], weight.detach(), atol=1e-3, rtol=1e-3)  # kept as float16


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.run()

    def interrupt(step: int, _: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "pieces").run(save_every=2, progress=interrupt)
    resumed = make_trainer(tmp_path / "pieces")
    assert resumed.step == 2
    resumed.run()
    assert resumed.step == whole.step == RECIPE.steps
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    last, last_of_whole = logged(tmp_path / "pieces")[-1], logged(tmp_path / "whole")[-1]
    assert last == last_of_whole


def test_a_finished_run_has_nothing_left_to_do(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=1)
    make_trainer(tmp_path, recipe).run()
    again = make_trainer(tmp_path, recipe)
    before = weights(again)
    again.run()
    assert again.step == 1
    assert len(logged(tmp_path)) == 1
    assert all(torch.equal(weight, before[name]) for name, weight in weights(again).items())


def test_a_run_with_other_ranks_is_not_resumed(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(tmp_path, replace(RECIPE, steps=1)).run()
    with pytest.raises(ValueError, match="other ranks"):
        make_trainer(tmp_path, replace(RECIPE, encoder_rank=8))
    assert (tmp_path / CHECKPOINT).exists()
