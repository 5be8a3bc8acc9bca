"""Training of the adaptive-lookahead transducer: resumable, on a CPU, a GPU, or several under torchrun.

One `Trainer` is one stage; adapters/ancat/stages.py puts them together:

- from audio, under random right contexts: a first head on a trunk that stays as it is, then both, if wanted.
- from cached features, under random right contexts, so that every mask is in distribution.
- from cached features, under one policy. Adaptive: schedulers decide, by hard masks with straight-through gradients,
  and waiting has a price, which dual ascent sets so that the true latency meets the target.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters import loop
from adapters.ancat.corpus import IGNORED, Batch, Corpus, FeatureCache, spec_mask
from adapters.ancat.losses import ctc_loss, guess_loss, latency, rnnt_loss
from adapters.ancat.policies import random_policy
from adapters.data import batches, epochs
from asr.mel import LogMel
from asr.precision import for_training
from asr.transducer.encoder import Schedule
from asr.transducer.model import Transducer
from asr.transducer.schedule import Policy, named
from asr.transducer.trunk import FEATURE_MS

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
HIGHEST_PRICE = 1.0  # nats per piece, of a frame of latency
DAMPING = 60.0  # steps' worth of price that answer an excess at once


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how; every field is written into the checkpoint."""

    steps: int = 2000
    policy: str = "random"  # or adaptive, causal, layerwise:1,1,0,0, chunked:9
    target_ms: float = 320.0  # mean latency that the adaptive policy is priced to
    batch_seconds: float = 160.0
    learning_rate: float = 1e-3
    trunk_learning_rate: float = 4e-4  # 0 leaves the trunk as it is
    warmup: int = 100
    ctc: float = 0.3  # weight
    fast_emit: float = 0.01
    guided: int = 0  # steps in which frames are told what the alignment thinks, at first nothing else
    masked: float = 0.5  # seconds of features masked per 5 s
    price_rate: float = 4e-4  # by which a step moves the price of a frame, where latency is twice its target
    clip_norm: float = 2.0
    seed: int = 0


