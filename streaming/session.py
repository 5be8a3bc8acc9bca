"""One conversation: bytes in, events out. No socket, no clock, and no waiting for the model."""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asr.audio import Encoding, PcmDecoder, milliseconds, samples_in
from asr.limits import (
    DEFAULT_BOOST,
    LONGEST_DELAY_S,
    MAX_BEAM,
    MAX_BOOST,
    MAX_PROMPT_CHARS,
    SAMPLES_PER_FRAME,
    checked_hotwords,
)
from streaming.events import Bookmark, Closed, Event, Fault, Final

if TYPE_CHECKING:  # a server's own process, which has sessions and no models, goes without torch
    from asr.transducer.schedule import Waits

CHUNK_MS = (100, 1000)  # what the shipped adapters were trained for
DELAY_MS = (0, round(LONGEST_DELAY_S * 1000))
DEFAULT_DELAY_MS = 160
PAUSE_MS = (100, 5000)
DEFAULT_PAUSE_MS = 700
FINAL_PASSES = ("full", "rescore", "none")
OUTCOMES = ("heard", "skipped", "failed")  # of a second pass; failed: it heard nothing, or could not
BEGINNING = Bookmark.at(0)


class Full(RuntimeError):
    """No slot is free; try again later."""


def no_such_pass(model: str, final_pass: str, offered: Sequence[str]) -> str:
    """One line for who asks for a second pass that a model does not offer."""
    return f"{model} cannot {final_pass} utterances: final_pass must be one of {', '.join(offered)}"


@dataclass(frozen=True)
class SessionOptions:
    """What a client may choose; ValueError with one clear line for what it may not."""

    chunk_ms: int = 300
    encoding: Encoding = "s16le"
    sample_rate: int = 16_000
    channels: int = 1
    final_pass: str = "full"  # full | rescore (of some transducers) | none
    resume: Bookmark = BEGINNING  # where to go on, after a lost connection
    delay_ms: int = DEFAULT_DELAY_MS  # how long after its end a word is due: more waiting, fewer guesses
    pause_ms: int = DEFAULT_PAUSE_MS  # silence that ends an utterance: shorter, and finals come sooner
    beam: int = 1  # hypotheses; 1 is greedy search
    prompt: str = ""  # what was said or written before, for the second pass
    hotwords: tuple[str, ...] = ()  # words and phrases that are likely to be said
    hotword_boost: float = DEFAULT_BOOST  # nats per token

    def __post_init__(self) -> None:
        low, high = CHUNK_MS
        if not low <= self.chunk_ms <= high or self.chunk_ms % 20:
            raise ValueError(f"chunk_ms must be {low} to {high} in steps of 20, not {self.chunk_ms}")
        low, high = DELAY_MS
        if not low <= self.delay_ms <= high or self.delay_ms % 20:
            raise ValueError(f"delay_ms must be {low} to {high} in steps of 20, not {self.delay_ms}")
        low, high = PAUSE_MS
        if not low <= self.pause_ms <= high:
            raise ValueError(f"pause_ms must be {low} to {high}, not {self.pause_ms}")
        if self.final_pass not in FINAL_PASSES:
            raise ValueError(f"final_pass must be one of {', '.join(FINAL_PASSES)}, not {self.final_pass!r}")
        if not 1 <= self.beam <= MAX_BEAM:
            raise ValueError(f"beam must be 1 to {MAX_BEAM}, not {self.beam}")
        if self.final_pass == "rescore" and self.beam == 1:
            raise ValueError(
                f"final_pass rescore chooses among hypotheses: ask for a beam of 2 to {MAX_BEAM}"
            )
        if len(self.prompt) > MAX_PROMPT_CHARS:
            raise ValueError(
                f"prompt may have {MAX_PROMPT_CHARS} characters, not {len(self.prompt)}: shorten it"
            )
        if not 0 <= self.hotword_boost <= MAX_BOOST:
            raise ValueError(f"hotword_boost must be 0 to {MAX_BOOST:g} nats, not {self.hotword_boost:g}")
        object.__setattr__(self, "hotwords", checked_hotwords(self.hotwords))
        PcmDecoder(self.encoding, self.sample_rate, self.channels)  # says itself what it cannot decode

    @property
    def start_ms(self) -> int:
        """Where on the timeline the session's audio begins."""
        return self.resume.from_ms

    @property
    def chunk_frames(self) -> int:
        """Encoder frames per chunk."""
        return samples_in(self.chunk_ms) // SAMPLES_PER_FRAME


@dataclass
class Promise:
    """A place in the order of events: filled later by the second pass, or by Closed when its turn comes."""

    events: list[Event] | None = None
    closes: bool = False


