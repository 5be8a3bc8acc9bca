"""Training of a transducer's rescorer: Whisper's decoder learns to read a strictly causal trunk, then how far to
trust it.

The trunk stays as it is. The decoder begins as the causal Whisper's and learns, on whole utterances, what the
transducer writes: cross-entropy on normalised texts. Its weight beside the transducer's own scores is the one with
the fewest word errors on clips that neither of the two was trained on: a trunk knows its training texts by heart.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import loading, loop, lora, merged
from adapters.ancat.corpus import IGNORED, Clip, Corpus, read_clips, spec_mask
from adapters.ancat.lateness import padded
from adapters.data import batches, epochs
from adapters.shipped import Model, rescorer_name, shipped
from asr.audio import Samples, read_audio
from asr.checkpoint import Whisper, load
from asr.mel import LogMel
from asr.precision import for_training
from asr.transducer.hypotheses import TransducerHypothesis
from asr.transducer.model import Transducer
from asr.transducer.rescorer import MOST, Rescorer

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
BEAM = 4  # in which hypotheses are found
WEIGHTS = np.arange(21) / 20  # that are tried


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how; every field is written into the checkpoint."""

    steps: int = 700
    batch_seconds: float = 40.0
    learning_rate: float = 4e-4
    warmup: int = 30
    rank: int = 64
    clip_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    mel: Tensor  # (B, 80, t)
    lengths: Tensor  # (B,) frames of the trunk
    tokens: Tensor  # (B, u) int64
    targets: Tensor  # (B, u) int64, IGNORED where there is no loss
    seconds: float


