"""Weak alignment: the reference overrules the model, and an interrupted run ends as an uninterrupted one."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import adapters.align
from adapters.align import (
    ALIGNED,
    FEATURES,
    AlignedClip,
    Aligner,
    align_manifest,
    has_own_case,
    open_features,
    overrule,
    read_aligned,
)
from asr.checkpoint import Whisper

WIDTH = 64


@pytest.mark.parametrize(
    ("hypothesis", "reference", "text"),
    [
        ("He said, hello.", "HE SAID HELLO", "He said, hello."),
        ("He sad, hello.", "HE SAID HELLO", "He said, hello."),
        ("Mary came.", "NANCY CAME", "Nancy came."),
        ("He hello.", "HE SAID HELLO", "He said hello."),
        ("He then said hello.", "HE SAID HELLO", "He said hello."),
        ("He said it's me.", "I THINK I'M LATE", "I think I'm late."),
        ("", "I THINK I'M LATE", "I think I'm late"),
        ("Hello.", "", ""),
        ("It's — well — odd.", "IT'S WELL ODD", "It's well odd."),
        ("...", "YES", "yes..."),
    ],
)
def test_the_reference_overrules_word_by_word(hypothesis: str, reference: str, text: str) -> None:
    assert overrule(hypothesis, reference) == text


def test_capitals_alone_are_no_casing() -> None:
    assert not has_own_case("HE SAID HELLO")
    assert has_own_case("He said hello")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Seven short clips, the third without a transcript."""
    lines = []
    for i in range(7):
        noise = np.random.default_rng(i).standard_normal(3_200 * (i + 1)) * 0.1
        soundfile.write(tmp_path / f"{i}.wav", noise, 16_000)
        text = None if i == 2 else f"Clip number {i}"
        lines.append(json.dumps({"id": f"clip{i}", "audio": f"{i}.wav", "text": text}))
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


class FakeAligner:
    """Features that tell their clip; breaks at a clip of `fails_at` frames."""

    fails_at: int | None = None

    def __init__(self, model: Whisper, batch: int) -> None:
        self.batch = batch

    def __call__(self, clips: list[np.ndarray], texts: list[str | None]) -> list[tuple[Tensor, list | None]]:
        assert 0 < len(clips) <= self.batch
        frames = [len(clip) // 320 for clip in clips]
        if self.fails_at in frames:
            raise KeyboardInterrupt
        return [
            (torch.full((n, WIDTH), float(n)), text and [(word, 0.0, 0.1) for word in text.split()])
            for n, text in zip(frames, texts, strict=True)
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeAligner]:
    monkeypatch.setattr(adapters.align, "Aligner", FakeAligner)
    monkeypatch.setattr(FakeAligner, "fails_at", None)
    return FakeAligner


def contents(out: Path) -> tuple[list[AlignedClip], bytes]:
    return list(read_aligned(out / ALIGNED)), (out / FEATURES).read_bytes()


def test_a_manifest_is_aligned(
    manifest: Path, tmp_path: Path, tiny: Whisper, fake: type[FakeAligner]
) -> None:
    told: list[tuple[int, int]] = []
    n = align_manifest(manifest, tmp_path / "out", tiny, batch=3, progress=lambda *done: told.append(done))
    assert n == 7
    assert told == [(3, 7), (6, 7), (7, 7)]
    clips, _ = contents(tmp_path / "out")
    assert [clip.id for clip in clips] == [f"clip{i}" for i in range(7)]
    features = open_features(tmp_path / "out", WIDTH)
    assert len(features) == sum(clip.frames for clip in clips)
    for i, clip in enumerate(clips):
        assert clip.frames == 10 * (i + 1)
        assert clip.seconds == pytest.approx(0.2 * (i + 1))
        assert bool((features[clip.offset : clip.offset + clip.frames] == clip.frames).all())
        assert Path(clip.audio) == manifest.parent / f"{i}.wav"
    assert clips[1].words == [("Clip", 0.0, 0.1), ("number", 0.0, 0.1), ("1", 0.0, 0.1)]
    assert clips[2].words is None


@pytest.mark.parametrize("fails_at", [10, 30, 40, 70])
def test_an_interrupted_run_goes_on(
    manifest: Path, tmp_path: Path, tiny: Whisper, fake: type[FakeAligner], fails_at: int
) -> None:
    align_manifest(manifest, tmp_path / "whole", tiny, batch=2)
    fake.fails_at = fails_at
    with pytest.raises(KeyboardInterrupt):
        align_manifest(manifest, tmp_path / "pieces", tiny, batch=2)
    with (tmp_path / "pieces" / FEATURES).open("ab") as features:
        features.write(b"half of a clip whose line was never written")
    with (tmp_path / "pieces" / ALIGNED).open("a") as lines:
        lines.write('{"id": "half of a li')
    fake.fails_at = None
    assert align_manifest(manifest, tmp_path / "pieces", tiny, batch=2) == 7
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert align_manifest(manifest, tmp_path / "pieces", tiny, batch=2) == 7
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_words_may_come_from_another_model(manifest: Path, tmp_path: Path, tiny: Whisper) -> None:
    align_manifest(manifest, tmp_path / "small", tiny, batch=4)
    lines = (tmp_path / "small" / ALIGNED).read_text().splitlines(keepends=True)
    (tmp_path / "small" / ALIGNED).write_text("".join(lines[:5]).replace("number", "thing"))
    n = align_manifest(manifest, tmp_path / "large", tiny, batch=2, words_from=tmp_path / "small")
    clips, _ = contents(tmp_path / "large")
    assert n == len(clips) == 5
    assert [clip.words for clip in clips] == [
        clip.words for clip in read_aligned(tmp_path / "small" / ALIGNED)
    ]
    assert [text for text, *_ in clips[1].words] == ["Clip", "thing", "1"]
    assert [clip.frames for clip in clips] == [10 * (i + 1) for i in range(5)]
    assert len(open_features(tmp_path / "large", WIDTH)) == sum(clip.frames for clip in clips)


def test_a_real_aligner_times_the_words_of_the_reference(tiny: Whisper) -> None:
    """A random model: it trusts its own words to nobody, but times the reference's."""
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (16_000, 24_100, 8_000)]
    results = Aligner(tiny, batch=4)(clips, ["Ask not what", "ASK NOT", None])
    assert [tuple(features.shape) for features, _ in results] == [(50, WIDTH), (75, WIDTH), (25, WIDTH)]
    assert [words and [text for text, *_ in words] for _, words in results] == [
        ["Ask", "not", "what"],
        ["ask", "not"],
        None,
    ]
    for clip, (_, words) in zip(clips, results[:2], strict=False):
        times = [time for _, start, end in words for time in (start, end)]
        assert times[0] >= 0
        assert times[-1] <= len(clip) / 16_000
        assert all(start < end for _, start, end in words)
        ends = [end for *_, end in words]
        assert ends == sorted(ends)
