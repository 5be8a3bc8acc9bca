"""A language of three whistles, spoken in clips of a second or two, and tiny models that can learn it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from adapters.ancat.corpus import Alignment, Clip, Corpus, FeatureCache, learn_pieces, read_clips
from asr.audio import SAMPLE_RATE
from asr.transducer.encoder import EncoderDims
from asr.transducer.model import Transducer
from asr.transducer.pieces import Pieces
from asr.transducer.trunk import Trunk
from tests.conftest import random_whisper

WORDS = {"low": 300, "mid": 900, "high": 2700}  # Hz
WHISTLE = 3200  # samples
N_PIECES = 20  # enough for a piece for every word


def spoken(words: list[str], rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A whistle of 0.2 s for each word, with pauses; and when each begins, in seconds."""
    parts, starts = [rng.standard_normal(1600) * 1e-3], []
    for word in words:
        starts.append(sum(map(len, parts)) / SAMPLE_RATE)
        time = np.arange(WHISTLE) / SAMPLE_RATE
        whistle = 0.3 * np.sin(2 * np.pi * WORDS[word] * time) * np.hanning(WHISTLE)
        parts += [whistle, rng.standard_normal(int(rng.integers(1600, 3200))) * 1e-3]
    return np.concatenate(parts), starts


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("whistles"), np.random.default_rng(0)
    lines = []
    for i in range(12):
        words = rng.choice(list(WORDS), 3 + i % 3).tolist()
        samples, starts = spoken(words, rng)
        soundfile.write(folder / f"{i}.wav", samples, SAMPLE_RATE)
        times = [
            (word, start, start + WHISTLE / SAMPLE_RATE) for word, start in zip(words, starts, strict=True)
        ]
        entry = {"audio": f"{i}.wav", "seconds": len(samples) / SAMPLE_RATE, "text": " ".join(words).title()}
        lines.append(json.dumps({**entry, "words": times}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def clips(manifest: Path) -> list[Clip]:
    return read_clips(manifest)


@pytest.fixture(scope="session")
def pieces(clips: list[Clip]) -> Pieces:
    return learn_pieces(clips, N_PIECES)


@pytest.fixture(scope="session")
def alignment(manifest: Path) -> Alignment:
    entries = map(json.loads, manifest.read_text().splitlines())
    return {str(manifest.parent / entry["audio"]): entry["words"] for entry in entries}


@pytest.fixture(scope="session")
def corpus(clips: list[Clip], pieces: Pieces, alignment: Alignment) -> Corpus:
    return Corpus(clips, pieces, alignment)


def untrained(pieces: Pieces, dropout: float = 0.1) -> Transducer:
    """The same model every time; some of it drops out, so that randomness must be resumed, too."""
    trunk = Trunk(random_whisper(0).encoder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dims = EncoderDims(features=trunk.width, width=32, heads=2, layers=2, span=4, left=20)
        return Transducer(trunk, pieces, dims, dropout)


@pytest.fixture(scope="session")
def make_model(pieces: Pieces) -> Callable[[], Transducer]:
    return partial(untrained, pieces)


@pytest.fixture(scope="session")
def cache(
    corpus: Corpus, make_model: Callable[[], Transducer], tmp_path_factory: pytest.TempPathFactory
) -> FeatureCache:
    """Two draws of every clip."""
    trunk = make_model().trunk
    cache = FeatureCache(tmp_path_factory.mktemp("features"), trunk.width)
    cache.write(corpus, trunk, 2)
    return cache
