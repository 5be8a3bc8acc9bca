"""Ends of utterances that a client asked for: which of them have been carried out.

The session says nothing where nothing was said, so that must be seen from how far it has decoded. Only for an end
does it decode a piece shorter than a chunk: once it is past such a piece, the end has been carried out. A client
may also ask just where a chunk is complete; then a millisecond of silence goes before the end, to make a piece of
its own, and is taken back out of all times.
"""

from bisect import bisect_left
from collections import deque

from asr.audio import SAMPLE_RATE, milliseconds, samples_in
from server.dialects import Audio, Finalize, Step
from streaming.events import Closed, Endpoint, Event, Final, Partial
from streaming.session import SessionOptions

SAMPLE_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1}
SILENCE = {"s16le": b"\0", "f32le": b"\0", "mulaw": b"\xff"}  # a byte of it


class Marks:
    """Counts the audio of one session, and the ends that are still to be carried out."""

    def __init__(self, options: SessionOptions) -> None:
        self._options = options
        self._frame_bytes = SAMPLE_BYTES[options.encoding] * options.channels
        self._origin = 0  # samples at 16 kHz up to the newest mark
        self._n_bytes = 0  # since then
        self._waiting: deque[int] = deque()  # in ms of the session
        self._silences: list[int] = []  # where a millisecond was put in, likewise
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

    def client_ms(self, session_ms: int) -> int:
        """A time of the session on the client's clock, which knows nothing of silences put in."""
        return session_ms - bisect_left(self._silences, session_ms)

    def receive(self, data: bytes) -> Audio:
        """Audio on its way to the session."""
        self._n_bytes += len(data)
        return Audio(data)

    def ask(self) -> list[Step]:
        """Ends the utterance here: the steps that do it."""
        steps: list[Step] = []
        new = self._samples - self._origin
        if new and new % samples_in(self._options.chunk_ms) < samples_in(1):
            self._silences.append(self.received_ms)
            n_frames = -(-self._options.sample_rate // 1000)
            steps.append(self.receive(SILENCE[self._options.encoding] * n_frames * self._frame_bytes))
        self._waiting.append(self.received_ms)
        self._origin, self._n_bytes = self._samples, self._n_bytes % self._frame_bytes
        return [*steps, Finalize()]

    def heard(self, event: Event) -> int:
        """How many of the ends are carried out, now that the session says this."""
        match event:
            case Partial():
                self._speaking = bool(event.text)  # words may be taken back, and then no final follows
                return self._pass(event.audio_ms - 1)  # words of the next utterance
            case Endpoint():
                self._speaking = True
            case Final():
                self._speaking = False
                return self._pass(event.audio_ms)
            case Closed():
                return self._pass(self.received_ms)
        return 0

    def progress(self, audio_ms: int) -> int:
        """How many of the ends are carried out, now that audio is decoded up to here."""
        return 0 if self._speaking else self._pass(audio_ms)

    @property
    def _samples(self) -> int:
        """At 16 kHz, as the session's resampler rounds them where it is flushed."""
        n_frames = self._n_bytes // self._frame_bytes
        return self._origin + int(n_frames * SAMPLE_RATE / self._options.sample_rate + 0.5)

    def _pass(self, audio_ms: int) -> int:
        n = 0
        while self._waiting and self._waiting[0] <= audio_ms:
            self._waiting.popleft()
            n += 1
        return n