class Trainer:
    """One run in one directory: `checkpoint.pt`, `log.jsonl`, and the adapter at the end.

    Args:
        model: whose trunk is read.
        whisper: its base, unmodified; the decoder gets an adapter.
        corpus: clips and their texts.
        start_from: folder of a causal Whisper's adapter of the same rank, of which the decoder's half is taken.
    """

    def __init__(
        self,
        model: Transducer,
        whisper: Whisper,
        corpus: Corpus,
        recipe: Recipe,
        out: Path,
        start_from: Path | None = None,
    ) -> None:
        self.trunk, self.whisper, self.corpus = model.trunk, whisper, corpus
        self.recipe, self.out = recipe, out
        self.team = loop.Team.join()
        self.device = whisper.device
        self.mel = LogMel(self.device)
        torch.manual_seed(recipe.seed)
        self.adapted = lora.attach(whisper, encoder_rank=0, decoder_rank=recipe.rank)
        self.weights = [p for p in self.adapted.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        if (out / CHECKPOINT).exists():
            self._resume()
        elif start_from is not None:
            lora.read(self.adapted, start_from, part="decoder")

    def run(
        self, *, save_every: int = 100, progress: Callable[[int, dict[str, float]], None] = lambda *_: None
    ) -> None:
        """Trains to the last step; an interruption loses at most `save_every` steps."""
        for epoch, batch in self._batches():
            record = self._train_step(batch)
            self.step += 1
            if self.team.leads:
                with (self.out / LOG).open("a") as log:
                    log.write(json.dumps({"step": self.step, "epoch": epoch, **record}) + "\n")
                progress(self.step, record)
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self.save()

    def save(self) -> None:
        """Writes the checkpoint, atomically."""
        trained = {name for name, p in self.whisper.named_parameters() if p.requires_grad}
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "weights": {k: v for k, v in self.whisper.state_dict().items() if k in trained},
            "optimizer": self.optimizer.state_dict(),
        }
        loop.save(state, self.out / CHECKPOINT)

    def _resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        self.whisper.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """This process's part of every batch that is left, each drawn while the one before trains."""
        recipe, rank, size = self.recipe, self.team.rank, self.team.size

        def batches_of(epoch: int) -> list[list[int]]:
            rng = np.random.default_rng((recipe.seed, epoch))
            drawn = batches(self.corpus.seconds, recipe.batch_seconds * size, rng)
            return [indices for indices in drawn if len(indices) >= size]

        def draw(batch: tuple[int, list[int]]) -> tuple[int, Batch]:
            epoch, indices = batch
            return epoch, self._draw(epoch, indices[rank::size])

        stream = epochs(batches_of, self.step)
        return loop.drawn_ahead(islice(stream, max(0, recipe.steps - self.step)), draw)

    def _draw(self, epoch: int, indices: list[int]) -> Batch:
        samples, lengths = self.corpus.padded([self.corpus.draw(epoch, index) for index in indices])
        mel = self.mel.whole(samples.to(self.device))
        spec_mask(mel, np.random.default_rng((self.recipe.seed, epoch, indices[0])))
        vocabulary = self.whisper.vocabulary
        prefix = list(vocabulary.prefix)
        texts = [vocabulary.encode(self.corpus.clips[index].text) for index in indices]
        silent = [IGNORED] * (len(prefix) - 1)
        tokens = [torch.tensor(prefix + text) for text in texts]
        targets = [torch.tensor([*silent, *text, vocabulary.eot]) for text in texts]
        return Batch(
            mel,
            lengths * (self.trunk.width // self.whisper.dims.n_audio_state),
            torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED),
            float(self.corpus.seconds[indices].sum()),
        )

    def _train_step(self, batch: Batch) -> dict[str, float]:
        recipe = self.recipe
        rate = loop.share_of_rate(self.step, recipe.steps, recipe.warmup, least=0.02)
        self.optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
        with for_training(self.device):
            loss = self._loss(batch)
        (share,) = self.team.shares(int((batch.targets != IGNORED).sum()))
        loss = share * loss
        (mean,) = self.team.mean(loss.item())
        norm = loop.descend(self.team, loss, self.weights, self.optimizer, recipe.clip_norm)
        return {"loss": mean, "grad_norm": norm, "rate": rate, "seconds": batch.seconds}

    def _loss(self, batch: Batch) -> Tensor:
        """Nats a token."""
        decoder, tokens = self.whisper.decoder, batch.tokens.to(self.device)
        with torch.no_grad():
            _, frames = self.trunk.hear(batch.mel)
        n = tokens.shape[1]
        causal = torch.ones(1, 1, n, n, dtype=torch.bool, device=self.device).tril()
        heard = torch.arange(frames.shape[1]) < batch.lengths[:, None]
        positions = torch.arange(n, device=self.device).expand_as(tokens)
        hidden = decoder(tokens, frames, positions, causal, heard[:, None, None].to(self.device))
        asked = (batch.targets != IGNORED).to(self.device)
        logits = decoder.project(hidden[asked]).float()[:, : self.whisper.vocabulary.eot + 1]
        return F.cross_entropy(logits, batch.targets.to(self.device)[asked])


#: Called with how much is done, how much there is, and a line about it.
Show = Callable[[float, float, str], None]


def train(
    chosen: Model, manifest: Path, held_out: Path, recipe: Recipe, out: Path, show: Show, device: str = "cpu"
) -> tuple[Path, "Found"]:
    """Trains the rescorer of a transducer's trunk, and finds its weight; resumes where it stopped.

    Args:
        chosen: a transducer.
        manifest: the clips that it is trained on; held_out: those that tell its weight.

    Returns:
        The folder of what is shipped, OUT/TRUNK-rescorer, and what was found.

    Raises:
        ValueError: no clip of a manifest can be used.
    """
    assert chosen.head is not None and chosen.adapter is not None
    clips, others = read_clips(manifest), read_clips(held_out)
    for name, some in ((manifest, clips), (held_out, others)):
        if not some:
            raise ValueError(f"{name} has no transcribed clips of a length that can be used")
    base = load(chosen.base)
    model = loading.transducer(base, chosen.adapter, chosen.head, chosen.language).to(device)
    start = shipped(chosen.base) if recipe.rank == Recipe.rank else None
    corpus = Corpus(clips, model.pieces)
    trainer = Trainer(model, base.to(device), corpus, recipe, out / "rescorer", start)
    try:
        trainer.run(progress=lambda step, record: show(step, recipe.steps, f"loss {record['loss']:.3f}"))
    except KeyboardInterrupt:
        if trainer.team.leads:
            trainer.save()
        raise
    found = find_weight(model, Rescorer(base.decoder, base.vocabulary, 0.0), others, show)
    folder = out / rescorer_name(chosen.adapter.name)
    if trainer.team.leads:
        lora.save(trainer.adapted, folder, kind=merged.RESCORER)
        write_facts(folder, {**asdict(found), "held_out": len(others), "steps": recipe.steps})
    return folder, found


