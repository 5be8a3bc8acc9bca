"""Training: it runs, it stops, and it goes on as if it had never stopped."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters import lora
from adapters.align import AlignedClip
from adapters.data import Augmentation, Example, Examples
from adapters.targets import Queries, collate
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

    def make(out: Path, recipe: Recipe = RECIPE, start_from: Path | None = None) -> Trainer:
        model = make_tiny(0)
        examples = Examples(clips, model.vocabulary, Augmentation(), seed=1)
        return Trainer(model, examples, features, recipe, out, start_from)

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


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_what_comes_out_keeps_a_share_of_what_it_began_with(
    make_trainer: Callable[..., Trainer], tmp_path: Path, kept: float
) -> None:
    make_trainer(tmp_path / "first").run()
    begun = tmp_path / "first" / "adapter"
    trainer = make_trainer(tmp_path / "second", replace(RECIPE, seed=1, kept=kept), begun)
    trainer.run()
    saved, start = (
        load_file(folder / "adapter_model.safetensors") for folder in (trainer.out / "adapter", begun)
    )
    own = {name.replace(".default", ""): weight for name, weight in weights(trainer).items()}
    assert saved.keys() == start.keys() == own.keys()
    assert any(not torch.equal(own[name].half(), start[name]) for name in start)
    for name, weight in saved.items():
        expected = (1 - kept) * own[name] + kept * start[name].float()
        torch.testing.assert_close(weight.float(), expected, atol=1e-3, rtol=1e-3)


def test_a_share_of_nothing_is_refused(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--start-from"):
        make_trainer(tmp_path, replace(RECIPE, kept=0.3))


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_masks_are_as_many_as_the_recipe_says_at_most(
    make_trainer: Callable[..., Trainer], tmp_path: Path, masks: int
) -> None:
    """A mask in frequency changes whole bins, one in time whole frames."""
    trainer = make_trainer(tmp_path)
    batch, _ = drawn(trainer, WHOLE)
    trainer.recipe = replace(RECIPE, masks=0)
    plain = trainer._mel(batch[:1], 15, np.random.default_rng(0))[0]
    trainer.recipe = replace(RECIPE, masks=masks)
    n_changed = 0
    for seed in range(30):
        changed = trainer._mel(batch[:1], 15, np.random.default_rng(seed))[0] != plain
        bins = changed.all(dim=1).int().tolist()
        bands = sum(now > before for before, now in pairwise([0, *bins]))
        assert bands <= masks
        n_changed += int(changed.any())
    assert n_changed == 0 if masks == 0 else 10 <= n_changed <= 30


def drawn(trainer: Trainer, augmentation: Augmentation) -> tuple[list[Example], list[Queries]]:
    """Two clips whose words are known, and their questions."""
    trainer.examples.augmentation = augmentation
    batch = trainer.examples.draw(0, [1, 2])
    return batch, [trainer._plan(example, 15, np.random.default_rng(0)) for example in batch]


WHOLE = Augmentation(silence_only=0, crop=0, join=0, speed=0)


@pytest.mark.parametrize("crop", [0, 1])
@torch.no_grad()
def test_the_unmodified_decoder_is_asked_about_every_token(
    make_trainer: Callable[..., Trainer], make_tiny: Callable[[int], Whisper], tmp_path: Path, crop: int
) -> None:
    trainer, unmodified = make_trainer(tmp_path), make_tiny(0).decoder
    with torch.no_grad():  # as if it had learnt something
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    batch, plans = drawn(trainer, replace(WHOLE, crop=crop))
    prefix, n_vocabulary = trainer.vocabulary.prefix, trainer.vocabulary.eot
    for example, queries, expected in zip(batch, plans, trainer._expectations(batch, plans), strict=True):
        assert expected is not None and expected.shape == (queries.n_text - len(prefix), n_vocabulary)
        (part,) = example.distil
        features = torch.from_numpy(trainer.features[part.row : part.row + part.n].astype(np.float32))[None]
        sequence = torch.tensor([[*prefix, *queries.tokens[len(prefix) : queries.n_text]]])
        width = sequence.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()[None, None]
        hidden = unmodified(sequence, features, torch.arange(width)[None], causal, None)
        alone = unmodified.project(hidden[0, len(prefix) - 1 : -1])[:, :n_vocabulary].softmax(-1)
        torch.testing.assert_close(expected, alone, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("change", [{"join": 1}, {"speed": 1}, {"silence_only": 1}])
def test_it_is_not_asked_about_what_it_has_not_heard(
    make_trainer: Callable[..., Trainer], tmp_path: Path, change: dict[str, float]
) -> None:
    trainer = make_trainer(tmp_path)
    batch, plans = drawn(trainer, replace(WHOLE, **change))
    assert trainer._expectations(batch, plans) == [None] * len(batch)


def test_expectations_take_their_share_of_the_loss(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Who expects just the tokens changes nothing; who expects others, as much as the recipe says."""
    trainer = make_trainer(tmp_path)
    _, plans = drawn(trainer, WHOLE)
    block = torch.arange(100)
    queries = collate(plans, block, views=2)
    encoded = torch.randn(2, 200, WIDTH, generator=torch.Generator().manual_seed(0))
    n_vocabulary = trainer.vocabulary.eot

    def loss(expected: list[Tensor | None]) -> float:
        return trainer._cross_entropy(encoded, queries, expected)[0].item()

    def certain(tokens: list[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(tokens), n_vocabulary).float()

    said = [q.tokens[len(trainer.vocabulary.prefix) : q.n_text] for q in plans]
    assert all(said)
    alone = loss([None, None])
    assert loss([certain(said[0]), certain(said[1])]) == pytest.approx(alone, rel=1e-5)
    uniform = [torch.full((len(tokens), n_vocabulary), 1 / n_vocabulary) for tokens in said]
    mixed = loss(list(uniform))
    trainer.recipe = replace(trainer.recipe, expectations=1.0)
    assert mixed == pytest.approx((alone + loss(list(uniform))) / 2, rel=1e-5)
    assert mixed != pytest.approx(alone, rel=1e-3)
