"""One stream cut into utterances: which audio the recogniser hears, and when a window opens, turns and ends.

All times are samples at 16 kHz on the stream's own timeline. Decisions are taken chunk by chunk on that timeline, so
they do not depend on how the audio was cut into packets. Nothing here knows the model.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from asr.audio import SAMPLE_RATE, samples_in
from streaming.endpoint import WINDOW, EndpointOptions

#: Near the longest window a shorter pause is good enough to end it.
HURRY_AT = 0.7
HURRY_PAUSE = 0.4
#: Where a window that must turn may be cut: this much audio before its end is searched, and kept at least.
TURN_SEARCH_S = 8.0
TURN_KEEP_S = 1.0
_QUIET_SPAN = SAMPLE_RATE // 10  # energy is compared over 100 ms


class Verdict(Enum):
    GO_ON = "go on"
    END = "end"  # the speaker paused
    TURN = "turn"  # the window is full while somebody speaks


@dataclass(frozen=True)
class Feed:
    """Audio for the recogniser; a fresh one opens a window."""

    samples: np.ndarray
    fresh: bool


@dataclass
class Utterances:
    """The state of one stream's segmentation.

    Args:
        chunk: samples per chunk.
        pause: samples of silence that end an utterance.
        options: thresholds.
    """

    chunk: int
    pause: int
    options: EndpointOptions
    now: int = 0  # audio seen
    start: int | None = None  # where the open window begins; None while nobody speaks
    last_speech: int = 0
    spoken: int = 0  # of the open window, in which somebody spoke
    _audio: list[np.ndarray] = field(default_factory=list)  # of the open window
    _lead: list[np.ndarray] = field(default_factory=list)  # the newest chunks while nobody speaks
    _open_run: bool = False  # the newest voice window was above the onset

    @property
    def open(self) -> bool:
        return self.start is not None

    @property
    def n_lead(self) -> int:
        """How much of the audio just heard would lead a window, in samples."""
        return sum(map(len, self._lead))

    @property
    def silence(self) -> int:
        """How long nobody has spoken in the open window."""
        return self.now - self.last_speech

    def hear(self, chunk: np.ndarray, speech: np.ndarray) -> tuple[Feed | None, Verdict]:
        """Takes in a chunk and its probabilities of speech, one per 32 ms, oldest first.

        Returns:
            What the recogniser must hear (None while nobody speaks), and what becomes of the window after it.
        """
        self.now += len(chunk)
        above = np.flatnonzero(speech >= self.options.offset)
        if not self.open:
            if not self._begins(speech):
                self._remember(chunk)
                return None, Verdict.GO_ON
            self._audio = [*self._lead, chunk]
            self.start = self.now - sum(map(len, self._audio))
            self._lead = []
            self.last_speech = self.now
            self.spoken = len(above) * WINDOW
            return Feed(np.concatenate(self._audio), fresh=True), Verdict.GO_ON
        self._audio.append(chunk)
        self.spoken += len(above) * WINDOW
        if len(above):
            self.last_speech = self.now - (len(speech) - 1 - int(above[-1])) * WINDOW
        return Feed(chunk, fresh=False), self._verdict()

    def recall(self, audio: np.ndarray, n_finished: int, n_lead: int) -> Feed | None:
        """Goes on behind an utterance that other segmentation has ended; before anything else is heard.

        Args:
            audio: the last `n_finished` samples of it, and all since then. Is there any, a full window was turned,
                and another is open.
            n_lead: how many of its samples, the last ones, are silence that may lead the next utterance; no more than
                `end` leaves lead it.

        Returns:
            What the recogniser must hear, if a window is open.
        """
        assert not self.now
        n_lead = min(n_lead, self._lead_chunks * self.chunk)
        self.now = len(audio)
        if self.now == n_finished:
            self._lead_with(audio[n_finished - n_lead :])
            return None
        self.start, self._audio, self.last_speech = n_finished, [audio[n_finished:]], self.now
        return Feed(self._audio[0], fresh=True)

    def audio(self) -> np.ndarray:
        """All samples of the open window."""
        return np.concatenate(self._audio)

    def end(self) -> None:
        """Closes the window; what is silent at its end leads the next one."""
        n_lead = min(self.silence // self.chunk, self._lead_chunks) * self.chunk
        window, self._audio, self.start, self._open_run = self.audio(), [], None, False
        self._lead_with(window[len(window) - n_lead :])

    def rewind(self, position: int) -> None:
        """Takes back the silence that was heard beyond the stream's audio; no window may be open."""
        assert not self.open
        self.now, self._lead, self._open_run = position, [], False

    def turn(self) -> tuple[np.ndarray, Feed]:
        """Cuts a full window at its quietest late place.

        Returns:
            The samples before the cut, and the feed that opens the window after it.
        """
        assert self.start is not None
        window = self.audio()
        cut = quietest(
            window,
            len(window) - int(TURN_SEARCH_S * SAMPLE_RATE),
            len(window) - int(TURN_KEEP_S * SAMPLE_RATE),
        )
        # Whole chunks after the cut, so that block ends and chunk ends stay together.
        cut = len(window) - (len(window) - cut) // self.chunk * self.chunk
        self.start += cut
        self._audio, self.spoken = [window[cut:]], 0
        self.last_speech = self.now  # somebody is speaking; nothing of before the cut is needed any more
        return window[:cut], Feed(window[cut:], fresh=True)

    def _begins(self, speech: np.ndarray) -> bool:
        """Two voice windows in a row above the onset; one may be a click."""
        flags = np.concatenate([[self._open_run], speech >= self.options.onset])
        self._open_run = bool(flags[-1])
        return bool((flags[1:] & flags[:-1]).any())

    def _lead_with(self, silence: np.ndarray) -> None:
        self._lead = [silence[i : i + self.chunk] for i in range(0, len(silence), self.chunk)]

    def _remember(self, chunk: np.ndarray) -> None:
        self._lead = [*self._lead, chunk][-self._lead_chunks :]

    @property
    def _lead_chunks(self) -> int:
        """At least one: an onset is noticed up to a chunk late."""
        return max(1, samples_in(self.options.lead_ms) // self.chunk)

    def _verdict(self) -> Verdict:
        assert self.start is not None
        longest = samples_in(self.options.longest_ms)
        age = self.now - self.start
        needed = self.pause * (HURRY_PAUSE if age > HURRY_AT * longest else 1)
        if self.silence >= needed:
            return Verdict.END
        return Verdict.TURN if age + self.chunk > longest else Verdict.GO_ON


def quietest(samples: np.ndarray, first: int, last: int) -> int:
    """The middle of the quietest 100 ms within samples[first:last]."""
    first = max(0, first)
    energy = np.concatenate([[0.0], np.cumsum(samples[first:last].astype(np.float64) ** 2)])
    span = min(_QUIET_SPAN, len(energy) - 1)
    return first + int(np.argmin(energy[span:] - energy[:-span])) + span // 2
