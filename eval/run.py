"""Simulated real time: audio arrives chunk by chunk, compute is measured at its side, nothing sleeps.

One pass over the audio gives both texts: what streamed, and what the second pass made of it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from asr.audio import SAMPLE_RATE, Samples
from asr.transducer.schedule import Waits
from eval.trace import Step, Trace
from streaming.events import Closed, Event, Fault
from streaming.session import SessionOptions


class EvaluationError(RuntimeError):
    """A run that cannot go on; the message is one line."""


class Conversation(Protocol):
    """What is needed of a session (streaming/session.py)."""

    @property
    def waits(self) -> Waits | None: ...
    def receive_samples(self, samples: Samples) -> None: ...
    def finish(self) -> None: ...
    def events(self) -> list[Event]: ...


class Recogniser(Protocol):
    """What is needed of an engine (streaming/engine.py) that does its second pass inside `step`."""

    model_name: str

    def open(self, options: SessionOptions) -> Conversation: ...
    def step(self) -> bool: ...


def recognise(
    engine: Recogniser,
    utterance_id: str,
    samples: Samples,
    options: SessionOptions,
    *,
    realtime: bool = False,
) -> Trace:
    """Streams `samples` (n,) float32 of 16 kHz through a session of its own; the last step is the flush.

    Args:
        realtime: wait for each chunk as long as it takes to speak it.

    Raises:
        EvaluationError: the engine failed, or left the session open.
    """
    hearing = _Hearing(engine.open(options), utterance_id, samples, options)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    while not hearing.ended:
        hearing.feed()
        if realtime:
            time.sleep(max(0.0, began_s + hearing.arrived_ms / 1_000 - time.perf_counter()))
        started_s = time.perf_counter()
        _work(engine)
        # Rounded as in its file: a run that is resumed reports the same.
        hearing.note(round(time.perf_counter() - started_s, 6))
    return hearing.trace(round(time.process_time() - began_cpu_s, 6))


def recognise_together(
    engine: Recogniser, clips: Sequence[tuple[str, Samples]], options: SessionOptions
) -> list[Trace]:
    """Like `recognise` for each clip (id, samples), in sessions side by side; compute is not measured.

    Raises:
        EvaluationError: the engine failed, or left a session open.
    """
    hearings = [_Hearing(engine.open(options), *clip, options) for clip in clips]
    while listening := [hearing for hearing in hearings if not hearing.ended]:
        for hearing in listening:
            hearing.feed()
        _work(engine)
        for hearing in listening:
            hearing.note(math.nan)
    return [hearing.trace() for hearing in hearings]


@dataclass
class _Hearing:
    """One clip on its way through a session."""

    session: Conversation
    utterance_id: str
    samples: Samples
    options: SessionOptions
    ended: bool = False  # the flush has been answered
    _n_fed: int = 0
    _steps: list[Step] = field(default_factory=list)

    @property
    def arrived_ms(self) -> float:
        return self._n_fed * 1_000 / SAMPLE_RATE

    def feed(self) -> None:
        """The next chunk, or the end of the audio."""
        n_chunk = self.options.chunk_ms * SAMPLE_RATE // 1_000
        chunk = self.samples[self._n_fed : self._n_fed + n_chunk]
        self._n_fed += len(chunk)
        if len(chunk):
            self.session.receive_samples(chunk)
        else:
            self.session.finish()
            self.ended = True

    def note(self, compute_s: float) -> None:
        """The answer to what was fed."""
        events = tuple(self.session.events())
        for event in events:
            if isinstance(event, Fault) and event.fatal:
                raise EvaluationError(f"the engine failed: {event.message} ({event.code})")
        self._steps.append(Step(self.arrived_ms, compute_s, events))

    def trace(self, cpu_s: float = math.nan) -> Trace:
        if not any(isinstance(event, Closed) for event in self._steps[-1].events):
            raise EvaluationError(f"{self.utterance_id}: the session did not close after its audio ended")
        audio_s, steps = len(self.samples) / SAMPLE_RATE, tuple(self._steps)
        return Trace(self.utterance_id, audio_s, steps, cpu_s, self.session.waits)


def _work(engine: Recogniser) -> None:
    while engine.step():
        pass
