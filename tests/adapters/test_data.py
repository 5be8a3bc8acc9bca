"""Examples drawn from clips: whatever is done to the audio, the words stay where they are said.

Every word of a clip is a click 30 ms before its end, so that the audio itself tells when its words end.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapters.align import AlignedClip
from adapters.data import PAUSE_S, Augmentation, Example, Examples, batches, epochs, in_a_room
from asr.checkpoint import Whisper
from asr.limits import SAMPLES_PER_FRAME

RATE = 16_000
PLAIN = Augmentation(
    silence_only=0, crop=0, join=0, speed=0, reverberation=0, voices=0, noise=0, gain_db=(0, 0)
)
WORDS = ("And", "so", "ill-disposed", "my", "fellow")


def clip(folder: Path, number: int, offset: int) -> AlignedClip:
    rng = np.random.default_rng(number)
    ends = np.cumsum(rng.uniform(0.25, 0.6, len(WORDS)))
    samples = np.zeros(int((ends[-1] + rng.uniform(0.1, 0.5)) * RATE), np.float32)
    samples[((ends - 0.03) * RATE).astype(int)] = 0.9
    path = folder / f"{number}.wav"
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    words = [(word, end - 0.2, float(end)) for word, end in zip(WORDS, ends, strict=True)]
    return AlignedClip(
        str(number), str(path), len(samples) / RATE, words, offset, len(samples) // SAMPLES_PER_FRAME
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[AlignedClip]:
    folder, made, offset = tmp_path_factory.mktemp("clips"), [], 0
    for number in range(12):
        made.append(clip(folder, number, offset))
        offset += made[-1].frames
    return made


def examples(clips: list[AlignedClip], tiny: Whisper, augmentation: Augmentation) -> Examples:
    return Examples(clips, tiny.vocabulary, augmentation)


def clicks(example: Example, level: float = 0.2) -> list[float]:
    """When the clicks are heard, in seconds; a resampled click is spread over a few samples."""
    loud = np.flatnonzero(np.abs(example.samples) > level)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > 800) + 1)
    return [float(np.mean(group)) / RATE for group in groups]


@pytest.mark.parametrize(
    "augmentation",
    [
        PLAIN,
        replace(PLAIN, crop=1),
        replace(PLAIN, join=1),
        replace(PLAIN, speed=1),
        replace(PLAIN, noise=1, snr_db=(20, 20)),
        replace(PLAIN, reverberation=1, direct_db=(10, 15)),
        replace(PLAIN, voices=1, above_voices_db=(20, 25)),
        replace(PLAIN, join=1, crop=1, speed=1),
    ],
)
def test_words_end_where_they_are_said(
    clips: list[AlignedClip], tiny: Whisper, augmentation: Augmentation
) -> None:
    drawn = examples(clips, tiny, augmentation).draw(0, list(range(len(clips))))
    for example in drawn:
        assert example.transcribed
        assert len(example.tokens) == len(example.ends)
        assert sorted(example.ends) == list(example.ends)
        ends = sorted(set(example.ends))
        assert [click + 0.03 for click in clicks(example)] == pytest.approx(ends, abs=0.005)
        assert example.ends[-1] <= example.seconds
    n_words = [len(set(example.ends)) for example in drawn]
    if augmentation.crop:
        assert min(n_words) < len(WORDS) * (1 + augmentation.join)
    elif augmentation.join:
        assert n_words == [2 * len(WORDS)] * (len(clips) // 2)
    else:
        assert n_words == [len(WORDS)] * len(clips)


def test_every_token_of_a_word_ends_with_it(clips: list[AlignedClip], tiny: Whisper) -> None:
    (example,) = examples(clips, tiny, PLAIN).draw(0, [0])
    assert tiny.vocabulary.text(list(example.tokens)) == " " + " ".join(WORDS)
    n_tokens = [len(tiny.vocabulary.tokenizer.encode(f" {word}")) for word in WORDS]
    assert max(n_tokens) > 1
    assert [example.ends.count(end) for end in dict.fromkeys(example.ends)] == n_tokens


def test_punctuation_is_due_when_the_pause_tells_it(clips: list[AlignedClip], tiny: Whisper) -> None:
    """But never after the next word."""
    words = [("Well,", 0.1, 0.4), ("no.", 0.4, 0.5), ("Yes.", 0.9, 1.1)]
    (example,) = examples([replace(clips[0], words=words)], tiny, PLAIN).draw(0, [0])
    lead = example.ends[0] - 0.4
    due = [0.4, 0.5, 0.5, 0.5 + PAUSE_S, 1.1, 1.1 + PAUSE_S]
    assert [end - lead for end in example.ends] == pytest.approx(due)


@pytest.mark.parametrize(
    "augmentation", [PLAIN, replace(PLAIN, crop=1), replace(PLAIN, join=1), replace(PLAIN, join=1, crop=1)]
)
def test_features_belong_to_the_audio_beside_them(
    clips: list[AlignedClip], tiny: Whisper, augmentation: Augmentation
) -> None:
    by_row = {row: (c, row - c.offset) for c in clips for row in range(c.offset, c.offset + c.frames)}
    n_parts = 0
    for example in examples(clips, tiny, augmentation).draw(0, list(range(len(clips)))):
        for part in example.distil:
            source, frame = by_row[part.row]
            assert part.n > 0
            assert frame + part.n <= source.frames
            own = example.samples[part.start * SAMPLES_PER_FRAME : (part.start + part.n) * SAMPLES_PER_FRAME]
            theirs, _ = soundfile.read(source.audio, dtype="float32")
            theirs = theirs[frame * SAMPLES_PER_FRAME : (frame + part.n) * SAMPLES_PER_FRAME]
            np.testing.assert_allclose(own, theirs, atol=1e-3)
            n_parts += 1
    assert n_parts > len(clips) / 2  # a crop may take all of a joined clip's first half


def test_at_another_speed_the_features_no_longer_fit(clips: list[AlignedClip], tiny: Whisper) -> None:
    assert all(not e.distil for e in examples(clips, tiny, replace(PLAIN, speed=1)).draw(0, [0, 1, 2]))


def test_a_room_fades_and_does_not_delay(clips: list[AlignedClip], tiny: Whisper) -> None:
    """A click's energy is as ever, and its echo 60 dB weaker after the room's time."""
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    heard = in_a_room(np.random.default_rng(0), click, rt60_s=0.4, direct_db=6.0)
    assert np.abs(heard).argmax() == 100
    assert not heard[:100].round(6).any(), "nothing is heard before it is said"
    assert np.linalg.norm(heard) == pytest.approx(np.linalg.norm(click), rel=1e-3)
    echo = heard[101:]
    assert np.linalg.norm(echo) == pytest.approx(heard[100] / 2, rel=0.05), "6 dB below the direct sound"
    early, late = (np.linalg.norm(echo[start : start + 400]) for start in (0, 3200))
    assert 20 * np.log10(early / late) == pytest.approx(30, abs=2), "half of 60 dB in half of the time"


def test_other_voices_are_softer_and_teach_no_words(clips: list[AlignedClip], tiny: Whisper) -> None:
    alone, beside = (
        examples(clips, tiny, replace(PLAIN, voices=share, above_voices_db=(20, 20))).draw(0, [3])[0]
        for share in (0, 1)
    )
    assert (alone.tokens, alone.ends, alone.distil) == (beside.tokens, beside.ends, beside.distil)
    assert len(clicks(beside, 0.05)) > len(clicks(beside)) == len(WORDS)


def test_silence_has_no_words_to_learn(clips: list[AlignedClip], tiny: Whisper) -> None:
    for example in examples(clips, tiny, replace(PLAIN, silence_only=1)).draw(0, list(range(len(clips)))):
        assert example.transcribed
        assert example.tokens == example.ends == example.distil == ()
        assert np.abs(example.samples).max() < 1
        assert len(example.samples) > 0


def test_a_clip_that_nobody_understood_is_only_distilled(clips: list[AlignedClip], tiny: Whisper) -> None:
    unknown = [replace(clips[0], words=None)]
    (example,) = examples(unknown, tiny, replace(PLAIN, crop=1)).draw(0, [0])
    assert not example.transcribed
    assert example.tokens == ()
    assert [part.n for part in example.distil] == [clips[0].frames]


def test_samples_stay_within_full_scale(clips: list[AlignedClip], tiny: Whisper) -> None:
    loud = replace(PLAIN, gain_db=(6, 6), noise=1, snr_db=(0, 0))
    for example in examples(clips, tiny, loud).draw(0, list(range(len(clips)))):
        assert example.samples.dtype == np.float32
        assert np.abs(example.samples).max() <= 1


def test_the_same_draw_gives_the_same_examples(clips: list[AlignedClip], tiny: Whisper) -> None:
    first, again = (examples(clips, tiny, Augmentation()) for _ in range(2))
    for one, other in zip(first.draw(3, [4, 5, 6]), again.draw(3, [4, 5, 6]), strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert (one.tokens, one.ends, one.distil) == (other.tokens, other.ends, other.distil)
    assert first.batches(1, 5.0) == again.batches(1, 5.0)
    assert first.batches(1, 5.0) != first.batches(2, 5.0)
    other = first.draw(4, [4, 5, 6])
    assert not np.array_equal(first.draw(3, [4, 5, 6])[0].samples, other[0].samples)


@pytest.mark.parametrize("seconds", [1.0, 5.0, 12.0, 1000.0])
def test_batches_cover_everything_once(clips: list[AlignedClip], tiny: Whisper, seconds: float) -> None:
    drawn = examples(clips, tiny, PLAIN).batches(0, seconds)
    assert sorted(index for batch in drawn for index in batch) == list(range(len(clips)))
    for batch in drawn:
        lengths = [clips[index].seconds for index in batch]
        assert len(batch) == 1 or max(lengths) * len(batch) <= seconds * 1.25
    if seconds == 12.0:
        assert 1 < len(drawn) < len(clips)


def test_training_goes_on_where_it_stopped(clips: list[AlignedClip], tiny: Whisper) -> None:
    drawer = examples(clips, tiny, PLAIN)

    def batches_of(epoch: int) -> list[list[int]]:
        return drawer.batches(epoch, 5.0)

    from_start = list(islice(epochs(batches_of, 0), 20))
    assert list(islice(epochs(batches_of, 7), 13)) == from_start[7:]
    assert {epoch for epoch, _ in from_start} >= {0, 1}


@pytest.mark.parametrize("most", [0.5, 4.0, 9.0, 1000.0])
def test_batches_cover_everything_once_alike_together(most: float) -> None:
    lengths = np.random.default_rng(0).uniform(1, 3, 60)
    grouped = batches(lengths, most, np.random.default_rng(1))
    assert sorted(index for group in grouped for index in group) == list(range(60))
    for group in grouped:
        assert len(group) == 1 or lengths[group].max() * len(group) < most * 1.25
        assert most == 1000 or np.ptp(lengths[group]) < 1
    assert most < 1000 or len(grouped) == 1
    if most == 9.0:
        first = [lengths[group].mean() for group in grouped]
        assert first != sorted(first), "in random order"
