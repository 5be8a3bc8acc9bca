"""Transcribed clips -> batches of trunk features and pieces, from audio or from a cache on disk."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import soxr
import torch
from torch import Tensor

from adapters import loop
from adapters.data import Augmentation, batches, decoded, noise_at, silence
from asr.audio import SAMPLE_RATE, duration
from asr.mel import LogMel
from asr.precision import for_training
from asr.transducer.pieces import Pieces, normalise
from asr.transducer.trunk import SAMPLES_PER_FEATURE, Trunk

LONGEST_S, SHORTEST_S = 24.0, 0.8  # of a clip
FEATURES, INDEX = "features.f16", "features.json"
FEATURE_S = SAMPLES_PER_FEATURE / SAMPLE_RATE
IGNORED = -100  # label of frames without a loss

Alignment = dict[str, list[tuple[str, float, float]]]


@dataclass(frozen=True)
class Clip:
    audio: str
    seconds: float
    text: str  # normalised


@dataclass(frozen=True)
class Audio:
    """One augmented draw of a clip, whole features long."""

    samples: np.ndarray  # (n,) float32
    lead_s: float  # of silence before the clip
    speed: float  # at which it is played

    @property
    def n_features(self) -> int:
        return len(self.samples) // SAMPLES_PER_FEATURE


@dataclass(frozen=True)
class Batch:
    features: Tensor  # (B, T, F), or in the trunk's stage (B, 80, t) log-mel frames
    lengths: Tensor  # (B,) int64
    tokens: Tensor  # (B, U) int64
    n_tokens: Tensor  # (B,) int64
    seconds: float
    labels: Tensor | None = None  # (B, T) int64, a rough guess of what each frame says; IGNORED where none


def read_clips(manifest: Path, folder: Path | None = None) -> list[Clip]:
    """The transcribed clips of a manifest (JSON lines: audio, text, and seconds unless a file tells them itself).

    Digits are left to others, as nobody knows how they were said.

    Raises:
        ValueError: a line is none of a manifest.
        AudioError: a line without seconds names no audio.
    """
    clips = []
    for number, line in enumerate(manifest.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            audio, said = entry["audio"], entry["text"] or ""
            text = normalise(said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{manifest}, line {number}: audio and text (or null) are needed") from error
        if not text or any(map(str.isdigit, said)):
            continue
        path = ((folder or manifest.parent) / audio).resolve()  # as `align` names it
        seconds = entry["seconds"] if "seconds" in entry else duration(path) or 0.0
        if SHORTEST_S < seconds < LONGEST_S:
            clips.append(Clip(str(path), seconds, text))
    return clips


def learn_pieces(clips: list[Clip], n: int) -> Pieces:
    """A vocabulary of `n` units for the texts of `clips`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([clip.text for clip in clips]),
        model_writer=model,
        vocab_size=n,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    return Pieces(model.getvalue())


