"""Files and PCM bytes -> 16 kHz mono float32, a block at a time.

Samples are float32 in [-1, 1]. How the input was cut up never changes a sample of the output, and nothing
is lost at the end: whoever feeds a decoder also flushes it.
"""

import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz: what Whisper hears
LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000  # Hz, of a PCM stream
LOWEST_FILE_RATE = 1_000  # Hz: below it a short read of a file holds minutes
MOST_CHANNELS = 8
READ_FRAMES = 1_024  # a fraction of a FLAC block: what decodes before a file breaks off is not lost
LOUDEST = 2.0**15  # full scale is 1; beyond this a float is a broken one, not a loud one

Encoding = Literal["s16le", "f32le", "mulaw"]
Samples = NDArray[np.float32]

logger = logging.getLogger(__name__)


def milliseconds(samples: int) -> int:
    return samples * 1000 // SAMPLE_RATE


def samples_in(ms: int) -> int:
    return ms * SAMPLE_RATE // 1000


class AudioError(ValueError):
    """Audio that cannot be used; the message is one line and says what to do."""


class Recording:
    """An audio file that somebody else has opened, and closes; as text, what its owner calls it."""

    def __init__(self, file: IO[bytes], title: str) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.title = title

    @property
    def empty(self) -> bool:
        self.seek(0)
        found = self.read(1)
        self.seek(0)
        return not found

    def __str__(self) -> str:
        return self.title


class Downmix:
    """Samples of any rate and channel count -> 16 kHz mono; keeps the resampling filter's state.

    Output comes about 30 ms after its input at 44.1 and 48 kHz, 110 ms at 8 kHz, at once at 16 kHz. Samples
    that are no numbers (NaN, infinity) or absurd become 0 and are counted.
    """

    def __init__(self, sample_rate: int) -> None:
        self.n_samples = 0  # seen, over all channels
        self.bad_samples = 0  # of these, replaced by 0
        self.loud_samples = 0  # of those, that are numbers
        self._filter = None
        if sample_rate != SAMPLE_RATE:
            # flat to 7 kHz, -117 dB above 8.5 kHz; "LQ" answers sooner, but cuts telephone speech at 3 kHz
            self._filter = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, quality="MQ")

    def step(self, samples: Samples) -> Samples:
        """(n, channels) -> (m,), what can be known by now."""
        bad = ~(np.abs(samples) <= LOUDEST)  # true for NaN, too
        n_bad = int(np.count_nonzero(bad))
        self.n_samples += samples.size
        self.bad_samples += n_bad
        if n_bad:
            self.loud_samples += int(np.count_nonzero(np.isfinite(samples[bad])))
            samples = np.where(bad, np.float32(0), samples)
        mono = samples.mean(axis=1, dtype=np.float32)
        return self._filter.resample_chunk(mono) if self._filter else mono

    def complaint(self) -> str | None:
        """What is wrong with the samples seen, if anything is: one line."""
        n_no_numbers = self.bad_samples - self.loud_samples
        wrong = [f"{n_no_numbers} samples were not numbers"] if n_no_numbers else []
        if self.loud_samples:
            wrong.append(
                f"{self.loud_samples} samples were beyond {LOUDEST:.0f} times full scale, which is 1 in floats,"
            )
        return f"{' and '.join(wrong)} and became silence: export it again" if wrong else None

    def flush(self) -> Samples:
        """What the filter still holds, (m,); the next step starts a new stream."""
        if self._filter is None:
            return np.empty(0, np.float32)
        tail: Samples = self._filter.resample_chunk(np.empty(0, np.float32), last=True)
        self._filter.clear()
        return tail


def read_audio(path: str | PathLike[str]) -> Samples:
    """The whole file as 16 kHz mono, (n,).

    Raises:
        AudioError: there is no such file, it is not audio, or there is nothing in it.
    """
    return np.concatenate(list(stream_audio(path)))


def stream_audio(path: str | PathLike[str] | Recording, block_seconds: float = 1.0) -> Iterator[Samples]:
    """The file's audio as 16 kHz mono, in blocks of about `block_seconds`, however long the file.

    Reads WAV, FLAC, Ogg and MP3 of any rate and channel count. Of a truncated file it gives what there is,
    and logs a warning.

    Raises:
        AudioError: there is no such file, it is not audio, its rate is none, or there is nothing in it (for a
            file of nothing but NaN that is known only at the end).
    """
    if block_seconds <= 0:
        raise AudioError(f"a block of {block_seconds} s is no block: give a positive number of seconds")
    with _open(path) as file:
        if file.samplerate < LOWEST_FILE_RATE:
            raise AudioError(
                f"{path} has a sample rate of {file.samplerate} Hz: record it with {LOWEST_FILE_RATE} Hz or more"
            )
        downmix = Downmix(file.samplerate)
        block: list[Samples] = []
        for samples in _reads(file):
            block.append(downmix.step(samples))
            if sum(map(len, block)) >= block_seconds * SAMPLE_RATE:
                yield np.concatenate(block)
                block.clear()
        if not downmix.n_samples:
            raise AudioError(f"{path} holds no audio: record it again")
        yield np.concatenate([*block, downmix.flush()])
    complaint = downmix.complaint()
    if downmix.bad_samples == downmix.n_samples:
        raise AudioError(f"{path} holds no audio: {complaint}")
    if complaint:
        logger.warning("%s: %s", path, complaint)


