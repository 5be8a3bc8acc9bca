"""From manifests to batches: which clips, how they are drawn, and that a cache holds what was drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.ancat.corpus import (
    FEATURES,
    IGNORED,
    INDEX,
    LONGEST_S,
    SHORTEST_S,
    Alignment,
    Clip,
    Corpus,
    FeatureCache,
    read_clips,
    spec_mask,
)
from adapters.data import Augmentation
from asr.audio import SAMPLE_RATE
from asr.mel import LogMel
from asr.transducer.model import Transducer
from asr.transducer.pieces import Pieces
from asr.transducer.trunk import SAMPLES_PER_FEATURE
from tests.adapters.ancat.conftest import WORDS


def test_clips_are_what_can_be_learnt_from(tmp_path: Path) -> None:
    kept = {"audio": "a.wav", "seconds": 3.0, "text": "Don’t STOP, Anna!"}
    other = [
        {**kept, "text": None},
        {**kept, "text": " ... "},
        {**kept, "text": "room 101"},
        {**kept, "seconds": SHORTEST_S},
        {**kept, "seconds": LONGEST_S},
    ]
    manifest = tmp_path / "some.jsonl"
    manifest.write_text("\n".join(map(json.dumps, [*other, kept])))
    assert read_clips(manifest) == [Clip(str(tmp_path / "a.wav"), 3.0, "don't stop anna")]
    assert read_clips(manifest, Path("/elsewhere"))[0].audio == "/elsewhere/a.wav"


def test_clips_are_called_what_the_alignment_calls_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.jsonl").write_text(json.dumps({"audio": "a.wav", "seconds": 3.0, "text": "stop"}) + "\n\n")
    assert [clip.audio for clip in read_clips(Path("some.jsonl"))] == [str(tmp_path / "a.wav")]


def test_a_file_tells_how_long_it_is_where_the_manifest_does_not(manifest: Path) -> None:
    silent = manifest.with_name("silent.jsonl")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    silent.write_text("\n".join(json.dumps({"audio": one["audio"], "text": one["text"]}) for one in entries))
    assert read_clips(silent) == read_clips(manifest)


@pytest.mark.parametrize("line", ["{", "[]", '{"audio": "a.wav"}'])
def test_a_line_that_is_none_of_a_manifest_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "some.jsonl").write_text("\n" + line)
    with pytest.raises(ValueError, match=r"some.jsonl, line 2: audio and text"):
        read_clips(tmp_path / "some.jsonl")


def test_pieces_spell_every_text(clips: list[Clip], pieces: Pieces) -> None:
    assert [pieces.text(pieces.encode(clip.text)) for clip in clips] == [clip.text for clip in clips]
    assert len(pieces.encode("low low low")) < len("low low low"), "frequent letters have become pieces"


def test_the_same_draw_is_the_same_audio(clips: list[Clip], pieces: Pieces, corpus: Corpus) -> None:
    drawn = corpus.draw(3, 5).samples
    np.testing.assert_array_equal(drawn, Corpus(clips, pieces).draw(3, 5).samples)
    for other in (corpus.draw(4, 5), Corpus(clips, pieces, seed=1).draw(3, 5)):
        assert not np.array_equal(drawn[:8000], other.samples[:8000])


def test_drawn_audio_is_whole_features_within_full_scale(corpus: Corpus) -> None:
    for index, clip in enumerate(corpus.clips):
        drawn = corpus.draw(0, index)
        assert drawn.samples.dtype == np.float32
        assert len(drawn.samples) == drawn.n_features * SAMPLES_PER_FEATURE
        assert np.abs(drawn.samples).max() <= 1
        around = len(drawn.samples) / SAMPLE_RATE - clip.seconds / drawn.speed
        assert drawn.lead_s + 0.15 < around < drawn.lead_s + 0.75


def test_batches_are_padded_behind_their_rows(corpus: Corpus) -> None:
    indices = [7, 0, 3]
    drawn = [corpus.draw(1, index) for index in indices]
    samples, lengths = corpus.padded(drawn)
    tokens, n_tokens = corpus.targets(indices)
    labels = corpus.labels(indices, drawn)
    assert samples.shape == (3, int(lengths.max()) * SAMPLES_PER_FEATURE)
    assert labels.shape == (3, int(lengths.max()))
    for row, index in enumerate(indices):
        n = int(lengths[row])
        np.testing.assert_array_equal(samples[row, : n * SAMPLES_PER_FEATURE].numpy(), drawn[row].samples)
        assert not samples[row, n * SAMPLES_PER_FEATURE :].any()
        assert (labels[row, n:] == IGNORED).all()
        assert tokens[row, : n_tokens[row]].tolist() == corpus.pieces.encode(corpus.clips[index].text)
        assert not tokens[row, n_tokens[row] :].any()


def test_labels_lie_on_what_they_name(clips: list[Clip], pieces: Pieces, alignment: Alignment) -> None:
    """Whatever silence and speed were drawn: below each label its word is whistled."""
    corpus = Corpus(clips, pieces, alignment)
    corpus.augmentation = Augmentation(speed=0.5, noise=0)
    blank, speeds = len(pieces), set()
    for index, clip in enumerate(clips):
        drawn = corpus.draw(0, index)
        speeds.add(drawn.speed)
        (labels,) = corpus.labels([index], [drawn])
        starts = [n for n, label in enumerate(labels.tolist()) if label not in (blank, *labels[n - 1 : n])]
        assert labels[starts].tolist() == corpus.tokens[index]
        for start, word in zip(starts, clip.text.split(), strict=True):
            n = int((labels[start:] == blank).int().argmax())
            heard = drawn.samples[start * SAMPLES_PER_FEATURE : (start + n) * SAMPLES_PER_FEATURE]
            loudest = np.abs(np.fft.rfft(heard)).argmax() * SAMPLE_RATE / len(heard)
            assert loudest == pytest.approx(WORDS[word] * drawn.speed, rel=0.1)
    assert len(speeds) > 3
    nothing = Corpus(clips, pieces).labels([0], [drawn])
    assert (nothing == IGNORED).all(), "who has no alignment is told nothing"


def test_spec_augment_masks_a_little_of_each_row() -> None:
    mel = torch.randn(4, 80, 600, generator=torch.Generator().manual_seed(0))
    masked = mel.clone()
    spec_mask(masked, np.random.default_rng(0))
    for row, before in zip(masked, mel, strict=True):
        changed = row != before
        bands, stretches = changed.all(dim=1), changed.all(dim=0)
        assert changed[~bands][:, ~stretches].sum() == 0, "nothing but whole bands and stretches"
        assert 0 < changed.float().mean() < 0.5
    again = mel.clone()
    spec_mask(again, np.random.default_rng(0))
    assert torch.equal(again, masked)


def test_the_cache_holds_what_the_trunk_makes_of_each_draw(
    corpus: Corpus, cache: FeatureCache, make_model: Callable[[], Transducer]
) -> None:
    trunk, indices = make_model().trunk, [4, 11]
    for epoch in (0, 1):
        audio, lengths = corpus.padded([corpus.draw(epoch, index) for index in indices])
        features, cached_lengths = cache.read(epoch, indices)
        assert torch.equal(cached_lengths, lengths)
        with torch.no_grad():
            expected = trunk(LogMel().whole(audio))
        for row, n in enumerate(lengths.tolist()):
            # Made in bfloat16, in another batch, whose padding the last feature hears.
            torch.testing.assert_close(features[row, : n - 1], expected[row, : n - 1], atol=0.15, rtol=0)
            assert not features[row, n:].any()
        again, _ = cache.read(epoch + 2, indices)
        assert torch.equal(again, features)
    assert cache.read(0, indices)[0].shape != cache.read(1, indices)[0].shape


def test_an_interrupted_cache_ends_as_an_uninterrupted_one(
    corpus: Corpus, cache: FeatureCache, make_model: Callable[[], Transducer], tmp_path: Path
) -> None:
    trunk, told = make_model().trunk, []

    def interrupt(seconds: float) -> None:
        told.append(seconds)
        if sum(told) > 1.5 * corpus.seconds.sum():
            raise KeyboardInterrupt

    broken = FeatureCache(tmp_path, trunk.width)
    with pytest.raises(KeyboardInterrupt):
        broken.write(corpus, trunk, 2, batch_seconds=5.0, progress=interrupt)
    assert broken.read(0, [2])[0].shape[0] == 1
    resumed = FeatureCache(tmp_path, trunk.width)
    assert resumed.draws == broken.draws == 1
    begun = (tmp_path / FEATURES).read_bytes()
    first, _ = resumed.read(0, [2])
    resumed.write(corpus, trunk, 2, batch_seconds=5.0)
    written = (tmp_path / FEATURES).read_bytes()
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(index) == resumed.draws == 2
    assert len(written) == sum(n for draw in index for _, n in draw) * trunk.width * 2
    n_first = sum(n for _, n in index[0]) * trunk.width * 2
    assert written[:n_first] == begun[:n_first]
    assert torch.equal(resumed.read(0, [2])[0], first)
    for indices in ([2], [0, 9]):  # of a draw that was not there when rows were first read
        mine, theirs = resumed.read(1, indices), cache.read(1, indices)
        assert torch.equal(mine[1], theirs[1])
        torch.testing.assert_close(mine[0][:, :-1], theirs[0][:, :-1], atol=0.15, rtol=0)


def test_a_cache_of_other_clips_is_not_taken_for_these(
    cache: FeatureCache, clips: list[Clip], pieces: Pieces, make_model: Callable[[], Transducer]
) -> None:
    with pytest.raises(ValueError, match="features of other clips"):
        cache.write(Corpus(clips[:-1], pieces), make_model().trunk, 3)
    assert cache.draws == 2
