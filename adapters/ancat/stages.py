"""From a manifest to shippable heads: every stage in its own folder, finished ones skipped, broken ones resumed.

OUT/pieces.model      the vocabulary
OUT/first/            a first head on the trunk as it comes, from audio
OUT/trunk/            stage 0, if wanted: the trunk's adapter and the head together
OUT/features/         the trunk's features of a few augmented draws, since it does not change any more
OUT/any/              stage 1: the head under random right contexts
OUT/adaptive-320/     stage 2, one folder a policy: heads that go on from stage 1
OUT/ancat-NAME/, OUT/ancat-NAME-320/   what is shipped: the trunk's adapter, and a head
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters import lora, merged
from adapters.align import ALIGNED, read_aligned
from adapters.ancat.corpus import Clip, Corpus, FeatureCache, learn_pieces, read_clips
from adapters.ancat.curves import draw_curves
from adapters.ancat.lateness import fit_lateness
from adapters.ancat.train import CHECKPOINT, Recipe, Trainer
from adapters.loop import Team
from asr.checkpoint import load
from asr.transducer.encoder import EncoderDims
from asr.transducer.model import PIECES, Transducer, save_head
from asr.transducer.pieces import Pieces
from asr.transducer.schedule import named
from asr.transducer.trunk import Trunk

#: Called with the stage's name, how much of it is done, how much there is, and a line about it.
Show = Callable[[str, float, float, str], None]

FIRST = Recipe(steps=700, batch_seconds=80, warmup=40, guided=400, trunk_learning_rate=0.0)
TRUNK = Recipe(steps=900, batch_seconds=80, warmup=40)
ANY = Recipe(steps=8000, batch_seconds=40)
HEAD = Recipe(steps=600, batch_seconds=40, learning_rate=4e-4, warmup=30)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    base: str = "tiny.en"
    n_pieces: int = 256
    hours: float | None = None  # of the manifest, drawn at random; None takes all
    draws: int = 2  # augmented copies in the cache
    dropout: float = 0.1
    first: Recipe = FIRST
    trunk: Recipe = TRUNK
    any: Recipe = ANY
    head: Recipe = HEAD


class Stages:
    """The stages of one run in one folder.

    Args:
        careless: folder of the causal Whisper's adapter, with which the trunk begins.
        aligned: folder that `align` wrote, by which the first steps are guided and word times are set right.

    Raises:
        ValueError: no clip of the manifest can be used, or none is in the alignment.
    """

    def __init__(
        self,
        manifest: Path,
        out: Path,
        careless: Path,
        plan: Plan,
        show: Show,
        aligned: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.team = Team.join()
        self.out, self.careless, self.plan, self.show, self.device = out, careless, plan, show, device
        self.clips = some(read_clips(manifest), plan.hours)
        if not self.clips:
            raise ValueError(f"{manifest} has no transcribed clips of a length that can be used")
        out.mkdir(parents=True, exist_ok=True)
        if self.team.leads and not (out / PIECES).exists():
            part = out / (PIECES + ".part")
            part.write_bytes(learn_pieces(self.clips, plan.n_pieces).model)
            os.replace(part, out / PIECES)
        self.team.wait()
        self.pieces = Pieces.read(out / PIECES)
        known = {clip.audio for clip in self.clips}
        self.aligned = [c for c in read_aligned(aligned / ALIGNED) if c.audio in known] if aligned else []
        words = {clip.audio: clip.words for clip in self.aligned if clip.words}
        if aligned and not words:
            raise ValueError(
                f"{aligned} holds no clip of {manifest}: run `asr-stream align` on this manifest"
            )
        self.corpus = Corpus(self.clips, self.pieces, words)

    @property
    def hours(self) -> float:
        return float(self.corpus.seconds.sum()) / 3600

    @property
    def trunk_name(self) -> str:
        return f"ancat-{self.plan.base}"

    def run(self, policies: list[str]) -> list[Path]:
        """All stages, ending with a head for each policy ("adaptive:320", "causal", "chunked:9", ...).

        Raises:
            ValueError: there is no such policy, or OUT holds the features of other clips.
        """
        recipes = [of_policy(self.plan.head, policy) for policy in policies]  # told now, not after days
        self._train("first", self.plan.first, None)
        if self.plan.trunk.steps:
            self._train("trunk", self.plan.trunk, None, start="first")
        cache = self._features()
        self._train("any", self.plan.any, cache, start=self._settled)
        return [self._head(policy, recipe, cache) for policy, recipe in zip(policies, recipes, strict=True)]

    @property
    def _settled(self) -> str:
        """The stage after which the trunk does not change any more."""
        return "trunk" if self.plan.trunk.steps else "first"

    def _head(self, policy: str, recipe: Recipe, cache: FeatureCache) -> Path:
        """Trains and exports one head."""
        name = policy.replace(":", "-").replace(",", "")
        model = self._train(name, recipe, cache, start="any")
        folder = self.out / f"{self.trunk_name}-{name.removeprefix('adaptive-')}"
        trunk = self.trunk_name if self.plan.trunk.steps else self.careless.name
        facts: dict[str, Any] = {"base": self.plan.base, "trunk": trunk, "policy": recipe.policy}
        facts |= {"target_ms": recipe.target_ms} if recipe.policy == "adaptive" else {}
        facts |= {"hours": round(self.hours, 2), "steps": recipe.steps}
        if self.team.leads:
            model.policy = named(recipe.policy, model.dims.layers)
            show = partial(self.show, "word times")
            lateness = fit_lateness(model, self.aligned, show) if self.aligned else None
            save_head(model, folder, {**facts, "lateness": lateness and asdict(lateness)})
        return folder

    def _train(
        self, stage: str, recipe: Recipe, cache: FeatureCache | None, start: str | None = None
    ) -> Transducer:
        """Runs one stage to its end, and says what came of it."""
        model, adapted = self._model()
        if start is not None:
            saved = torch.load(self.out / start / CHECKPOINT, weights_only=True, map_location=self.device)
            model.load_state_dict(saved["weights"], strict=False)
        trainer = Trainer(model, self.corpus, recipe, self.out / stage, cache)

        def after_step(step: int, record: dict[str, float]) -> None:
            line = f"rnnt {record['rnnt']:.3f}, ctc {record['ctc']:.3f}, {record['latency_ms']:.0f} ms"
            self.show(stage, step, recipe.steps, line)

        try:
            trainer.run(progress=after_step)
        except KeyboardInterrupt:
            if self.team.leads:
                trainer.save()
            raise
        if self.team.leads:
            draw_curves(self.out / stage)
            if stage == "trunk":
                lora.save(adapted, self.out / self.trunk_name, kind=merged.TRUNK)
        self.team.wait()  # what comes next begins with what the first one has written
        return model

    def _features(self) -> FeatureCache:
        model, _ = self._model()
        saved = torch.load(self.out / self._settled / CHECKPOINT, weights_only=True, map_location=self.device)
        model.load_state_dict(saved["weights"], strict=False)
        cache = FeatureCache(self.out / "features", model.trunk.width)
        total, done = float(self.corpus.seconds.sum()) * (self.plan.draws - cache.draws), 0.0

        def after_batch(seconds: float) -> None:
            nonlocal done
            done += seconds
            self.show("features", done, total, f"{done / 3600:.1f} of {total / 3600:.1f} h")

        if self.team.leads:
            cache.write(self.corpus, model.eval().trunk, self.plan.draws, progress=after_batch)
        self.team.wait()
        return FeatureCache(cache.directory, cache.width)

    def _model(self) -> tuple[Transducer, lora.PeftModel]:
        """A fresh head on a trunk that begins as the causal Whisper's encoder."""
        base = load(self.plan.base, device=self.device)
        adapted = lora.attach(base, decoder_rank=0)
        lora.read(adapted, self.careless, part="encoder")
        torch.manual_seed(0)
        dims = EncoderDims(features=2 * base.dims.n_audio_state)
        model = Transducer(Trunk(base.encoder), self.pieces, dims, self.plan.dropout)
        return model.to(self.device), adapted


def of_policy(recipe: Recipe, policy: str) -> Recipe:
    """The recipe of a head: "adaptive:320", priced to 320 ms, or a control as in asr/transducer/schedule.py.

    Raises:
        ValueError: no such policy.
    """
    kind, _, target = policy.partition(":")
    if kind != "adaptive" or not target:
        named(policy, EncoderDims.layers)
        return replace(recipe, policy=policy)
    if not target.isdecimal() or not int(target):
        raise ValueError(f"no policy {policy!r}: adaptive: and a latency in whole milliseconds")
    return replace(recipe, policy=kind, target_ms=float(target))


def some(clips: list[Clip], hours: float | None) -> list[Clip]:
    """About `hours` of clips, always the same ones first."""
    if hours is None:
        return clips
    order = np.random.default_rng(0).permutation(len(clips))
    total = np.cumsum([clips[i].seconds for i in order]) / 3600
    return [clips[i] for i in order[: int(np.searchsorted(total, hours)) + 1]]
