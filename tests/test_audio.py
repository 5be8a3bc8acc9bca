"""Audio files and PCM streams: every format, every cut, and everything that is not audio."""

import io
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.audio import (
    LOWEST_FILE_RATE,
    MULAW,
    SAMPLE_RATE,
    AudioError,
    Encoding,
    PcmDecoder,
    duration,
    read_audio,
    stream_audio,
)

SAMPLES = Path(__file__).parent.parent / "samples"


def tone(seconds: float, sample_rate: int, channels: int = 1) -> np.ndarray:
    """440 Hz at a third of full scale in every channel, (n, channels)."""
    mono = np.sin(2 * np.pi * 440 * np.arange(round(seconds * sample_rate)) / sample_rate) / 3
    return np.repeat(mono.astype(np.float32)[:, None], channels, axis=1)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "sample_rate", "channels"),
    [
        ("wav", "PCM_16", 16_000, 1),
        ("wav", "PCM_24", 44_100, 2),
        ("wav", "FLOAT", 192_000, 8),
        ("wav", "ULAW", 8_000, 1),
        ("flac", "PCM_16", 48_000, 2),
        ("ogg", "VORBIS", 44_100, 2),
        ("ogg", "OPUS", 48_000, 1),
        ("mp3", "MPEG_LAYER_III", 44_100, 2),
    ],
)
def test_every_format_becomes_16_khz_mono(
    tmp_path: Path, kind: str, subtype: str, sample_rate: int, channels: int
) -> None:
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, tone(1.5, sample_rate, channels), sample_rate, subtype=subtype)
    audio = read_audio(path)
    assert audio.dtype == np.float32
    assert audio.ndim == 1
    assert duration(path) == pytest.approx(1.5, abs=0.05)
    assert len(audio) == pytest.approx(1.5 * SAMPLE_RATE, abs=800)  # Ogg and MP3 pad
    middle = slice(8_000, 16_000)
    np.testing.assert_allclose(audio[middle].std(), 1 / 3 / 2**0.5, rtol=0.02)
    spectrum = np.abs(np.fft.rfft(audio[middle]))
    assert spectrum.argmax() * SAMPLE_RATE / 8_000 == pytest.approx(440, abs=2)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav"), 0.125)


def test_blocks_make_the_whole(tmp_path: Path) -> None:
    whole = read_audio(SAMPLES / "jfk.wav")
    assert len(whole) == 11 * SAMPLE_RATE
    blocks = list(stream_audio(SAMPLES / "jfk.wav", block_seconds=0.2))
    assert all(0.2 * SAMPLE_RATE <= len(block) < 0.3 * SAMPLE_RATE for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_an_hour_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "ULAW") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8_000, np.float32))
    n_samples = longest = 0
    for block in stream_audio(path, block_seconds=10):
        n_samples, longest = n_samples + len(block), max(longest, len(block))
    assert n_samples == 3_600 * SAMPLE_RATE
    assert longest < 11 * SAMPLE_RATE