@dataclass(frozen=True)
class Choice:
    """One clip's hypotheses, the transducer's own first, as the two judge them."""

    errors: list[int]
    scores: list[float]  # log-probabilities of the transducer
    logprobs: list[float]  # of the decoder
    n_words: int  # of the reference

    def made(self, weight: float) -> int:
        """Errors of the choice at a weight."""
        weighed = (1 - weight) * np.array(self.scores) + weight * np.array(self.logprobs)
        return self.errors[int(weighed.argmax())]


@dataclass(frozen=True)
class Found:
    """The best weight, and word error rates."""

    weight: float
    beam: float  # without rescoring
    rescored: float
    oracle: float  # of the best hypotheses: no choice does better

    @classmethod
    def among(cls, choices: Sequence[Choice]) -> "Found":
        """The weight with the fewest errors; of several the middle one."""
        n_words = sum(choice.n_words for choice in choices)
        rates = [sum(choice.made(weight) for choice in choices) / n_words for weight in WEIGHTS.tolist()]
        best = [weight for weight, rate in zip(WEIGHTS.tolist(), rates, strict=True) if rate == min(rates)]
        oracle = sum(min(choice.errors) for choice in choices) / n_words
        return cls(best[len(best) // 2], rates[0], min(rates), oracle)


def find_weight(
    model: Transducer,
    rescorer: Rescorer,
    clips: Sequence[Clip],
    show: Show = lambda done, total, line: None,
    *,
    beam: int = BEAM,
) -> Found:
    """How much the rescorer is to be trusted, from clips (one at least) that nobody was trained on."""
    choices = []
    for number, clip in enumerate(clips, 1):
        choices.append(choice(model, rescorer, read_audio(clip.audio), clip.text, beam))
        show(number, len(clips), "weight")
    return Found.among(choices)


def choice(model: Transducer, rescorer: Rescorer, samples: Samples, text: str, beam: int = BEAM) -> Choice:
    """What there is to choose from in a clip (n,) that says `text`, as `normalise` writes it."""
    hypotheses, frames = n_best(model, samples, beam)
    texts = [model.pieces.text(list(one.tokens)) for one in hypotheses]
    aligned = [jiwer.process_words(text, said) for said in texts]
    return Choice(
        [one.substitutions + one.deletions + one.insertions for one in aligned],
        [one.score for one in hypotheses],
        rescorer.logprobs(frames, texts),
        len(text.split()),
    )


@torch.no_grad()
def n_best(model: Transducer, samples: Samples, beam: int) -> tuple[list[TransducerHypothesis], Tensor]:
    """What a clip (n,) may say, and the trunk's frames (1, T, d) of it."""
    audio, lengths = padded(samples)
    features, frames = model.trunk.hear(LogMel(model.device).whole(audio.to(model.device)))
    encoded, schedule = model.encoder(features[:, : int(lengths)].float(), lengths, model.policy)
    search = model.search()
    state, row = search.init_state(1), torch.tensor([0])
    search.reset(state, row, widths=[beam])
    search.step(encoded, lengths, schedule.done, state, row)
    per_feature = model.trunk.width // frames.shape[2]
    return search.n_best(state, 0, MOST), frames[:, : int(lengths) * per_feature]


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Notes in a rescorer's folder its weight, and what else one may want to know."""
    path = directory / merged.RESCORER.file
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({**merged.RESCORER.taught, **facts}, indent=1) + "\n")
    os.replace(part, path)
