"""Training of the rescorer for real, of a tiny decoder on whistles; and the weight that it is found to deserve."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import loading
from adapters.ancat.corpus import Corpus
from adapters.ancat.rescorer import (
    LOG,
    Choice,
    Found,
    Recipe,
    Trainer,
    choice,
    n_best,
    train,
    write_facts,
)
from adapters.shipped import AdapterError, find, shipped
from asr.audio import read_audio
from asr.checkpoint import Whisper
from asr.transducer.model import Transducer
from asr.transducer.rescorer import Rescorer
from tests.conftest import SAMPLES, random_whisper
from tests.streaming.transducers import tiny_transducer

RECIPE = Recipe(steps=6, batch_seconds=8.0, learning_rate=3e-3, warmup=3, rank=4)


@pytest.fixture
def make_trainer(make_model: Callable[[], Transducer], corpus: Corpus) -> Callable[..., Trainer]:
    def make(out: Path, recipe: Recipe = RECIPE) -> Trainer:
        return Trainer(make_model(), random_whisper(0), corpus, recipe, out)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.whisper.named_parameters()}


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def test_the_decoder_alone_learns(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(RECIPE, steps=25, learning_rate=1e-2))
    before, trunk = weights(trainer), [weight.clone() for weight in trainer.trunk.parameters()]
    trainer.run()
    losses = [record["loss"] for record in logged(tmp_path)]
    assert len(losses) == 25
    assert mean(losses[-5:]) < 0.6 * mean(losses[:3])
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith("decoder.") and "lora_" in name for name in changed)
    assert any("cross_attn.key" in name for name in changed)
    assert all(map(torch.equal, trunk, trainer.trunk.parameters()))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.run()

    def interrupt(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "pieces").run(save_every=3, progress=interrupt)
    resumed = make_trainer(tmp_path / "pieces")
    assert resumed.step == 3
    resumed.run()
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    assert logged(tmp_path / "pieces")[-1] == logged(tmp_path / "whole")[-1]


def test_the_loss_is_the_mean_over_tokens_of_what_is_left_to_say(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Clips of a batch, padded to one length, and each by itself."""
    trainer = make_trainer(tmp_path)
    both = trainer._draw(0, [0, 2])
    rescorer = Rescorer(trainer.whisper.decoder, trainer.whisper.vocabulary, 1.0)
    expected, n_tokens = 0.0, 0
    _, frames = trainer.trunk.hear(both.mel)
    for row, (index, n) in enumerate(zip([0, 2], both.lengths.tolist(), strict=True)):
        text = trainer.corpus.clips[index].text
        # Beside a text that begins otherwise, all of a text is judged.
        expected -= rescorer.logprobs(frames[row, None, :n], [text, "x" + text])[0]
        n_tokens += len(trainer.whisper.vocabulary.encode(text)) + 1
    assert int((both.targets >= 0).sum()) == n_tokens
    assert trainer._loss(both).item() == pytest.approx(expected / n_tokens, rel=1e-3)


def test_the_weight_is_the_one_with_the_fewest_errors() -> None:
    choices = [
        Choice([2, 1, 0], [-1.0, -2.0, -9.0], [-9.0, -2.0, -5.0], 4),  # right from 1/8 on: the second
        Choice([0, 3], [-1.0, -3.0], [-9.0, -8.0], 6),  # right up to 2/3: the first
    ]
    found = Found.among(choices)
    assert (found.beam, found.rescored, found.oracle) == (0.2, 0.1, 0.0)
    assert 1 / 8 < found.weight < 2 / 3
    assert [one.made(found.weight) for one in choices] == [1, 0]
    useless = Found.among([Choice([0, 3], [-1.0, -1.1], [-9.0, -1.0], 6)])
    assert (useless.weight, useless.rescored) == (0.0, useless.beam)


def test_hypotheses_are_those_of_the_beam_that_streams(tiny: Whisper) -> None:
    model, samples = tiny_transducer(), read_audio(SAMPLES / "jfk.wav")[: 3 * 16_000]
    hypotheses, frames = n_best(model, samples, 4)
    assert len({one.tokens for one in hypotheses}) == len(hypotheses) > 3
    assert [one.score for one in hypotheses] == sorted((one.score for one in hypotheses), reverse=True)
    assert frames.shape == (1, 170, tiny.dims.n_audio_state)  # with the silence behind
    text = model.pieces.text(list(hypotheses[2].tokens))
    rescorer = Rescorer(tiny.decoder, tiny.vocabulary, 1.0)
    made = choice(model, rescorer, samples, text)
    assert made.errors[2] == 0 < made.errors[0]
    assert made.logprobs == rescorer.logprobs(
        frames, [model.pieces.text(list(one.tokens)) for one in hypotheses]
    )


def test_a_rescorer_is_trained_shipped_and_found(tiny_en: Whisper, tmp_path: Path) -> None:
    """Two steps on real weights and real speech; a second run has nothing left to train."""
    manifest, shown = SAMPLES / "manifest.jsonl", []
    recipe = Recipe(steps=2, batch_seconds=12.0)
    chosen = find("ancat-tiny.en-80")

    def run() -> tuple[Path, Found]:
        shown.clear()
        return train(chosen, manifest, manifest, recipe, tmp_path, lambda *what: shown.append(what[2]))

    folder, found = run()
    assert folder.name == "ancat-tiny.en-rescorer"
    assert "weight" in shown and any(line.startswith("loss") for line in shown)
    assert 0 <= found.oracle <= found.rescored <= found.beam < 0.6
    assert run() == (folder, found)
    assert set(shown) == {"weight"}
    rescorer = loading.rescorer(tiny_en, folder)
    assert rescorer.weight == found.weight
    learnt, begun = rescorer.decoder.blocks[0].cross_attn.key.weight, tiny_en.decoder.blocks[0].cross_attn.key
    assert not torch.equal(learnt, begun.weight)
    assert torch.equal(rescorer.decoder.token_embedding.weight, tiny_en.decoder.token_embedding.weight)
    careless = shipped("tiny.en")
    assert careless is not None
    with pytest.raises(AdapterError, match="not taught what this version asks of a rescorer"):
        loading.rescorer(tiny_en, careless)
    write_facts(folder, {})
    with pytest.raises(AdapterError, match="has no weight"):
        loading.rescorer(tiny_en, folder)


def test_clips_without_text_are_told(tmp_path: Path) -> None:
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"audio": "x.wav", "seconds": 3.0, "text": None}) + "\n")
    with pytest.raises(ValueError, match="no transcribed clips"):
        train(find("ancat-tiny.en-80"), SAMPLES / "manifest.jsonl", silent, RECIPE, tmp_path, lambda *_: None)
