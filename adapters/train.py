"""Training of the causal Whisper ("careless"): resumable, on a CPU, a GPU, or several under torchrun.

One step: one encoder pass over a batch of windows in blocks of a random size, one decoder pass that asks all
questions at once (adapters/targets.py), cross-entropy on the answers, and distillation of the unmodified model, which
hears whole clips: of its features into the causal encoder's, and of what its decoder expects into the causal one's.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import loop, lora
from adapters.data import Example, Examples, epochs
from adapters.targets import IGNORED, Queries, QueryBatch, chunks, collate, plan
from asr.checkpoint import TIMESTAMP_S, Whisper
from asr.encoder import MEL_PER_FRAME, frame_blocks
from asr.limits import LONGEST_DELAY_S, SAMPLES_PER_FRAME
from asr.mel import LogMel
from asr.precision import for_training

CHECKPOINT, LOG, CURVES = "checkpoint.pt", "log.jsonl", "curves.png"

#: Block sizes in frames of 20 ms and their odds. Serving settles blocks of 15 frames and more, whatever the chunk;
#: the shorter ones are for the features that chunks of 100 and 200 ms show at first.
BLOCKS = {5: 0.05, 10: 0.05, 15: 0.50, 20: 0.08, 25: 0.12, 35: 0.04, 50: 0.16}


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how; every field is written into the checkpoint."""

    steps: int = 3000
    batch_seconds: float = 120.0
    learning_rate: float = 5e-4
    warmup: int = 150
    encoder_rank: int = 128
    decoder_rank: int = 64
    distillation: float = 1.0
    expectations: float = 0.5  # weight of what the unmodified decoder expects, beside the token itself
    provisional: float = 0.5  # weight of the distillation of frames that have not settled
    cuts: int = 32  # wait queries per window
    masks: int = 2  # of SpecAugment, most, in time and in frequency
    freq_mask: int = 12  # mel bins
    time_mask: int = 20  # mel frames
    clip_norm: float = 1.0
    kept: float = 0.0  # share of the adapter begun with in the one that is saved
    seed: int = 0


