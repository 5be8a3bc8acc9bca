"""Audio for a conversation that begins here: PCM from a pipe, and anything at the speed of speech."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from asr.audio import SAMPLE_RATE, AudioError, Encoding, PcmDecoder, Samples, stream_audio
from server.terminal import tell

READ_BYTES = 2**16  # at most, of a pipe: what is there is taken at once
CONTAINERS = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")  # how audio files begin


class Pipe(Protocol):
    """What is needed of stdin's buffer."""

    def read1(self, n_bytes: int, /) -> bytes: ...


def read_pcm(pipe: Pipe, decoder: PcmDecoder) -> Iterator[Samples]:
    """The pipe's audio as 16 kHz mono, (n,) each, as soon as it comes.

    Raises:
        AudioError: the pipe holds an audio file, or nothing.
    """
    n_bytes = 0
    while data := pipe.read1(READ_BYTES):
        if not n_bytes and _is_file(data, decoder.encoding):
            raise AudioError("stdin holds an audio file, not raw PCM: give the file's path instead of -")
        n_bytes += len(data)
        yield decoder.feed(data)
    if not n_bytes:
        raise AudioError("stdin held no audio: pipe raw PCM into it, described by --encoding and --rate")
    yield decoder.flush()
    if complaint := decoder.complaint():
        tell(complaint)


def _is_file(data: bytes, encoding: Encoding) -> bool:
    """Whether what begins so is an audio file, and no raw PCM."""
    if data.startswith(CONTAINERS) or data[4:8] == b"ftyp":
        return True
    if encoding == "mulaw" or len(data) < 4:  # whose silence begins as frames of MP3 do
        return False
    sync, kind, rates, emphasis = data[:4]  # of a frame of MP3, as files without tags begin
    known = 0x10 <= rates < 0xF0 and rates & 0x0C != 0x0C and emphasis & 3 == 0
    return sync == 0xFF and kind in (0xF2, 0xF3, 0xFA, 0xFB) and known


def at_speed_of_speech(audio: Iterable[Samples]) -> Iterator[Samples]:
    """Each piece when its last sample would have been spoken."""
    n_samples, started = 0, time.monotonic()
    for samples in audio:
        n_samples += len(samples)
        time.sleep(max(0.0, started + n_samples / SAMPLE_RATE - time.monotonic()))
        yield samples


async def spoken(path: Path, block_ms: int) -> AsyncIterator[Samples]:
    """The file's audio at the speed of speech, on an event loop."""
    n_samples, started = 0, time.monotonic()
    for samples in stream_audio(path, block_ms / 1000):
        n_samples += len(samples)
        await asyncio.sleep(started + n_samples / SAMPLE_RATE - time.monotonic())
        yield samples