@pytest.mark.parametrize("content", [b"hello world" * 100, b"RIFF\x00\x00\x00\x00WAVE", b"\x00" * 5_000])
def test_what_is_not_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"not audio of a known kind.*ffmpeg -i notes\.wav"):
        read_audio(path)
    with pytest.raises(AudioError, match="not audio"):
        duration(path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        read_audio(tmp_path / "absent.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="is empty"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "zero.wav", tone(0, SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(AudioError, match="holds no audio"):
        read_audio(tmp_path / "zero.wav")
    with pytest.raises(AudioError, match="no block"):
        list(stream_audio(SAMPLES / "jfk.wav", block_seconds=0))


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_truncated_file_gives_what_there_is(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE)
    soundfile.write(path, noise, SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        audio = read_audio(path)
    assert 2 * SAMPLE_RATE < len(audio) < 3 * SAMPLE_RATE
    assert "truncated" in caplog.text or "breaks off" in caplog.text


def test_whole_files_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for path in (SAMPLES / "jfk.wav", SAMPLES / "austen-0870.flac"):
        read_audio(path)
    assert not caplog.records


def test_nan_in_a_file_becomes_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "nan.wav"
    audio = tone(0.5, SAMPLE_RATE)
    audio[100:110] = np.nan
    audio[200] = np.inf
    soundfile.write(path, audio, SAMPLE_RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        read = read_audio(path)
    assert "11 samples were not numbers" in caplog.text
    assert not read[100:110].any()
    np.testing.assert_array_equal(read[300:], audio[300:, 0])

    soundfile.write(path, np.full(800, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="holds no audio: 800 samples were not numbers"):
        read_audio(path)


def test_what_is_far_too_loud_is_not_said_to_be_no_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "loud.wav"
    audio = tone(0.5, SAMPLE_RATE)
    audio[100:110] = 1e6
    audio[200] = np.nan
    soundfile.write(path, audio, SAMPLE_RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        assert not read_audio(path)[100:110].any()
    assert "1 samples were not numbers and 10 samples were beyond 32768 times full scale" in caplog.text


def test_a_rate_that_is_none_is_refused_with_the_lowest_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "slow.wav"
    soundfile.write(path, tone(1, LOWEST_FILE_RATE - 1), LOWEST_FILE_RATE - 1)
    with pytest.raises(AudioError, match="a sample rate of 999 Hz: record it with 1000 Hz or more"):
        read_audio(path)
    soundfile.write(path, tone(1, LOWEST_FILE_RATE), LOWEST_FILE_RATE)
    assert len(read_audio(path)) == SAMPLE_RATE


# --- PCM streams ------------------------------------------------------------------------------------


def decode(data: bytes, cuts: list[int], encoding: Encoding, sample_rate: int, channels: int) -> np.ndarray:
    """`data`, cut at `cuts`, through one decoder, to the end."""
    decoder = PcmDecoder(encoding, sample_rate, channels)
    edges = [0, *sorted(cuts), len(data)]
    return np.concatenate([*(decoder.feed(data[a:b]) for a, b in pairwise(edges)), decoder.flush()])


@given(
    data=st.binary(max_size=4_000),
    cuts=st.lists(st.integers(0, 4_000), max_size=20),
    encoding=st.sampled_from(["s16le", "f32le", "mulaw"]),
    sample_rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    channels=st.integers(1, 3),
)
def test_any_cutting_gives_the_same_samples(
    data: bytes, cuts: list[int], encoding: Encoding, sample_rate: int, channels: int
) -> None:
    whole = decode(data, [], encoding, sample_rate, channels)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(decode(data, cuts, encoding, sample_rate, channels), whole)


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 16_000, 44_100, 48_000, 192_000])
def test_no_audio_is_lost_at_the_end(sample_rate: int) -> None:
    data = (tone(1.0, sample_rate) * 2**15).astype("<i2").tobytes()
    decoder = PcmDecoder("s16le", sample_rate)
    n_samples = len(decoder.feed(data)) + len(decoder.flush())
    assert n_samples == SAMPLE_RATE
    assert len(decoder.flush()) == 0
    assert len(decoder.feed(data)) + len(decoder.flush()) == SAMPLE_RATE  # a new stream


def test_a_file_and_its_bytes_give_the_same_samples() -> None:
    pcm, sample_rate = soundfile.read(SAMPLES / "jfk.wav", dtype="int16")
    np.testing.assert_array_equal(
        decode(pcm.tobytes(), [1, 3_001], "s16le", sample_rate, 1), read_audio(SAMPLES / "jfk.wav")
    )


def test_mulaw_is_that_of_g711() -> None:
    raw = io.BytesIO(bytes(range(256)))
    expected, _ = soundfile.read(raw, format="RAW", subtype="ULAW", samplerate=8_000, channels=1)
    np.testing.assert_allclose(MULAW, expected, atol=1e-7)


def test_bad_samples_of_a_stream_become_silence_and_are_counted() -> None:
    audio = np.array([0.5, np.nan, -np.inf, 1e30, -0.5], "<f4")
    decoder = PcmDecoder("f32le")
    np.testing.assert_array_equal(decoder.feed(audio.tobytes()), np.array([0.5, 0, 0, 0, -0.5], np.float32))
    assert decoder.bad_samples == 3


@pytest.mark.parametrize(
    ("encoding", "sample_rate", "channels", "reason"),
    [
        ("opus", 16_000, 1, "unknown encoding 'opus': send one of s16le, f32le, mulaw"),
        ("s16le", 4_000, 1, "4000 Hz is out of range"),
        ("s16le", 384_000, 1, "384000 Hz is out of range"),
        ("s16le", 16_000, 0, "0 channels are out of range"),
        ("s16le", 16_000, 9, "9 channels are out of range"),
    ],
)
def test_impossible_streams_are_refused(
    encoding: Encoding, sample_rate: int, channels: int, reason: str
) -> None:
    with pytest.raises(AudioError, match=reason):
        PcmDecoder(encoding, sample_rate, channels)
