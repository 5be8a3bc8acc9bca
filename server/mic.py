"""The microphone, through PortAudio: nothing is lost between its thread and the conversation."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any, Self

from asr.audio import SAMPLE_RATE, Downmix, Samples
from server.local import Conversation, converse
from server.terminal import FinalLines, screen, tell

BLOCKS_PER_SECOND = 50  # of 20 ms
INPUTS = "see `asr-stream mic --list-devices`"


class MicrophoneError(RuntimeError):
    """No sound can be recorded; the message is one line and says what to do."""


def input_devices() -> list[str]:
    """A line per device that records; `*` marks the default."""
    sound = _sounddevice()
    with _explained(sound):
        default = sound.default.device[0]
        return [
            f"{'*' if number == default else ' '} {number:3}  {device['name']}"
            f"  ({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
            for number, device in enumerate(sound.query_devices())
            if device["max_input_channels"] > 0
        ]


def check_input(device: int | str | None) -> None:
    """Raises MicrophoneError where `device` cannot record: sooner than after a model was loaded."""
    sound = _sounddevice()
    with _explained(sound):
        _sample_rate(sound, device)


class Microphone:
    """Records while it is entered; `audio` ends after `stop`.

    Args:
        device: number or part of a name; None takes the default.

    Raises:
        MicrophoneError: on entering, where nothing can be recorded.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self.overflows = 0  # times that the sound system dropped audio before it was given to us
        self._sound = _sounddevice()
        with _explained(self._sound):
            rate = _sample_rate(self._sound, device)
            self._stream = self._sound.InputStream(
                samplerate=rate,
                blocksize=rate // BLOCKS_PER_SECOND,
                device=device,
                channels=1,
                dtype="float32",
                latency="low",
                callback=self._record,
                finished_callback=lambda: self._put(None),
            )
        self._downmix = Downmix(rate)
        self._blocks: asyncio.Queue[Samples | None] = asyncio.Queue()
        self._stopped = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        with _explained(self._sound):
            self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close(ignore_errors=True)

    def stop(self) -> None:
        """Ends the recording after what is already recorded."""
        self._stopped = True
        self._stream.stop(ignore_errors=True)

    async def audio(self) -> AsyncIterator[Samples]:
        """16 kHz mono, (n,) each. Raises MicrophoneError when the microphone goes away."""
        while (block := await self._blocks.get()) is not None:
            yield self._downmix.step(block)
        if not self._stopped:
            raise MicrophoneError("the microphone went away: plug it in again, and start again")
        yield self._downmix.flush()

    def _record(self, block: Samples, n_frames: int, time: Any, status: Any) -> None:
        """Called by PortAudio in a thread of its own; `block` (n, 1) is overwritten afterwards."""
        self.overflows += bool(status.input_overflow)
        self._put(block.copy())

    def _put(self, block: Samples | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._blocks.put_nowait, block)


async def talk(conversation: Conversation, device: int | str | None) -> None:
    """Shows what is said into the microphone, until Ctrl-C; then the last words are awaited."""
    loop = asyncio.get_running_loop()
    with Microphone(device) as microphone, _on_interrupt(loop, microphone.stop), screen(FinalLines) as shown:
        tell("listening; Ctrl-C ends it")
        await converse(conversation, microphone.audio(), shown.show)
    if microphone.overflows:
        tell(f"the sound system dropped audio {microphone.overflows} times: is the machine too busy?")


@contextmanager
def _on_interrupt(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Any:
    """The first Ctrl-C calls `stop`, the next one interrupts as usual."""

    def once() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    loop.add_signal_handler(signal.SIGINT, once)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _sample_rate(sound: Any, device: int | str | None) -> int:
    """Ours if the device can, else its own."""
    own = int(sound.query_devices(device, "input")["default_samplerate"])
    try:
        sound.check_input_settings(device, channels=1, dtype="float32", samplerate=SAMPLE_RATE)
    except sound.PortAudioError:
        return own
    return SAMPLE_RATE


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MicrophoneError(
            "the microphone needs the package sounddevice: install it with `pip install sounddevice`"
        ) from None
    except OSError:
        raise MicrophoneError(
            "PortAudio is not installed: get it, for example with `sudo apt install libportaudio2`"
        ) from None
    return sounddevice


@contextmanager
def _explained(sound: Any) -> Any:
    """PortAudio's errors, in words that help."""
    try:
        yield
    except ValueError as error:  # an unknown or ambiguous name
        raise MicrophoneError(f"{' '.join(str(error).split())}: {INPUTS}") from error
    except sound.PortAudioError as error:
        if not any(device["max_input_channels"] > 0 for device in sound.query_devices()):
            raise MicrophoneError(
                "no microphone was found: plug one in, and let this terminal use it (privacy settings, group audio)"
            ) from error
        reason = str(error).partition(" [")[0]
        raise MicrophoneError(
            f"the microphone cannot be opened ({reason}): close what uses it, or choose another, {INPUTS}"
        ) from error