class Trainer:
    """One run in one directory: `checkpoint.pt`, `log.jsonl`, `curves.png`, and the adapter at the end."""

    def __init__(
        self,
        model: Whisper,
        examples: Examples,
        features: np.ndarray,
        recipe: Recipe,
        out: Path,
        start_from: Path | None = None,
    ) -> None:
        if recipe.kept and start_from is None:
            raise ValueError(
                "nothing to keep a share of: name the adapter that the run began with (--start-from)"
            )
        self.recipe, self.examples, self.features, self.out = recipe, examples, features, out
        self.start_from = start_from
        self.team = loop.Team.join()
        self.device = model.device
        self.vocabulary = model.vocabulary
        self.mel = LogMel(self.device)
        torch.manual_seed(recipe.seed)
        embedding = model.decoder.token_embedding  # by far the largest part, which no adapter changes
        self.unmodified = copy.deepcopy(model.decoder, {id(embedding): embedding}).requires_grad_(False)
        self.adapted = lora.attach(model, encoder_rank=recipe.encoder_rank, decoder_rank=recipe.decoder_rank)
        self.model = model
        self.weights = [p for p in self.adapted.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        if (out / CHECKPOINT).exists():
            self._resume()
        elif start_from is not None:
            lora.read(self.adapted, start_from)

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

    def _batches(self) -> Iterator[tuple[int, list[Example]]]:
        """(epoch, examples) of this process for every step that is left, each drawn while the one before trains."""
        rank, size = self.team.rank, self.team.size
        seconds = self.recipe.batch_seconds * size
        stream = epochs(lambda epoch: self.examples.batches(epoch, seconds, size), self.step)

        def draw(batch: tuple[int, list[int]]) -> tuple[int, list[Example]]:
            epoch, indices = batch
            return epoch, self.examples.draw(epoch, indices[rank::size])

        return loop.drawn_ahead(islice(stream, max(0, self.recipe.steps - self.step)), draw)

    def save(self) -> None:
        """Checkpoint (atomically), loss curves and the adapter as it is now."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.adapted.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict(),
        }
        loop.save(state, self.out / CHECKPOINT)
        lora.save(self.adapted, self.out / "adapter", begun=self.start_from, kept=self.recipe.kept)
        draw_curves(self.out)

    def _resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        fixed = ("encoder_rank", "decoder_rank")
        if any(state["recipe"][key] != getattr(self.recipe, key) for key in fixed):
            raise ValueError(
                f"{self.out} holds a run with other ranks; choose another --out or the same ranks"
            )
        own = dict(self.adapted.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _train_step(self, batch: list[Example]) -> dict[str, float]:
        rng = np.random.default_rng((self.recipe.seed, self.step, self.team.rank))
        # The same in every process: short blocks cost more, and none waits for another.
        of_all = np.random.default_rng((self.recipe.seed, self.step))
        tau = int(of_all.choice(list(BLOCKS), p=np.array(list(BLOCKS.values())) / sum(BLOCKS.values())))
        rate = self.recipe.learning_rate * loop.share_of_rate(
            self.step, self.recipe.steps, self.recipe.warmup, least=0.05
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mel = self._mel(batch, tau, rng)
        n_frames = mel.shape[2] // MEL_PER_FRAME
        with for_training(self.device):
            settled, *provisional = views = self.model.encoder.forward_blocks(mel, tau)
            distilled = self._distillation(batch, settled)
            guessed = torch.stack([self._distillation(batch, view) for view in provisional]).mean()
            spoken = [i for i, example in enumerate(batch) if example.transcribed]
            plans = [self._plan(batch[i], tau, rng) for i in spoken]
            words, waits, right = self._cross_entropy(
                torch.cat(views, dim=1)[spoken],
                collate(plans, frame_blocks(n_frames, tau), len(views)) if plans else None,
                self._expectations([batch[i] for i in spoken], plans),
            )
        distilled = distilled + self.recipe.provisional * guessed
        loss = words + waits + self.recipe.distillation * distilled
        norm = loop.descend(self.team, loss, self.weights, self.optimizer, self.recipe.clip_norm)
        return {
            "tau": tau, "words": words.item(), "waits": waits.item(), "distillation": distilled.item(),
            "accuracy": right, "grad_norm": norm, "lr": rate, "seconds": sum(e.seconds for e in batch),
        }  # fmt: skip

    def _plan(self, example: Example, tau: int, rng: np.random.Generator) -> Queries:
        """Questions for a random delay, short ones more often, which the prefix names."""
        delay_s = round(LONGEST_DELAY_S * rng.random() ** 1.5 / TIMESTAMP_S) * TIMESTAMP_S
        prefix = self.vocabulary.prefix_for(delay_s)
        return plan(example, prefix, self.vocabulary.eot, tau, delay_s, self.recipe.cuts, rng)

    def _mel(self, batch: list[Example], tau: int, rng: np.random.Generator) -> Tensor:
        """(B, 80, t) running-maximum log-mel of the batch in whole chunks, with SpecAugment's masks."""
        n = max(chunks(example.seconds, tau) for example in batch) * tau * SAMPLES_PER_FRAME
        samples = torch.zeros(len(batch), n)
        for row, example in zip(samples, batch, strict=True):
            row[: min(n, len(example.samples))] = torch.from_numpy(example.samples[:n])
        mel = self.mel.whole(samples.to(self.device))
        for row in mel:
            for _ in range(self.recipe.masks):
                if rng.random() < 0.5:
                    width, start = rng.integers(1, self.recipe.freq_mask + 1), rng.integers(80)
                    row[start : start + width] = row.mean()
                    width, start = rng.integers(1, self.recipe.time_mask + 1), rng.integers(row.shape[1])
                    row[:, start : start + width] = row.mean()
        return mel

    def _distillation(self, batch: list[Example], encoded: Tensor) -> Tensor:
        """Mean squared error towards the base model's features, in units of their variance."""
        own, wanted = [], []
        for row, example in zip(encoded, batch, strict=True):
            for part in example.distil:
                n = min(part.n, len(row) - part.start)
                own.append(row[part.start : part.start + n])
                wanted.append(torch.from_numpy(self.features[part.row : part.row + n].astype(np.float32)))
        if not own:
            return encoded.sum() * 0.0
        target = torch.cat(wanted).to(self.device)
        return F.mse_loss(torch.cat(own).float(), target) / target.var()

    @torch.no_grad()
    def _expectations(self, batch: list[Example], plans: list[Queries]) -> list[Tensor | None]:
        """For each example, what the unmodified decoder expects at its due tokens: (n, text tokens) probabilities.

        It has heard the whole clip (of a cropped one, what is left), and the tokens before. What is joined, or at
        another speed, it has not heard (None).
        """
        start = len(self.vocabulary.prefix)
        known = [i for i, e in enumerate(batch) if len(e.distil) == 1 and plans[i].n_text > start]
        expected: list[Tensor | None] = [None] * len(batch)
        if not known or not self.recipe.expectations:
            return expected
        parts, said = [batch[i].distil[0] for i in known], [plans[i].tokens[: plans[i].n_text] for i in known]
        heard, width = max(part.n for part in parts), max(map(len, said))
        features = torch.zeros(len(known), heard, self.features.shape[1])
        tokens = torch.zeros(len(known), width, dtype=torch.int64)
        for row, part in zip(features, parts, strict=True):
            row[: part.n] = torch.from_numpy(self.features[part.row : part.row + part.n].astype(np.float32))
        for own, text in zip(tokens, said, strict=True):
            own[: len(text)] = torch.tensor([*self.vocabulary.prefix, *text[start:]])
        audible = torch.arange(heard) < torch.tensor([[part.n] for part in parts])
        hidden = self.unmodified(
            tokens.to(self.device),
            features.to(self.device),
            torch.arange(width, device=self.device)[None],
            torch.ones(width, width, dtype=torch.bool, device=self.device).tril()[None, None],
            audible[:, None, None].expand(-1, 1, width, -1).to(self.device),
        )
        for i, row, text in zip(known, hidden, said, strict=True):
            logits = self.unmodified.project(row[start - 1 : len(text) - 1]).float()
            expected[i] = logits[:, : self.vocabulary.eot].softmax(-1)
        return expected

    def _cross_entropy(
        self, encoded: Tensor, queries: QueryBatch | None, expected: list[Tensor | None]
    ) -> tuple[Tensor, Tensor, float]:
        """Mean loss of the tokens, mean loss of the waits, share of tokens predicted right."""
        if queries is None:
            return encoded.sum() * 0.0, encoded.sum() * 0.0, 0.0
        asked = QueryBatch(
            *(getattr(queries, name).to(self.device) for name in QueryBatch.__dataclass_fields__)
        )
        decoder = self.model.decoder
        hidden = decoder(asked.tokens, encoded, asked.positions, asked.self_mask, asked.cross_mask)
        kept = asked.targets != IGNORED
        targets = asked.targets[kept]
        logits = decoder.project(hidden[kept]).float()[:, : self.vocabulary.eot + 1]
        likely = logits.log_softmax(-1)
        losses = F.nll_loss(likely, targets, reduction="none")
        number = kept.flatten().cumsum(0).view_as(kept) - 1  # of each position among those kept
        start = len(self.vocabulary.prefix) - 1
        known = [(row, p) for row, p in zip(number, expected, strict=True) if p is not None]
        if known:
            at = torch.cat([row[start : start + len(p)] for row, p in known])
            unexpected = -(torch.cat([p for _, p in known]) * likely[at, : self.vocabulary.eot]).sum(-1)
            losses = losses.index_put((at,), torch.lerp(losses[at], unexpected, self.recipe.expectations))
        is_word = targets != self.vocabulary.eot
        if not is_word.any():
            return losses.sum() * 0.0, losses.mean(), 0.0
        right = (logits.argmax(-1) == targets)[is_word].float().mean()
        return losses[is_word].mean(), losses[~is_word].mean(), float(right)


def draw_curves(run: Path) -> None:
    """curves.png from log.jsonl: each loss over steps, smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.5), layout="constrained")
    for axis, key in zip(axes, ("words", "waits", "distillation", "accuracy"), strict=True):
        values = np.array([record[key] for record in records])
        width = max(1, min(50, len(values) // 10))
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(steps, values, alpha=0.2)
        axis.plot(steps[width - 1 :], smooth)
        axis.set(title=key, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(run / CURVES, dpi=110)
    plt.close(figure)