def duration(path: str | PathLike[str]) -> float | None:
    """Seconds of audio that the file's header promises; None where it promises nothing.

    Raises:
        AudioError: there is no such file, or it is not audio.
    """
    with _open(path) as file:
        known = 0 < file.frames < 2**62  # libsndfile says 2**63 - 1 for "unknown"
        return file.frames / file.samplerate if known else None


class PcmDecoder:
    """Raw PCM bytes -> 16 kHz mono; packets may end anywhere, even within a sample."""

    def __init__(self, encoding: Encoding, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        """Raises AudioError where the parameters describe no stream that can be decoded."""
        if encoding not in get_args(Encoding):
            raise AudioError(f"unknown encoding {encoding!r}: send one of {', '.join(get_args(Encoding))}")
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioError(
                f"a sample rate of {sample_rate} Hz is out of range: send {LOWEST_RATE} to {HIGHEST_RATE} Hz"
            )
        if not 1 <= channels <= MOST_CHANNELS:
            raise AudioError(f"{channels} channels are out of range: send 1 to {MOST_CHANNELS}")
        self.encoding = encoding
        self.channels = channels
        self._frame_bytes = {"s16le": 2, "f32le": 4, "mulaw": 1}[encoding] * channels
        self._downmix = Downmix(sample_rate)
        self._rest = b""  # the beginning of a frame whose end has not come yet

    @property
    def bad_samples(self) -> int:
        """How many samples so far were not numbers, or absurd, and became 0."""
        return self._downmix.bad_samples

    def complaint(self) -> str | None:
        """What is wrong with the samples so far, if anything is."""
        return self._downmix.complaint()

    def feed(self, data: bytes) -> Samples:
        """The next packet -> the samples that it completes, (n,)."""
        data = self._rest + data
        whole = len(data) - len(data) % self._frame_bytes
        self._rest = data[whole:]
        return self._downmix.step(_decode(data[:whole], self.encoding).reshape(-1, self.channels))

    def drain(self) -> Samples:
        """What the resampler still holds, (n,), where the stream pauses; an incomplete sample stays."""
        return self._downmix.flush()

    def flush(self) -> Samples:
        """The end of the stream -> its last samples, (n,); the next packet starts a new stream."""
        self._rest = b""
        return self._downmix.flush()


def _decode(data: bytes, encoding: Encoding) -> Samples:
    if encoding == "s16le":
        return np.frombuffer(data, "<i2") * np.float32(2**-15)
    if encoding == "f32le":
        return np.frombuffer(data, "<f4").astype(np.float32)
    return np.take(MULAW, np.frombuffer(data, np.uint8))


def _mulaw_table() -> Samples:
    """What each byte of G.711 mu-law means: sign, three bits of exponent, four of mantissa, all inverted."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 132) << exponent) - 132
    return (np.where(code & 0x80, -magnitude, magnitude) / 2**15).astype(np.float32)


MULAW = _mulaw_table()


class _ForwardFile(soundfile.SoundFile):
    """A sound file that is read once, from its beginning to its end.

    After each read of a seekable file soundfile seeks to where that read ended. A seek restarts the MP3
    decoder, which then gives silence: reading such a file in blocks loses most of it.
    """

    def seekable(self) -> bool:
        return False


def _open(path: str | PathLike[str] | Recording) -> _ForwardFile:
    """The file, ready to be read, or an AudioError that says why not."""
    where = Path(str(path))
    held = isinstance(path, Recording)
    if not held and where.is_dir():
        raise AudioError(f"{path} is a folder: name one audio file in it")
    try:
        if path.empty if isinstance(path, Recording) else not where.stat().st_size:
            raise AudioError(f"{path} is empty: record or copy it again")
        return _ForwardFile(path if held else where)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{path} is not audio of a known kind (WAV, FLAC, Ogg, MP3): convert it, for example with"
            f" `ffmpeg -i {where.name} -ac 1 -ar {SAMPLE_RATE} {where.stem}-16k.wav`"
        ) from error


def _reads(file: _ForwardFile) -> Iterator[Samples]:
    """Short reads, (n, channels), as far as the file goes; warns when that is not as far as it promised."""
    n_read = 0
    try:
        while len(samples := file.read(READ_FRAMES, dtype="float32", always_2d=True)):
            n_read += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        logger.warning("%s breaks off after %.1f s: %s", file.name, n_read / file.samplerate, error)
    else:
        # libsndfile itself shortens a cut WAV to what there is, and says so only in its log
        if n_read < file.frames < 2**62 or "(should be" in _wav_log(file):
            logger.warning("%s is truncated: it ends after %.1f s", file.name, n_read / file.samplerate)


def _wav_log(file: _ForwardFile) -> str:
    """What libsndfile noted about the size of the samples in a WAV file; nothing for other files."""
    lines = file.extra_info.splitlines() if file.format in ("WAV", "WAVEX") else []
    return "".join(line for line in lines if line.startswith("data"))
