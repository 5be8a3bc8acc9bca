"""Ends of utterances that a client asked for: which of them have been carried out."""

from collections import deque

from asr.audio import SAMPLE_RATE, milliseconds
from server.dialects import Audio, Finalize
from streaming.events import Closed, Endpoint, Event, Final, Finalized, Partial
from streaming.session import SessionOptions

SAMPLE_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1}


class Marks:
    """Counts the audio of one session, and the ends that are still to be carried out."""

    def __init__(self, options: SessionOptions) -> None:
        self._rate = options.sample_rate
        self._frame_bytes = SAMPLE_BYTES[options.encoding] * options.channels
        self._origin = 0  # samples at 16 kHz up to the newest mark
        self._n_bytes = 0  # since then
        self._waiting: deque[int] = deque()  # in ms of the session
        self._speaking = False  # words were told of that are not final yet

    @property
    def speaking(self) -> bool:
        """Whether words were told of that are not final yet."""
        return self._speaking

    @property
    def received_ms(self) -> int:
        """Audio received, on the session's clock."""
        return milliseconds(self._samples)

    @property
    def fresh(self) -> bool:
        """Whether audio has come since the newest mark."""
        return self._n_bytes >= self._frame_bytes

    def receive(self, data: bytes) -> Audio:
        """Audio on its way to the session."""
        self._n_bytes += len(data)
        return Audio(data)

    def ask(self) -> Finalize:
        """Ends the utterance here: the step that does it."""
        self._waiting.append(self.received_ms)
        self._origin, self._n_bytes = self._samples, self._n_bytes % self._frame_bytes
        return Finalize()

    def heard(self, event: Event) -> int:
        """How many of the ends are carried out, now that the session says this.

        Finalized says so of all of them; a final that ends just there says so sooner, and is the answer.
        """
        match event:
            case Partial():
                self._speaking = bool(event.text)  # words may be taken back, and then no final follows
            case Endpoint():
                self._speaking = True
            case Final():
                self._speaking = False
                return self._pass(event.audio_ms)
            case Finalized():
                return self._pass(event.audio_ms)
            case Closed():
                return self._pass(self.received_ms)
        return 0

    @property
    def _samples(self) -> int:
        """At 16 kHz, as the session's resampler rounds them where it is flushed."""
        n_frames = self._n_bytes // self._frame_bytes
        return self._origin + int(n_frames * SAMPLE_RATE / self._rate + 0.5)

    def _pass(self, audio_ms: int) -> int:
        n = 0
        while self._waiting and self._waiting[0] <= audio_ms:
            self._waiting.popleft()
            n += 1
        return n
