"""Fakes: an engine that reads its words off the loudness of the samples, so that audio decides what is said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streaming.events import Closed, Endpoint, Event, Final, Partial, Word

SAMPLE_RATE = 16_000
WORDS = ("", "one", "small", "step", "for", "man")
MAN = WORDS.index("man")


class ScriptedSession:
    """Puts out one word per chunk, promises all but the newest; its second pass turns "man" into "a man"."""

    waits = None

    def __init__(self, final_pass: str, fatal: Event | None) -> None:
        self._final_pass, self._fatal = final_pass, fatal
        self._heard: list[int] = []
        self._n_samples = 0
        self._inbox: list[np.ndarray | None] = []  # None: no more audio
        self._outbox: list[Event] = []

    def receive_samples(self, samples: np.ndarray) -> None:
        self._inbox.append(samples)

    def finish(self) -> None:
        self._inbox.append(None)

    def events(self) -> list[Event]:
        ready, self._outbox = self._outbox, []
        return ready

    def step(self) -> bool:
        if not self._inbox:
            return False
        samples = self._inbox.pop(0)
        if self._fatal is not None:
            self._outbox.append(self._fatal)
        elif samples is None:
            self._close()
        else:
            self._n_samples += len(samples)
            heard = round(float(samples.mean()) * 10)
            if heard:
                self._heard.append(heard)
                self._show(self._heard, n_stable=len(self._heard) - 1)
        return True

    @property
    def _audio_ms(self) -> int:
        return self._n_samples * 1_000 // SAMPLE_RATE

    def _show(self, heard: list[int], n_stable: int) -> None:
        stable = len(" ".join(WORDS[i] for i in heard[:n_stable]))
        self._outbox.append(Partial(0, " ".join(WORDS[i] for i in heard), stable, self._audio_ms))

    def _close(self) -> None:
        if self._heard:
            self._show(self._heard, n_stable=len(self._heard))
            texts = [WORDS[i] for i in self._heard]
            if self._final_pass == "full":
                texts = [text for i in self._heard for text in (["a", "man"] if i == MAN else [WORDS[i]])]
            words = tuple(Word(text, 100 * i, 100 * (i + 1), 0.9) for i, text in enumerate(texts))
            self._outbox.append(Endpoint(0, self._audio_ms))
            self._outbox.append(Final(0, " ".join(texts), words, 0, self._audio_ms, self._audio_ms))
        self._outbox.append(Closed(self._audio_ms, bool(self._heard), len(self._heard)))


class ScriptedEngine:
    """`opened` counts its sessions, `fails_at` makes one of them fail."""

    model_name = "scripted"

    def __init__(self, *, fails_at: int | None = None, fault: Event | None = None) -> None:
        self.opened = 0
        self._sessions: list[ScriptedSession] = []
        self._fails_at, self._fault = fails_at, fault

    def open(self, options) -> ScriptedSession:
        self.opened += 1
        fatal = self._fault if self.opened == self._fails_at else None
        self._sessions.append(ScriptedSession(options.final_pass, fatal))
        return self._sessions[-1]

    def step(self) -> bool:
        return any(session.step() for session in self._sessions)


@pytest.fixture
def engine() -> Callable[..., ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture
def record() -> Callable[[Path, list[int]], Path]:
    """Writes a recording that says WORDS[i] for 300 ms, for each i of the list."""

    def write(path: Path, said: list[int]) -> Path:
        samples = np.repeat(np.array(said, dtype=np.float32) / 10, 300 * SAMPLE_RATE // 1_000)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE)
        return path

    return write