class Corpus:
    """Clips and their pieces; draws audio, the same (seed, epoch, index) always the same.

    Args:
        alignment: word times (text, start s, end s) by a clip's audio, for those that have them.
    """

    def __init__(
        self, clips: list[Clip], pieces: Pieces, alignment: Alignment | None = None, seed: int = 0
    ) -> None:
        self.clips = clips
        self.pieces = pieces
        self.alignment = alignment or {}
        self.tokens = [pieces.encode(clip.text) for clip in clips]
        self.seconds = np.array([clip.seconds for clip in clips])
        self.seed = seed
        self.augmentation = Augmentation(speed=0.5, noise=0.4, gain_db=(-15.0, 6.0))

    def draw(self, epoch: int, index: int) -> Audio:
        """One augmented clip with silence around it."""
        rng = np.random.default_rng((self.seed, epoch, index))
        policy, speed = self.augmentation, 1.0
        samples = decoded(self.clips[index].audio).astype(np.float32) / 32768
        if rng.random() < policy.speed:
            speed = rng.uniform(0.88, 1.12)
            samples = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
        lead, trail = silence(rng, rng.uniform(0, 0.5)), silence(rng, rng.uniform(0.2, 0.7))
        samples = np.concatenate([lead, samples, trail])
        if rng.random() < policy.noise:
            samples = samples + noise_at(rng, samples, rng.uniform(*policy.snr_db))
        gain = 10 ** (rng.uniform(*policy.gain_db) / 20)
        samples = (samples * gain).clip(-1, 1).astype(np.float32)
        whole = len(samples) // SAMPLES_PER_FEATURE * SAMPLES_PER_FEATURE
        return Audio(samples[:whole], len(lead) / SAMPLE_RATE, speed)

    @staticmethod
    def padded(drawn: list[Audio]) -> tuple[Tensor, Tensor]:
        """(B, n) samples and (B,) features' worth of them in each row."""
        lengths = torch.tensor([audio.n_features for audio in drawn])
        samples = torch.zeros(len(drawn), int(lengths.max()) * SAMPLES_PER_FEATURE)
        for row, audio in zip(samples, drawn, strict=True):
            row[: len(audio.samples)] = torch.from_numpy(audio.samples)
        return samples, lengths

    def labels(self, indices: list[int], drawn: list[Audio]) -> Tensor:
        """(B, T) pieces by frame: blank, but in the second half of each piece's share of its word."""
        rows = [self._labels(index, audio) for index, audio in zip(indices, drawn, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def _labels(self, index: int, audio: Audio) -> Tensor:
        words = self.alignment.get(self.clips[index].audio)
        if words is None:
            return torch.full((audio.n_features,), IGNORED)
        labels = torch.full((audio.n_features,), len(self.pieces))
        for text, start, end in words:
            pieces = self.pieces.encode(normalise(text))
            for number, piece in enumerate(pieces):
                share = (end - start) / len(pieces)
                times = np.array([start + (number + 0.5) * share, start + (number + 1) * share])
                first, last = (audio.lead_s + times / audio.speed) / FEATURE_S
                labels[int(first) : max(int(first), int(last)) + 1] = piece
        return labels

    def targets(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(B, U) pieces, padded with 0, and (B,) how many."""
        rows = [torch.tensor(self.tokens[index]) for index in indices]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(r) for r in rows])


def spec_mask(mel: Tensor, rng: np.random.Generator, most_bins: int = 15, most_frames: int = 25) -> None:
    """SpecAugment (Park et al., 2019) in place on (B, 80, t): two bands and a few stretches of each row."""
    for row in mel:
        mean = row.mean()
        for _ in range(2):
            width = int(rng.integers(0, most_bins + 1))
            start = int(rng.integers(0, row.shape[0] - width))
            row[start : start + width] = mean
        for _ in range(max(1, row.shape[1] // 250)):
            width = int(rng.integers(0, most_frames + 1))
            start = int(rng.integers(0, max(1, row.shape[1] - width)))
            row[:, start : start + width] = mean


class FeatureCache:
    """Trunk features of several draws of a corpus, as one memory-mapped file; written once, resumed when cut short.

    Draw `e` of clip `i` is rows index[e][i][0] .. + index[e][i][1] of width F in float16.
    """

    def __init__(self, directory: Path, width: int) -> None:
        self.directory, self.width = directory, width
        self.index: list[list[tuple[int, int]]] = []
        if (directory / INDEX).exists():
            self.index = json.loads((directory / INDEX).read_text())
        self._rows: np.ndarray | None = None

    @property
    def draws(self) -> int:
        return len(self.index)

    def write(
        self,
        corpus: Corpus,
        trunk: Trunk,
        draws: int,
        *,
        batch_seconds: float = 240.0,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Appends whole draws until there are `draws`; an interrupted one is begun again.

        Raises:
            ValueError: the draws that there are have another number of clips.
        """
        if any(len(places) != len(corpus.clips) for places in self.index):
            raise ValueError(f"{self.directory} holds the features of other clips: choose another --out")
        self.directory.mkdir(parents=True, exist_ok=True)
        for epoch in range(self.draws, draws):
            index = self._write_draw(corpus, trunk, epoch, batch_seconds, progress)
            part = self.directory / (INDEX + ".part")
            part.write_text(json.dumps([*self.index, index]))
            os.replace(part, self.directory / INDEX)
            self.index.append(index)
            self._rows = None  # what was mapped is shorter

    def _write_draw(
        self,
        corpus: Corpus,
        trunk: Trunk,
        epoch: int,
        batch_seconds: float,
        progress: Callable[[float], None],
    ) -> list[tuple[int, int]]:
        """Appends one draw behind the finished ones, and says where each clip lies."""
        mel = LogMel(trunk.mix.device)
        n_rows = max((start + n for draw in self.index for start, n in draw), default=0)
        places: list[tuple[int, int]] = [(0, 0)] * len(corpus.clips)
        order = batches(corpus.seconds, batch_seconds, np.random.default_rng(epoch))

        def drawn(indices: list[int]) -> tuple[Tensor, Tensor]:
            return corpus.padded([corpus.draw(epoch, index) for index in indices])

        with (self.directory / FEATURES).open("ab") as out:
            out.truncate(n_rows * self.width * 2)
            for indices, (samples, lengths) in zip(order, loop.drawn_ahead(order, drawn), strict=True):
                with torch.no_grad(), for_training(mel.device):
                    features = trunk(mel.whole(samples.to(mel.device))).half().cpu()
                for index, row, n in zip(indices, features, lengths.tolist(), strict=True):
                    out.write(row[:n].numpy().tobytes())
                    places[index] = (n_rows, n)
                    n_rows += n
                progress(float(corpus.seconds[indices].sum()))
        return places

    def read(self, epoch: int, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(B, T, F) float32 and (B,) of draw `epoch` modulo the draws there are."""
        if self._rows is None:
            self._rows = np.memmap(self.directory / FEATURES, np.float16, "r").reshape(-1, self.width)
        places = [self.index[epoch % self.draws][index] for index in indices]
        padded = torch.zeros(len(places), max(n for _, n in places), self.width)
        for row, (start, n) in zip(padded, places, strict=True):
            row[:n] = torch.from_numpy(self._rows[start : start + n].astype(np.float32))
        return padded, torch.tensor([n for _, n in places])
