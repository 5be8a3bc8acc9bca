"""Where words really are, and how far off the recogniser's times are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from eval.datasets import DatasetError, TimedWord, Utterance, load
from eval.timestamps import (
    PAUSE_S,
    Piece,
    add_to_report,
    main,
    measure,
    speech_span,
    splice,
    summarize,
    time_errors,
)
from eval.trace import Step, Trace
from streaming.events import Closed, Final, Word
from streaming.session import SessionOptions

RATE = 16_000


def burst(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def clip(*parts: tuple[float, float], room: float = 0.0) -> np.ndarray:
    """Noise of (seconds, level) one behind the other, in a room."""
    samples = np.concatenate([burst(seconds, level, i) for i, (seconds, level) in enumerate(parts)])
    return samples + burst(len(samples) / RATE, room, 99)


@pytest.mark.parametrize("room", [0.0, 0.0003, 0.003])
@pytest.mark.parametrize("gain", [1.0, 0.02])
def test_a_word_is_found_in_its_clip(room: float, gain: float) -> None:
    assert speech_span(gain * clip((0.2, 0), (0.4, 0.1), (0.3, 0), room=room)) == pytest.approx(
        (0.2, 0.6), abs=0.021
    )


def test_a_closure_belongs_to_the_word_and_a_click_does_not() -> None:
    eight = [(0.1, 0), (0.2, 0.1), (0.1, 0), (0.04, 0.02)]
    assert speech_span(clip(*eight, (0.2, 0))) == pytest.approx((0.1, 0.44), abs=0.021)
    clicked = [*eight, (0.3, 0), (0.01, 0.1), (0.1, 0)]
    assert speech_span(clip(*clicked)) == pytest.approx((0.1, 0.44), abs=0.021)


def test_a_clip_without_silence_is_all_word() -> None:
    assert speech_span(clip((0.3, 0.1))) == pytest.approx((0, 0.3), abs=0.011)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A manifest of two speakers with five words each, of which every one lasts 0.2 s behind 0.05 s of silence."""
    lines = []
    for speaker in ("ann", "bob"):
        for i, text in enumerate(("one", "two", "three", "four", "five")):
            soundfile.write(tmp_path / f"{speaker}{i}.flac", clip((0.05, 0), (0.2, 0.1), (0.1, 0)), RATE)
            row = {"id": f"{speaker}{i}", "audio": f"{speaker}{i}.flac", "text": text, "speaker": speaker}
            lines.append(json.dumps(row) + "\n")
    manifest = tmp_path / "digits.jsonl"
    manifest.write_text("".join(lines))
    return manifest


def test_pieces_hold_their_words_where_they_say(digits: Path) -> None:
    pieces = splice(load(digits), n_pieces=10, n_words=3)
    assert [(piece.speaker, len(piece.words)) for piece in pieces] == [
        ("ann", 3), ("bob", 3), ("ann", 2), ("bob", 2),
    ]  # fmt: skip
    assert sorted(word.word for piece in pieces if piece.speaker == "ann" for word in piece.words) == [
        "five", "four", "one", "three", "two",
    ]  # fmt: skip
    for piece in pieces:
        loud = np.zeros(len(piece.samples), dtype=bool)
        for word in piece.words:
            loud[round(word.start_s * RATE) : round(word.end_s * RATE)] = True
            assert word.end_s - word.start_s == pytest.approx(0.2, abs=0.03)
        assert piece.samples[loud].std() > 30 * piece.samples[~loud].std() > 0
        pauses = [b.start_s - a.end_s for a, b in zip(piece.words, piece.words[1:], strict=False)]
        assert all(PAUSE_S[0] + 0.1 < pause < PAUSE_S[1] + 0.2 for pause in pauses)
    again = splice(load(digits), n_pieces=10, n_words=3)
    assert [piece.words for piece in again] == [piece.words for piece in pieces]
    assert splice(load(digits), n_pieces=10, n_words=3, seed=1)[0].words != pieces[0].words


def test_only_clips_of_one_word_are_spliced(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="two words"):
        splice([Utterance("a", tmp_path / "a.flac", "two words")])


REFERENCE = [TimedWord("one", 0.5, 0.8), TimedWord("two", 1.2, 1.5), TimedWord("six", 2.0, 2.6)]


