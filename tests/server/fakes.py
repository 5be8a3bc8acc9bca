"""A model that hears numbers: 100 ms of audio is one sample value; n > 0 is the word "w<n>", 0 is a pause.

So a test can say which words a stream holds, and see every one come back exactly once, on the timeline.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from streaming.events import Bookmark, Closed, Endpoint, Event, Fault, Final, Finalized, Partial, Word
from streaming.session import Full, SessionOptions

BLOCK_MS = 100
BLOCK_BYTES = 3200  # 16 kHz s16le


def speech(*words: int) -> bytes:
    """Audio that says these words, 100 ms each; 0 is a pause."""
    return np.repeat(np.array(words, dtype="<i2"), BLOCK_BYTES // 2).tobytes()


def text(*words: int) -> str:
    """What the model makes of them."""
    return " ".join(f"w{word}" for word in words)


class FakeSession:
    def __init__(
        self, engine: "FakeEngine", options: SessionOptions, notify: Callable[[], None] | None
    ) -> None:
        self.id = "fake"
        self.bad_samples = 0
        self.options = options
        self.closed = False
        self.notify = notify
        self.decoded_ms = options.start_ms
        self._engine = engine
        self._audio = bytearray()
        self._controls: list[tuple[int, str]] = []  # (at this ms, what)
        self._received_ms = options.start_ms
        self._events: list[Event] = []
        self._words: list[Word] = []
        self._utterance = self._finals = self._said = 0

    @property
    def backlog_ms(self) -> int:
        return self._received_ms - self.decoded_ms

    def receive(self, data: bytes) -> None:
        with self._engine.changed:
            self._audio += data
            self._received_ms += len(data) * BLOCK_MS // BLOCK_BYTES
            self._engine.changed.notify()

    def finalize(self) -> None:
        self._control("finalize")

    def finish(self) -> None:
        self._control("finish")

    def abort(self) -> None:
        with self._engine.changed:
            self.closed = True
            self._engine.release(self)

    def fail(self, fault: Fault) -> None:
        with self._engine.changed:
            self.closed = True
            self._events.append(fault)
            self._engine.release(self)
        if self.notify is not None:
            self.notify()

    def events(self) -> list[Event]:
        with self._engine.changed:
            events, self._events = self._events, []
            return events

    def _control(self, what: str) -> None:
        with self._engine.changed:
            self._controls.append((self._received_ms, what))
            self._engine.changed.notify()

    @property
    def ready(self) -> bool:
        return bool(self._controls) or self.backlog_ms >= self.options.chunk_ms

    def step(self) -> None:
        """One chunk, or what is left before a control."""
        until_ms = self._controls[0][0] if self._controls else self._received_ms
        before = self._said, len(self._words)
        for _ in range(min(self.options.chunk_ms, until_ms - self.decoded_ms) // BLOCK_MS):
            self._hear(int.from_bytes(self._audio[:2], "little"))
            del self._audio[:BLOCK_BYTES]
        if self._words and (self._said, len(self._words)) != before:
            line = self._line()
            self._events.append(Partial(self._utterance, line, 0, self.decoded_ms, tuple(self._words)))
        while self._controls and self.decoded_ms + BLOCK_MS > self._controls[0][0]:
            self._end_utterance()
            at_ms, what = self._controls.pop(0)
            if what == "finalize":
                self._events.append(Finalized(at_ms))
            else:
                self._events.append(Closed(self.decoded_ms, self._finals, self._said))
                self.closed = True
                self._engine.release(self)

    def _hear(self, number: int) -> None:
        start_ms, self.decoded_ms = self.decoded_ms, self.decoded_ms + BLOCK_MS
        if start_ms < self.options.resume.audio_ms:
            return  # it leads what follows, and says nothing itself
        if number:
            self._words.append(Word(f"w{number}", start_ms, self.decoded_ms, 1.0))
        else:
            self._end_utterance(lead_ms=BLOCK_MS)

    def _end_utterance(self, lead_ms: int = 0) -> None:
        if not self._words:
            return
        words, self._words = tuple(self._words), []
        line = " ".join(word.text for word in words)
        start_ms, end_ms = words[0].start_ms, words[-1].end_ms
        self._events.append(Endpoint(self._utterance, self.decoded_ms))
        self._engine.second_pass_ended("heard")
        bookmark = Bookmark(self.decoded_ms, self.decoded_ms - lead_ms, self.decoded_ms)
        self._events.append(Final(self._utterance, line, words, start_ms, end_ms, self.decoded_ms, bookmark))
        self._utterance += 1
        self._finals += 1
        self._said += len(words)

    def _line(self) -> str:
        return " ".join(word.text for word in self._words)


class FakeEngine:
    """`step_s`: how long every step takes; `break_next`: the next step raises."""

    model_name = "fake.en"
    final_passes = ("full", "none")

    def __init__(self, slots: int = 4, step_s: float = 0.0) -> None:
        self.slots = slots
        self.step_s = step_s
        self.break_next = False
        self.closed = self.hurried = False
        self.warmed: list[SessionOptions] = []
        self.stepped: Callable[[float, int], None] = lambda seconds, rows: None
        self.second_pass_ended: Callable[[str], None] = lambda outcome: None
        self._sessions: set[FakeSession] = set()
        self.changed = threading.Condition(threading.RLock())

    @property
    def free_slots(self) -> int:
        return self.slots - len(self._sessions)

    @property
    def sessions(self) -> list[FakeSession]:
        with self.changed:
            return list(self._sessions)

    @property
    def idle(self) -> bool:
        return not any(session.ready for session in self.sessions)

    def warm_up(self, speech: np.ndarray, options: SessionOptions) -> None:
        assert len(speech)
        self.warmed.append(options)

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> FakeSession:
        with self.changed:
            if not self.free_slots:
                raise Full
            session = FakeSession(self, options, notify)
            self._sessions.add(session)
            return session

    def step(self) -> bool:
        with self.changed:
            ready = [session for session in self._sessions if session.ready]
        if not ready:
            return False
        time.sleep(self.step_s)
        if self.break_next:
            self.break_next = False
            raise RuntimeError("the fake model broke, as it was told to")
        with self.changed:
            for session in ready:
                if not session.closed:
                    session.step()
        for session in ready:
            if session.notify is not None:
                session.notify()
        self.stepped(self.step_s, len(ready))
        return True

    def fail(self, error: BaseException) -> None:
        for session in self.sessions:
            session.fail(Fault("internal", f"the fake model failed: {error}", fatal=True))

    def release(self, session: FakeSession) -> None:
        self._sessions.discard(session)

    def wait(self, timeout: float) -> None:
        with self.changed:
            if self.idle:
                self.changed.wait(timeout)

    def hurry(self) -> None:
        self.hurried = True

    def close(self) -> None:
        self.closed = True