class Trainer:
    """One run in one directory: `checkpoint.pt` and `log.jsonl`.

    Args:
        cache: features to read; None draws audio and trains the trunk's parameters that want gradients, too.
    """

    def __init__(
        self, model: Transducer, corpus: Corpus, recipe: Recipe, out: Path, cache: FeatureCache | None = None
    ) -> None:
        self.model, self.corpus, self.recipe, self.out, self.cache = model, corpus, recipe, out, cache
        self.team = loop.Team.join()
        self.device = model.device
        self.mel = LogMel(self.device)
        if cache is not None or not recipe.trunk_learning_rate:
            model.trunk.requires_grad_(False)
        self.fixed_policy = None if recipe.policy == "random" else named(recipe.policy, model.dims.layers)
        torch.manual_seed(recipe.seed)
        head = list(model.head_parameters())
        trunk = [p for p in model.trunk.parameters() if p.requires_grad]
        self.weights = [*head, *trunk]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": head, "peak": recipe.learning_rate},
                {"params": trunk, "peak": recipe.trunk_learning_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.step = 0
        self.price = 0.0  # of a frame of latency, in nats per piece
        out.mkdir(parents=True, exist_ok=True)
        if (out / CHECKPOINT).exists():
            self._resume()

    def run(
        self, *, save_every: int = 200, progress: Callable[[int, dict[str, Any]], None] = lambda *_: None
    ) -> None:
        """Trains to the last step; an interruption loses at most `save_every` steps."""
        if self.step == 0 and self.cache is None and bool((self.model.trunk.scale == 1).all()):
            self._standardise()
        self.model.train()
        for epoch, batch in self._batches():
            record = self._train_step(batch)
            self.step += 1
            if self.team.leads:
                with (self.out / LOG).open("a") as log:
                    log.write(json.dumps({"step": self.step, "epoch": epoch, **record}) + "\n")
                progress(self.step, record)
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self.save()
        self.model.eval()

    @torch.no_grad()
    def _standardise(self) -> None:
        """Fits the constants of the trunk's features to one batch of plain speech."""
        drawn = [self.corpus.draw(0, index) for index in range(min(64, len(self.corpus.clips)))]
        samples, lengths = self.corpus.padded(drawn)
        trunk = self.model.trunk
        trunk.standardise(self.mel.whole(samples.to(self.device)), lengths)
        self.team.follow([trunk.centre, trunk.scale])

    def save(self) -> None:
        """Writes the checkpoint, atomically."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        trained |= {"trunk.mix", "trunk.centre", "trunk.scale"}
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "price": self.price,
            "weights": {k: v for k, v in self.model.state_dict().items() if k in trained},
            "optimizer": self.optimizer.state_dict(),
        }
        loop.save(state, self.out / CHECKPOINT)

    def _resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.price = state["step"], state["price"]

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
        """Features, or in the trunk's stage log-mel frames, of one batch."""
        tokens, n_tokens = self.corpus.targets(indices)
        seconds = float(self.corpus.seconds[indices].sum())
        rng = np.random.default_rng((self.recipe.seed, epoch, indices[0]))
        labels = None
        if self.cache is not None:
            features, lengths = self.cache.read(epoch, indices)
            _mask_stretches(features, lengths, rng, self.recipe.masked)
        else:
            drawn = [self.corpus.draw(epoch, index) for index in indices]
            samples, lengths = self.corpus.padded(drawn)
            features = self.mel.whole(samples.to(self.device))
            spec_mask(features, rng)
            if self.corpus.alignment:  # else the first steps would ask for nothing
                labels = self.corpus.labels(indices, drawn)
        return Batch(features, lengths, tokens, n_tokens, seconds, labels)

    def _train_step(self, batch: Batch) -> dict[str, Any]:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, self.step, self.team.rank))
        rate = loop.share_of_rate(self.step, recipe.steps, recipe.warmup, least=0.02)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        policy = self._policy(rng)
        torch.manual_seed(int(rng.integers(2**31)))  # for dropout, so that a resumed run draws the same
        with for_training(self.device):
            frames, schedule = self._encode(batch, policy)
            tokens, n_tokens = batch.tokens.to(self.device), batch.n_tokens
            rnnt = rnnt_loss(
                self.model.joiner,
                self.model.predictor,
                frames,
                batch.lengths,
                tokens,
                n_tokens.to(self.device),
                recipe.fast_emit,
            )
            logits = self.model.ctc(frames)
            ctc = ctc_loss(logits, batch.lengths, tokens, n_tokens)
        labels = batch.labels if self.step < recipe.guided else None
        n_labels = 0 if labels is None else int((labels != IGNORED).sum())
        of_pieces, of_frames, of_labels = self.team.shares(
            int(n_tokens.sum()), int(batch.lengths.sum()), n_labels
        )
        rnnt, ctc = of_pieces * rnnt, of_pieces * ctc
        waited = of_frames * hard_latency(schedule, batch.lengths)
        waited, *losses = self.team.mean(waited, rnnt.item(), ctc.item())
        loss = rnnt + recipe.ctc * ctc
        if labels is not None:
            guess = of_labels * guess_loss(logits, labels.to(self.device))
            loss = guess if self.step < recipe.guided // 2 else loss + guess
        if recipe.policy == "adaptive":
            loss = loss + self._charge(waited) * of_frames * latency(schedule.rights, batch.lengths)
        norm = loop.descend(self.team, loss, self.weights, self.optimizer, recipe.clip_norm)
        return {
            "rnnt": losses[0], "ctc": losses[1], "latency_ms": waited * FEATURE_MS, "price": self.price,
            "spans": [_shares(span, batch.lengths, self.model.dims.span) for span in schedule.spans],
            "grad_norm": norm, "rate": rate, "seconds": batch.seconds,
        }  # fmt: skip

    def _charge(self, waited: float) -> float:
        """The price of a frame of latency in this step, when `waited` frames were waited for on average.

        Dual ascent moves the price towards the target, and a part in proportion keeps it from swinging (an augmented
        Lagrangian).
        """
        rate, aim = self.recipe.price_rate, self.recipe.target_ms / FEATURE_MS
        excess = min(1.0, max(-1.0, (waited - aim) / aim))
        self.price = min(HIGHEST_PRICE, max(0.0, self.price + rate * excess))
        return min(HIGHEST_PRICE, max(0.0, self.price + DAMPING * rate * excess))

    def _encode(self, batch: Batch, policy: Policy | None) -> tuple[Tensor, Schedule]:
        features = batch.features.to(self.device)
        if self.cache is None:
            with torch.set_grad_enabled(self.model.trunk.mix.requires_grad):
                features = self.model.trunk(features)
        return self.model.encoder(features, batch.lengths, policy)

    def _policy(self, rng: np.random.Generator) -> Policy | None:
        if self.recipe.policy != "random":
            return self.fixed_policy
        return random_policy(rng, self.model.dims.layers)


def hard_latency(schedule: Schedule, lengths: Tensor) -> float:
    """Mean true latency in frames over all frames of all rows."""
    at = torch.arange(schedule.done.shape[1], device=schedule.done.device)
    real = at < lengths.to(at.device)[:, None]
    return float(((schedule.done - at) * real).sum() / real.sum())


def _shares(spans: Tensor, lengths: Tensor, most: int) -> list[float]:
    """Share of frames with each span, 0 to `most`."""
    real = torch.arange(spans.shape[1]) < lengths[:, None]
    counts = torch.bincount(spans.cpu()[real], minlength=most + 1).float()
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def _mask_stretches(features: Tensor, lengths: Tensor, rng: np.random.Generator, seconds: float) -> None:
    """Silences a stretch of features, up to `seconds`, in every 5 s of each row (SpecAugment in time)."""
    most = int(seconds * 1000 / FEATURE_MS)
    for row, n in zip(features, lengths.tolist(), strict=True):
        for _ in range(max(1, n * FEATURE_MS // 5000)):
            width = int(rng.integers(0, most + 1))
            start = int(rng.integers(0, max(1, n - width)))
            row[start : start + width] = 0