class Session:
    """A client's side of a stream. Every method may be called from any thread, and none waits for the model."""

    def __init__(
        self, options: SessionOptions, wake: Callable[[], None], notify: Callable[[], None] | None
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.options = options
        self.notify = notify
        self.closed = False
        self.decoded_ms = options.start_ms
        self.waits: Waits | None = None  # of all windows that ended; None of models without a schedule
        self._wake = wake
        self._lock = threading.Lock()
        self._pcm = PcmDecoder(options.encoding, options.sample_rate, options.channels)
        self._pieces: deque[np.ndarray] = deque()
        self._buffered = 0  # samples received, not yet taken
        self._received = 0
        self._marks: deque[int] = (
            deque()
        )  # sample positions at which the client asked for an end of utterance
        self._finishing = False
        self._aborted = False
        self._outbox: deque[Event | Promise] = deque()
        self._utterances = 0
        self._words = 0

    # -- the client's side

    def receive(self, data: bytes) -> None:
        """Audio in `options.encoding`, any number of bytes."""
        with self._lock:
            self._store(self._pcm.feed(data))
        self._wake()

    def receive_samples(self, samples: np.ndarray) -> None:
        """Audio as float32 mono samples at 16 kHz."""
        with self._lock:
            self._store(np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0))
        self._wake()

    def finalize(self) -> None:
        """Ends the current utterance with the audio received so far; more may follow, after Finalized."""
        with self._lock:
            self._store(self._pcm.drain())
            if not self._marks or self._marks[-1] != self._received:  # asked twice is asked once
                self._marks.append(self._received)
        self._wake()

    def finish(self) -> None:
        """No more audio: the rest is decoded, then come the finals and Closed."""
        with self._lock:
            if not self._finishing:
                self._store(self._pcm.flush())
                self._finishing = True
        self._wake()

    def abort(self) -> None:
        """The client is gone: nothing more is decoded and the slot becomes free."""
        with self._lock:
            self._aborted = self.closed = True
            self._outbox.clear()
        self._wake()

    def events(self) -> list[Event]:
        """Takes the events that are ready, in order; none overtakes a final that is still being decoded."""
        ready: list[Event] = []
        with self._lock:
            while self._outbox and not self._aborted:
                head = self._outbox[0]
                if not isinstance(head, Promise):
                    ready.append(head)
                elif head.closes:
                    self._count(ready)
                    ready.append(Closed(self._origin_ms(self._received), self._utterances, self._words))
                elif head.events is not None:
                    ready += head.events
                else:
                    break
                self._outbox.popleft()
            if not (ready and isinstance(ready[-1], Closed)):
                self._count(ready)
            self.closed |= any(isinstance(e, Closed) or (isinstance(e, Fault) and e.fatal) for e in ready)
        return ready

    @property
    def backlog_ms(self) -> int:
        """Audio received and not yet decoded."""
        return milliseconds(self._buffered)

    @property
    def bad_samples(self) -> int:
        """NaN, infinite and absurdly loud samples received, which were taken as silence."""
        return self._pcm.bad_samples

    # -- the engine's side

    @property
    def aborted(self) -> bool:
        return self._aborted

    @property
    def ready(self) -> bool:
        """Whether `take` would return something."""
        with self._lock:
            enough = self._buffered >= samples_in(self.options.chunk_ms)
            return not self._aborted and (enough or bool(self._marks) or self._finishing)

    def take(self, n: int) -> tuple[np.ndarray, bool] | None:
        """The next chunk of `n` samples; or what is left before an end that was asked for; or None.

        Returns:
            The samples, and whether the utterance ends with them.
        """
        with self._lock:
            to_mark = self._marks[0] - (self._received - self._buffered) if self._marks else None
            if to_mark is not None and to_mark <= n:
                self._marks.popleft()
                return self._pull(to_mark), True
            if self._buffered >= n:
                return self._pull(n), False
            return (self._pull(self._buffered), True) if self._finishing else None

    @property
    def drained(self) -> bool:
        """Whether the client has finished and all of its audio has been taken."""
        return self._finishing and not self._buffered and not self._marks

    def decoded(self, position: int) -> None:
        """All audio up to `position` (samples) has been heard by the model."""
        self.decoded_ms = self._origin_ms(position)

    def waited(self, waits: "Waits") -> None:
        """A window ended, whose frames have waited so long."""
        self.waits = waits if self.waits is None else self.waits + waits

    def put(self, *events: Event) -> None:
        with self._lock:
            if not self._aborted:
                self._outbox.extend(events)

    def promise(self) -> Promise:
        """Keeps a place in the order of events."""
        place = Promise()
        with self._lock:
            self._outbox.append(place)
        return place

    def fulfil(self, place: Promise, *events: Event) -> None:
        with self._lock:
            place.events = list(events)
        self.tell()

    def close(self) -> None:
        """Closed follows what is still to come; its totals are counted when its turn comes."""
        with self._lock:
            self._outbox.append(Promise(closes=True))

    def tell(self) -> None:
        """Wakes the client: events or progress are there."""
        if self.notify is not None:
            self.notify()

    def _store(self, samples: np.ndarray) -> None:
        if len(samples) and not self._finishing:
            self._pieces.append(samples)
            self._buffered += len(samples)
            self._received += len(samples)

    def _pull(self, n: int) -> np.ndarray:
        taken, missing = [], n
        while missing:
            piece = self._pieces.popleft()
            if len(piece) > missing:
                self._pieces.appendleft(piece[missing:])
                piece = piece[:missing]
            taken.append(piece)
            missing -= len(piece)
        self._buffered -= n
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)

    def _count(self, events: list[Event]) -> None:
        finals = [event for event in events if isinstance(event, Final)]
        self._utterances += len(finals)
        self._words += sum(len(final.words) for final in finals)

    def _origin_ms(self, samples: int) -> int:
        return self.options.start_ms + milliseconds(samples)
