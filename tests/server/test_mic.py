"""The microphone with a PortAudio that is played by the test."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from server.mic import Microphone, MicrophoneError, check_input, input_devices, talk
from server.terminal import FinalLines
from streaming.events import Closed, Final

SPOKEN = np.random.default_rng(0).uniform(-1, 1, 14_400).astype(np.float32)


class PortAudioError(Exception):
    pass


class FakeStream:
    """Gives SPOKEN to its callback from a thread of its own, in one reused buffer, as PortAudio does."""

    def __init__(self, sound: "FakeSound", blocksize: int, callback, finished_callback, **options) -> None:
        self.sound, self.options = sound, options
        self.blocksize, self.callback, self.finished_callback = blocksize, callback, finished_callback
        self.thread = threading.Thread(target=self.record)

    def start(self) -> None:
        self.thread.start()

    def record(self) -> None:
        buffer = np.empty((self.blocksize, 1), np.float32)
        for start in range(0, len(SPOKEN), self.blocksize):
            buffer[:, 0] = SPOKEN[start : start + self.blocksize]
            self.callback(buffer, self.blocksize, None, SimpleNamespace(input_overflow=start == 0))
        self.sound.recorded.set()
        if self.sound.unplugged:
            self.finished_callback()

    def stop(self, ignore_errors: bool) -> None:
        self.thread.join()
        self.finished_callback()

    def close(self, ignore_errors: bool) -> None:
        self.thread.join()


class FakeSound:
    PortAudioError = PortAudioError

    def __init__(self, rates=(16_000, 48_000), unplugged: bool = False, devices: bool = True) -> None:
        self.rates, self.unplugged = rates, unplugged
        self.devices = (
            [
                {"name": "speaker", "max_input_channels": 0, "default_samplerate": 48_000.0},
                {"name": "desk microphone", "max_input_channels": 2, "default_samplerate": float(rates[-1])},
            ]
            if devices
            else []
        )
        self.default = SimpleNamespace(device=(1, 0))
        self.recorded = threading.Event()

    def query_devices(self, device=None, kind=None):
        if kind is None:
            return self.devices
        if isinstance(device, str) and device not in "desk microphone":
            raise ValueError(f"No input device\nmatching {device!r}")
        if not self.devices or device == 99:
            raise PortAudioError("Error querying device -1 [PaErrorCode -9996]")
        return self.devices[1]

    def check_input_settings(self, device, channels, dtype, samplerate):
        if samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate")

    def InputStream(self, **options) -> FakeStream:  # noqa: N802
        self.stream = FakeStream(self, **options)
        return self.stream


@pytest.fixture
def sound(monkeypatch):
    def install(**options) -> FakeSound:
        fake = FakeSound(**options)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return install


async def record(sound: FakeSound) -> tuple[Microphone, np.ndarray]:
    with Microphone() as microphone:
        await asyncio.to_thread(sound.recorded.wait)
        microphone.stop()
        return microphone, np.concatenate([block async for block in microphone.audio()])


def test_nothing_is_lost_and_overflows_are_counted(sound):
    microphone, heard = asyncio.run(record(sound()))
    np.testing.assert_array_equal(heard, SPOKEN)
    assert microphone.overflows == 1


def test_a_device_with_another_rate_is_resampled(sound):
    fake = sound(rates=(48_000,))
    _, heard = asyncio.run(record(fake))
    assert fake.stream.options["samplerate"] == 48_000
    assert len(heard) == pytest.approx(len(SPOKEN) / 3, abs=2)


def test_a_microphone_that_goes_away_says_so(sound):
    async def main() -> None:
        with Microphone() as microphone:
            async for _ in microphone.audio():
                pass

    sound(unplugged=True)
    with pytest.raises(MicrophoneError, match="went away"):
        asyncio.run(main())


def test_inputs_are_listed_and_outputs_are_not(sound):
    sound()
    assert input_devices() == ["*   1  desk microphone  (2 channels, 48000 Hz)"]


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({}, "kitchen", "No input device matching 'kitchen': see `asr-stream mic --list-devices`"),
        ({}, 99, "cannot be opened .Error querying device -1.: close what uses it"),
        ({"devices": False}, None, "no microphone was found: plug one in"),
    ],
)
def test_what_cannot_record_is_said_in_a_line(sound, options, device, message):
    sound(**options)
    with pytest.raises(MicrophoneError, match=message) as caught:
        check_input(device)
    assert "\n" not in str(caught.value)


def test_no_portaudio_says_what_to_install(tmp_path: Path, monkeypatch):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(MicrophoneError, match="apt install libportaudio2"):
        input_devices()


def test_no_sounddevice_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MicrophoneError, match="pip install sounddevice"):
        input_devices()


class Echo:
    """A conversation that ends with one final, which tells how much it heard."""

    def __init__(self) -> None:
        self.heard = 0
        self.closed = asyncio.Event()

    async def send(self, audio) -> None:
        self.heard += len(audio)

    async def close(self) -> None:
        self.closed.set()

    async def __aiter__(self):
        await self.closed.wait()
        yield Final(0, f"{self.heard} samples", (), 0, 0, 0)
        yield Closed(0, 1, 2)


def test_ctrl_c_ends_the_recording_and_the_last_words_still_come(sound, capsys):
    async def main() -> None:
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        await talk(Echo(), None)

    sound()
    asyncio.run(main())
    said = capsys.readouterr()
    assert said.out == "14400 samples\n"
    assert "dropped audio 1 times" in said.err


def test_another_program_gets_the_finals_only(capsys):
    FinalLines().show(Closed(0, 0, 0))
    FinalLines().show(Final(0, "a b", (), 0, 0, 0))
    assert capsys.readouterr().out == "a b\n"
