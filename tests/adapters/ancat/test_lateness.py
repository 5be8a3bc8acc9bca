"""How late a head says its words is found from clips that say when they were spoken, and taken off in a stream."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import asr_stream
from adapters import loading
from adapters.align import ALIGNED, AlignedClip
from adapters.ancat.lateness import delays, fit_lateness
from adapters.shipped import ADAPTER_FILE
from asr import checkpoint
from asr.audio import SAMPLE_RATE, read_audio
from asr.biasing import Guidance
from asr.timing import TimedWord
from asr.transducer.model import HEAD_CONFIG, Transducer, load_head, save_head, set_lateness
from asr.transducer.timing import PUNCTUAL, Lateness
from streaming.transducer import TransducerRecognizer
from tests.conftest import random_whisper
from tests.streaming.transducers import tiny_transducer

LATE = Lateness(first_ms=120, last_ms=-30)


def streamed(model: Transducer, samples: np.ndarray) -> list[TimedWord]:
    """The words of a stream of one clip, where loudness has no say."""
    recognizer, row = TransducerRecognizer(model), torch.tensor([0])
    state = recognizer.init_state(1)
    recognizer.reset(state, row)
    recognizer.step(torch.from_numpy(samples)[None], state, row)
    recognizer.flush(state, 0, Guidance(), behind=0)
    return recognizer.words(state, 0, np.zeros_like(samples))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[AlignedClip]:
    """Noises in which the model hears words, each somewhat after the time that is said to be the true one."""
    folder, made = tmp_path_factory.mktemp("noises"), []
    for i in range(3):
        path = folder / f"{i}.wav"
        rng, n = np.random.default_rng(i), (3 + i) * SAMPLE_RATE
        noise = rng.standard_normal(n) * np.interp(
            np.arange(n), np.linspace(0, n, 40), 0.3 * rng.random(40) ** 3
        )
        soundfile.write(path, noise, SAMPLE_RATE)
        words = [
            (word.text.title() + ",", word.start - LATE.first_ms / 1000, word.end - LATE.last_ms / 1000)
            for word in streamed(tiny_transducer(), read_audio(path))
        ]
        made.append(AlignedClip(str(i), str(path), 3.0 + i, words, 0, 0))
    return made


def test_only_words_that_were_recognised_tell() -> None:
    true = [("It's", 0.0, 0.4), ("—", 0.4, 0.5), ("twenty-one", 0.5, 1.0), ("Men.", 1.0, 1.5)]
    said = [
        TimedWord(text, at, at + 0.4, 1.0, 1) for at, text in ((0.2, "it's"), (0.6, "plenty"), (1.1, "men"))
    ]
    assert delays(true, said) == [
        (pytest.approx(0.2), pytest.approx(0.2)),
        (pytest.approx(0.1), pytest.approx(0)),
    ]
    assert delays(true, []) == delays([("—", 0.0, 1.0)], said) == []


def test_the_lateness_of_a_stream_is_found(clips: list[AlignedClip]) -> None:
    told: list[tuple[float, float, str]] = []
    assert fit_lateness(tiny_transducer(), clips, lambda *progress: told.append(progress)) == LATE
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    fit_lateness(tiny_transducer(), clips, lambda *progress: told.append(progress), most=2)
    assert len(told) == 5


def test_few_words_are_no_measure(clips: list[AlignedClip]) -> None:
    nonsense = [AlignedClip("x", clip.audio, clip.seconds, [("mumble", 0.0, 1.0)], 0, 0) for clip in clips]
    unknown = AlignedClip("y", clips[0].audio, 1.0, None, 0, 0)
    assert fit_lateness(tiny_transducer(), [*nonsense, unknown]) is None


def test_a_stream_takes_off_what_its_head_says(clips: list[AlignedClip], tmp_path: Path) -> None:
    encoder, samples = tiny_transducer().trunk.encoder, read_audio(clips[0].audio)
    save_head(tiny_transducer(), tmp_path, {"hours": 1.5, "lateness": None})
    unmeasured = load_head(encoder, tmp_path)
    assert unmeasured.lateness == PUNCTUAL
    set_lateness(tmp_path, Lateness(80, 80))
    facts = json.loads((tmp_path / HEAD_CONFIG).read_text())
    assert (facts["hours"], facts["lateness"]) == (1.5, {"first_ms": 80, "last_ms": 80})
    measured = load_head(encoder, tmp_path)
    before, after = streamed(unmeasured, samples), streamed(measured, samples)
    assert [word.text for word in after] == [word.text for word in before]
    assert len(before) > 5
    late = [(word, corrected) for word, corrected in zip(before, after, strict=True) if word.start > 0.1]
    for word, corrected in late:
        assert corrected.start == pytest.approx(word.start - 0.08)
        assert corrected.end == pytest.approx(word.end - 0.08)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head as training writes it, on a trunk that needs no real weights."""
    folder, trunk = tmp_path / "ancat-tiny.en-40", tmp_path / "ancat-tiny.en"
    save_head(tiny_transducer(), folder, {"base": "tiny.en", "trunk": trunk.name, "lateness": None})
    trunk.mkdir()
    (trunk / ADAPTER_FILE).write_text("{}")
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: random_whisper(0))
    encoder = tiny_transducer().trunk.encoder
    monkeypatch.setattr(loading, "transducer", lambda base, trunk, head: load_head(encoder, head))
    return folder


def test_a_head_is_measured_without_training(head: Path, clips: list[AlignedClip], tmp_path: Path) -> None:
    def run(words: dict[str, list]) -> object:
        lines = [vars(clip) | {"words": words.get(clip.id, clip.words)} for clip in clips]
        (tmp_path / ALIGNED).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return CliRunner().invoke(
            asr_stream.app, ["train", "word-times", str(head), "--aligned", str(tmp_path)]
        )

    refused = run({clip.id: [("mumble", 0.0, 1.0)] for clip in clips})
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "recognises too few words of" in refused.stderr
    assert json.loads((head / HEAD_CONFIG).read_text())["lateness"] is None
    done = run({})
    assert done.exit_code == 0, done.output
    assert "says words 120 ms after they begin and is done -30 ms after they end" in done.stdout
    assert json.loads((head / HEAD_CONFIG).read_text())["lateness"] == {"first_ms": 120, "last_ms": -30}
