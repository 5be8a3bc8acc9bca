"""Aligned clips -> training examples: augmented audio, and what it says when."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import soxr

from adapters.align import AlignedClip
from asr.audio import SAMPLE_RATE, read_audio
from asr.checkpoint import Vocabulary
from asr.encoder import FRAMES_PER_SECOND
from asr.limits import SAMPLES_PER_FRAME
from asr.timing import n_spoken

PAUSE_S = 0.3  # of silence behind a word tell its punctuation
MAX_SECONDS = 28.0  # longer than any window that serving lets grow


@dataclass(frozen=True)
class Distillation:
    """`n` frames of the example, from frame `start`, should look like rows `row`.. of the base model's features."""

    start: int
    row: int
    n: int


@dataclass(frozen=True)
class Example:
    samples: np.ndarray  # (n,) float32
    tokens: tuple[int, ...]
    ends: tuple[
        float, ...
    ]  # seconds at which each token's word has been said; None-text clips have no tokens
    transcribed: bool  # False: only distillation can be learnt from it
    distil: tuple[Distillation, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of what is done to a clip."""

    silence_only: float = 0.04
    crop: float = 0.08  # start at a later word, as a rotated window does
    join: float = 0.12  # of the batches: two clips in every window
    speed: float = 0.2
    reverberation: float = 0.25
    voices: float = 0.12  # somebody else speaks, much softer; not one of the words to learn
    noise: float = 0.35
    lead_s: float = 0.8
    trail_s: tuple[float, float] = (0.5, 1.2)
    gain_db: tuple[float, float] = (-18.0, 6.0)
    snr_db: tuple[float, float] = (5.0, 30.0)
    above_voices_db: tuple[float, float] = (10.0, 25.0)
    rt60_s: tuple[float, float] = (0.15, 0.7)  # how long a room takes to fade by 60 dB
    direct_db: tuple[float, float] = (0.0, 15.0)  # direct sound above the room's


class Examples:
    """Draws examples from aligned clips; the same (seed, epoch, index) always gives the same one."""

    def __init__(
        self, clips: list[AlignedClip], vocabulary: Vocabulary, augmentation: Augmentation, seed: int = 0
    ) -> None:
        self.clips = clips
        self.vocabulary = vocabulary
        self.augmentation = augmentation
        self.seed = seed

    def batches(self, epoch: int, seconds: float, at_least: int = 1) -> list[list[int]]:
        """Indices of clips in batches of about `seconds` of audio, similar lengths together, in random order.

        Batches of fewer than `at_least` clips, one for each process, are left out.
        """
        lengths = np.array([clip.seconds for clip in self.clips])
        drawn = batches(lengths, seconds, np.random.default_rng((self.seed, epoch)))
        return [indices for indices in drawn if len(indices) >= at_least]

    def draw(self, epoch: int, indices: list[int]) -> list[Example]:
        """The examples of one batch. Joining is decided for all of them at once, so that lengths stay similar."""
        rng = np.random.default_rng((self.seed, epoch, *indices))
        if rng.random() < self.augmentation.join and self._joined_seconds(indices) < MAX_SECONDS:
            pairs = [indices[i : i + 2] for i in range(0, len(indices), 2)]
        else:
            pairs = [[index] for index in indices]
        return [self._draw(rng, pair) for pair in pairs]

    def _joined_seconds(self, indices: list[int]) -> float:
        """The longest that joining neighbours in the batch can give, lead and trail included."""
        longest = max(self.clips[index].seconds for index in indices)
        return 2 * longest / 0.9 + self.augmentation.lead_s + self.augmentation.trail_s[1] + 1.0

    def _draw(self, rng: np.random.Generator, indices: list[int]) -> Example:
        policy = self.augmentation
        if rng.random() < policy.silence_only:
            return Example(
                _no_speech(rng, min(self.clips[indices[0]].seconds, 10.0)), (), (), transcribed=True
            )
        example = self._plain(self.clips[indices[0]])
        for index in indices[1:]:
            example = _join(example, self._plain(self.clips[index]), silence(rng, rng.uniform(0.1, 0.8)))
        if example.transcribed and rng.random() < policy.crop:
            example = _crop(example, rng)
        if rng.random() < policy.speed:
            example = at_speed(example, rng.choice((0.9, 1.1)))
        lead = silence(rng, rng.uniform(0, policy.lead_s) if rng.random() < 0.7 else 0.0)
        example = _join(Example(lead, (), (), example.transcribed), example, np.zeros(0, np.float32))
        samples = np.concatenate([example.samples, silence(rng, rng.uniform(*policy.trail_s))])
        if rng.random() < policy.reverberation:
            samples = in_a_room(rng, samples, rng.uniform(*policy.rt60_s), rng.uniform(*policy.direct_db))
        if rng.random() < policy.voices:
            other = _samples(self.clips[int(rng.integers(len(self.clips)))])
            level = rng.uniform(*policy.above_voices_db)
            samples = samples + at_level(np.resize(other, len(samples)), samples, level)
        gain = np.float32(10 ** (rng.uniform(*policy.gain_db) / 20))
        if rng.random() < policy.noise:
            samples = samples + noise_at(rng, samples, rng.uniform(*policy.snr_db))
        return replace(example, samples=(samples * gain).clip(-1, 1).astype(np.float32))

    def _plain(self, clip: AlignedClip) -> Example:
        tokens: list[int] = []
        ends: list[float] = []
        words = clip.words or []
        for i, (text, _, end) in enumerate(words):
            word = self.vocabulary.tokenizer.encode(" " + text)
            spoken = n_spoken(word, self.vocabulary)
            paused = min(end + PAUSE_S, words[i + 1][2]) if i + 1 < len(words) else end + PAUSE_S
            tokens += word
            ends += [end] * spoken + [max(end, paused)] * (len(word) - spoken)
        distil = (Distillation(0, clip.offset, clip.frames),)
        return Example(_samples(clip), tuple(tokens), tuple(ends), clip.words is not None, distil)


def _samples(clip: AlignedClip) -> np.ndarray:
    return decoded(clip.audio).astype(np.float32) / 32768


@cache
def decoded(path: str) -> np.ndarray:
    """A clip as int16, kept: an hour takes 115 MB, decoding it again and again half a core."""
    return (read_audio(path) * 32767).astype(np.int16)


def _join(first: Example, second: Example, gap: np.ndarray) -> Example:
    """`second` behind `first` with `gap` between, the seam on a frame boundary."""
    head = np.concatenate([first.samples, gap])
    head = head[: len(head) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
    shift, frames = len(head) / SAMPLE_RATE, len(head) // SAMPLES_PER_FRAME
    kept = tuple(replace(d, n=min(d.n, frames - d.start)) for d in first.distil)
    moved = tuple(replace(d, start=d.start + frames) for d in second.distil)
    return Example(
        samples=np.concatenate([head, second.samples]),
        tokens=first.tokens + second.tokens,
        ends=first.ends + tuple(end + shift for end in second.ends),
        transcribed=first.transcribed and second.transcribed,
        distil=kept + moved,
    )


def _crop(example: Example, rng: np.random.Generator) -> Example:
    """Starts at a random later word, where the longest pauses are not needed: rotation may cut anywhere."""
    cuts = [i for i in range(1, len(example.ends)) if example.ends[i] > example.ends[i - 1]]
    cuts = [i for i in cuts if example.ends[i - 1] < 0.6 * example.seconds]
    if not cuts:
        return example
    first = int(rng.choice(cuts))
    frame = int(example.ends[first - 1] * FRAMES_PER_SECOND)
    start = frame / FRAMES_PER_SECOND
    return Example(
        samples=example.samples[frame * SAMPLES_PER_FRAME :],
        tokens=example.tokens[first:],
        ends=tuple(end - start for end in example.ends[first:]),
        transcribed=True,
        distil=tuple(_behind(frame, part) for part in example.distil if part.start + part.n > frame),
    )


def _behind(frame: int, part: Distillation) -> Distillation:
    """What is left of `part` in an example that starts at `frame`; joined clips do not begin at 0."""
    lost = max(0, frame - part.start)
    return Distillation(max(0, part.start - frame), part.row + lost, part.n - lost)


def at_speed(example: Example, speed: float) -> Example:
    """Faster or slower, pitch and all; the base model's features no longer fit then."""
    samples = soxr.resample(example.samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ").astype(
        np.float32
    )
    return replace(example, samples=samples, ends=tuple(end / speed for end in example.ends), distil=())


def silence(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Digital silence or the faint noise of a room."""
    n = int(seconds * SAMPLE_RATE)
    level = 0.0 if rng.random() < 0.3 else 10 ** rng.uniform(-4.5, -2.7)
    return (rng.standard_normal(n) * level).astype(np.float32)


def _no_speech(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Silence, coloured noise, or noise in bursts."""
    n = int(seconds * SAMPLE_RATE)
    if rng.random() < 0.3:
        return silence(rng, seconds)
    noise = _coloured_noise(rng, n)
    if rng.random() < 0.5:
        knots = rng.random(max(2, int(seconds * 6))) ** 3
        noise = noise * np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots)
    return (noise * 10 ** rng.uniform(-3, -0.7)).astype(np.float32)


def _coloured_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Unit-variance noise whose spectrum falls by 0 to 12 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= np.maximum(np.arange(len(spectrum)), 20.0 * n / SAMPLE_RATE) ** -rng.uniform(0, 2)
    noise = np.fft.irfft(spectrum, n)
    return noise / (noise.std() + 1e-9)


def noise_at(rng: np.random.Generator, samples: np.ndarray, snr_db: float) -> np.ndarray:
    return at_level(_coloured_noise(rng, len(samples)), samples, snr_db)


def at_level(sound: np.ndarray, samples: np.ndarray, below_db: float) -> np.ndarray:
    """`sound` made `below_db` weaker than `samples`."""
    own, wanted = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64))) + 1e-9) for x in (sound, samples))
    return (sound * (wanted / own * 10 ** (-below_db / 20))).astype(np.float32)


