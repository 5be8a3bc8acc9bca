"""What people do without a causal model, behind the engine's own face, so that one code measures them all.

Both use the unmodified model: `offline` hears the whole clip and then speaks once; `local-agreement` re-encodes a
growing buffer with every chunk and commits what the two newest hypotheses agree on (LocalAgreement-2: Liu et al.,
"Low-latency sequence-to-sequence speech recognition and translation by partial hypothesis selection", 2020; the
buffer as in Macháček et al., "Turning Whisper into real-time transcription system", 2023, without its prompt).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from asr.audio import SAMPLE_RATE, Samples
from asr.offline import WINDOW_SECONDS, OfflineDecoder
from asr.timing import TimedWord
from streaming.events import Closed, Endpoint, Event, Final, Partial, Word
from streaming.session import SessionOptions
from streaming.utterance import quietest

CUT_SEARCH_S = 10.0  # how far before the end of a full window a pause is looked for
TRIM_S = 15.0  # a longer buffer is trimmed where a committed sentence ends,
TRIM_HARD_S = 25.0  # and at last behind any committed word
OVERLAP_S, OVERLAP_WORDS = 1.0, 5  # how near to the committed words a repetition is looked for, and how long
SLACK_S = 0.1  # times of the same word differ so much between hypotheses


class BaselineSession(ABC):
    """A conversation about one utterance; see streaming/session.py for what the methods mean."""

    waits = None

    def __init__(self, decoder: OfflineDecoder, options: SessionOptions) -> None:
        self.closed = False
        self._decoder = decoder
        self._audio = np.zeros(0, dtype=np.float32)
        self._n_chunk = options.chunk_ms * SAMPLE_RATE // 1_000
        self._n_heard = self._n_received = 0
        self._finishing = False
        self._text, self._stable = "", 0
        self._outbox: list[Event] = []

    def receive_samples(self, samples: Samples) -> None:
        self._audio = np.concatenate([self._audio, samples])
        self._n_received += len(samples)

    def finish(self) -> None:
        self._finishing = True

    def events(self) -> list[Event]:
        ready, self._outbox = self._outbox, []
        return ready

    def step(self) -> bool:
        """Hears all audio that has arrived, if that is a chunk or the end; False where there was nothing to do."""
        new = self._n_received - self._n_heard
        if self.closed or (new < self._n_chunk and not self._finishing):
            return False
        if new:
            self._n_heard = self._n_received
            self._hear()
        if self._finishing:
            self._close(self._all_words())
        return True

    @abstractmethod
    def _hear(self) -> None:
        """New audio has been appended to the buffer."""

    @abstractmethod
    def _all_words(self) -> list[TimedWord]:
        """Every word of the utterance, which has ended."""

    @property
    def _audio_ms(self) -> int:
        return self._n_heard * 1_000 // SAMPLE_RATE

    def _show(self, committed: Sequence[TimedWord], tentative: Sequence[TimedWord]) -> None:
        text, stable = text_of([*committed, *tentative]), len(text_of(committed))
        if (text, stable) != (self._text, self._stable):
            self._text, self._stable = text, stable
            self._outbox.append(Partial(0, text, stable, self._audio_ms))

    def _close(self, words: Sequence[TimedWord]) -> None:
        self._show(words, ())
        if words:
            timed = tuple(
                Word(word.text, round(word.start * 1_000), round(word.end * 1_000), word.confidence)
                for word in words
            )
            self._outbox.append(Endpoint(0, self._audio_ms))
            self._outbox.append(
                Final(0, text_of(words), timed, timed[0].start_ms, timed[-1].end_ms, self._audio_ms)
            )
        self._outbox.append(Closed(self._audio_ms, bool(words), len(words)))
        self.closed = True


class OfflineSession(BaselineSession):
    """Waits for the end."""

    def _hear(self) -> None:
        pass

    def _all_words(self) -> list[TimedWord]:
        return transcribe_whole(self._decoder, self._audio)


class LocalAgreementSession(BaselineSession):
    """Re-encodes its buffer with every chunk. Times of words are seconds of the stream."""

    def __init__(self, decoder: OfflineDecoder, options: SessionOptions) -> None:
        super().__init__(decoder, options)
        self._begin_s = 0.0  # where the buffer begins
        self._committed: list[TimedWord] = []
        self._tentative: list[TimedWord] = []

    def _hear(self) -> None:
        heard = _shifted(self._decoder.transcribe(torch.from_numpy(self._audio)), self._begin_s)
        new = self._unsaid(heard)
        agreed = _common_prefix(new, self._tentative)
        self._committed += new[:agreed]
        self._tentative = new[agreed:]
        self._trim()
        self._show(self._committed, self._tentative)

    def _all_words(self) -> list[TimedWord]:
        return [*self._committed, *self._tentative]

    def _unsaid(self, words: list[TimedWord]) -> list[TimedWord]:
        """Without what has been committed: by its time, and by repeating the last committed words."""
        if not self._committed:
            return words
        end = self._committed[-1].end
        words = [word for word in words if word.start > end - SLACK_S]
        if words and abs(words[0].start - end) < OVERLAP_S:
            for n in range(1, min(OVERLAP_WORDS, len(words), len(self._committed)) + 1):
                if text_of(self._committed[-n:]) == text_of(words[:n]):
                    return words[n:]
        return words

    def _trim(self) -> None:
        length_s = len(self._audio) / SAMPLE_RATE
        if length_s <= TRIM_S:
            return
        inside = [word for word in self._committed if word.end > self._begin_s]
        ends = [word.end for word in inside if word.text.endswith((".", "?", "!"))]
        if not ends and length_s > TRIM_HARD_S:
            if not inside and self._tentative:  # nothing was agreed on for long: go on all the same
                inside, self._tentative = self._tentative, []
                self._committed += inside
            ends = [inside[-1].end if inside else self._begin_s + length_s - TRIM_S]
        if ends:
            self._audio = self._audio[round((ends[-1] - self._begin_s) * SAMPLE_RATE) :]
            self._begin_s = ends[-1]


class BaselineEngine:
    """Opens conversations of one kind (streaming/engine.py for what the methods mean)."""

    def __init__(self, name: str, decoder: OfflineDecoder, kind: type[BaselineSession]) -> None:
        self.model_name = name
        self._decoder, self._kind = decoder, kind
        self._sessions: list[BaselineSession] = []

    def open(self, options: SessionOptions) -> BaselineSession:
        session = self._kind(self._decoder, options)
        self._sessions.append(session)
        return session

    def step(self) -> bool:
        worked = [session.step() for session in self._sessions]
        self._sessions = [session for session in self._sessions if not session.closed]
        return any(worked)


KINDS: dict[str, type[BaselineSession]] = {
    "offline": OfflineSession,
    "local-agreement": LocalAgreementSession,
}


def transcribe_whole(decoder: OfflineDecoder, samples: Samples) -> list[TimedWord]:
    """(n,) samples of any length -> words with times in seconds of the clip."""
    return [
        word
        for start_s, piece in pieces(samples)
        for word in _shifted(decoder.transcribe(torch.from_numpy(piece)), start_s)
    ]


def pieces(samples: Samples) -> Iterator[tuple[float, Samples]]:
    """(start s, samples) of pieces of at most 30 s, cut in the quietest late place."""
    window, search, start = WINDOW_SECONDS * SAMPLE_RATE, int(CUT_SEARCH_S * SAMPLE_RATE), 0
    while len(samples) - start > window:
        cut = start + quietest(samples[start : start + window], window - search, window)
        yield start / SAMPLE_RATE, samples[start:cut]
        start = cut
    if start < len(samples):
        yield start / SAMPLE_RATE, samples[start:]


def text_of(words: Sequence[TimedWord]) -> str:
    return " ".join(word.text for word in words)


def _shifted(words: Sequence[TimedWord], by_s: float) -> list[TimedWord]:
    return [replace(word, start=word.start + by_s, end=word.end + by_s) for word in words]


def _common_prefix(a: Sequence[TimedWord], b: Sequence[TimedWord]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n].text == b[n].text:
        n += 1
    return n