def trace(*words: Word) -> Trace:
    final = Final(0, " ".join(word.text for word in words), words, 0, 3000, 3000)
    return Trace("piece", 3.0, (Step(3000, 0.1, (final, Closed(3000, 1, len(words)))),))


def test_errors_are_of_the_words_that_were_recognised() -> None:
    said = [Word("1,", 520, 790, 0.9), Word("too", 900, 1000, 0.9), Word("Six.", 1900, 2850, 0.9)]
    errors = time_errors(REFERENCE, said)
    assert [(round(e.start_ms), round(e.end_ms)) for e in errors] == [(20, -10), (-100, 250)]
    assert [error.close for error in errors] == [True, False]


def test_the_summary_has_the_keys_of_the_report() -> None:
    found = summarize([(REFERENCE, trace(Word("1", 520, 790, 0.9), Word("6", 1900, 2850, 0.9)))])
    assert found == {
        "start_mae_ms": 60.0,
        "end_mae_ms": 130.0,
        "within_200_ms": 0.5,
        "start_bias_ms": -40.0,
        "end_bias_ms": 120.0,
        "words": 2,
        "unrecognised": 1,
    }
    assert summarize([(REFERENCE, trace(Word("nine", 0, 100, 0.9)))]) is None
    ends_only = [TimedWord("one", None, 0.8)]
    assert summarize([(ends_only, trace(Word("one", 0, 800, 0.9)))]) is None


def test_pieces_are_measured_with_an_engine(engine: Callable) -> None:
    """The scripted engine says "one small step" for samples of 0.1, 0.2, 0.3, timed 100 ms each."""
    samples = np.repeat(np.array([0.1, 0.2, 0.3], np.float32), 300 * 16)
    words = (TimedWord("one", 0.0, 0.15), TimedWord("small", 0.15, 0.2), TimedWord("stop", 0.2, 0.3))
    done: list[tuple[int, int]] = []
    found = measure(engine(), [Piece("a", "x", samples, words)], SessionOptions(), lambda *n: done.append(n))
    assert found is not None
    assert (found["start_mae_ms"], found["end_mae_ms"]) == (25.0, 25.0)
    assert (found["words"], found["unrecognised"]) == (2, 1)
    assert done == [(0, 1), (1, 1)]


def test_the_command_adds_to_the_report_of_the_run(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`asr-stream eval` is played by a run that heard each first word, exactly, and no other."""
    out = tmp_path / "out"
    commands = []

    def evaluate(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        lines = []
        for one in load(out / "pieces/manifest.jsonl"):
            assert one.words is not None
            assert one.text == " ".join(word.word for word in one.words)
            first = one.words[0]
            word = Word(first.word, round(first.start_s * 1000), round(first.end_s * 1000), 0.9)
            steps = (Step(3000, 0.1, (Final(0, first.word, (word,), 0, 3000, 3000),)),)
            lines.append(json.dumps(Trace(one.id, 3.0, steps).as_json()) + "\n")
        (out / "traces.jsonl").write_text("".join(lines))
        (out / "report.json").write_text(json.dumps({"model": "m", "wer": 0.5}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", evaluate)
    arguments = [str(digits), "--out", str(out), "--pieces", "2", "--words", "4", "--final-pass", "none"]
    assert main(arguments) == 0
    manifest = str(out / "pieces/manifest.jsonl")
    asked = [sys.executable, "-m", "asr_stream", "eval", manifest, "--out", str(out), "--final-pass", "none"]
    assert commands == [asked]
    report = json.loads((out / "report.json").read_text())
    assert report["wer"] == 0.5
    assert report["timestamps"] == json.loads(capsys.readouterr().out)
    assert report["timestamps"]["start_mae_ms"] <= 0.5
    assert (report["timestamps"]["words"], report["timestamps"]["unrecognised"]) == (2, 6)


def test_a_sweep_has_no_time_errors_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"sweep": {}}')
    with pytest.raises(DatasetError, match="one setting at a time"):
        add_to_report(tmp_path, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "missing.flac", "text": "one"}', "missing.flac"),
        ('{"audio": "said.flac", "text": "one two"}', "clips of one word"),
        ('{"audio": "silent.flac", "text": "one"}', "there is no word in it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "said.flac", burst(0.2), RATE)
    soundfile.write(tmp_path / "silent.flac", np.zeros(RATE), RATE)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(line + "\n")
    with pytest.raises(SystemExit) as stopped:
        main([str(manifest), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