def in_a_room(rng: np.random.Generator, samples: np.ndarray, rt60_s: float, direct_db: float) -> np.ndarray:
    """As heard in a room: behind the direct sound, which stays where it is, white noise that fades.

    The room's response is Polack's statistical model (La transmission de l'energie sonore dans les salles, 1988).
    """
    n = int(rt60_s * SAMPLE_RATE)
    room = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    room[0] = 0.0
    room *= 10 ** (-direct_db / 20) / np.linalg.norm(room)
    room[0] = 1.0
    size = 1 << (len(samples) + n - 1).bit_length()
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[: len(samples)]
    return at_level(heard, samples, 0.0)


def batches(lengths: np.ndarray, most: float, rng: np.random.Generator) -> list[list[int]]:
    """Indices in batches of about `most` in all, similar lengths together, in random order."""
    grouped: list[list[int]] = [[]]
    for index in np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths))):
        if grouped[-1] and lengths[index] * (len(grouped[-1]) + 1) > most:
            grouped.append([])
        grouped[-1].append(int(index))
    return [grouped[i] for i in rng.permutation(len(grouped))]


def epochs(batches_of: Callable[[int], list[list[int]]], first_step: int) -> Iterator[tuple[int, list[int]]]:
    """(epoch, indices) of every batch from `first_step` on, for ever; `batches_of` gives those of an epoch.

    Raises:
        ValueError: an epoch has none.
    """
    epoch, step = 0, 0
    while True:
        drawn = batches_of(epoch)
        if not drawn:
            raise ValueError("not one batch has a clip for each process: fewer processes, or more clips")
        for indices in drawn:
            if step >= first_step:
                yield epoch, indices
            step += 1
        epoch += 1
