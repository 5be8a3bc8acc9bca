"""Several engines behind one door: room, threads, and words that do not depend on who else is there."""

import pytest
from torch import Tensor

from asr.checkpoint import Whisper
from server.worker import Worker
from streaming.engine import Engine
from streaming.events import Closed, Event, Final
from streaming.pool import EnginePool
from streaming.recognizer import WhisperRecognizer
from streaming.session import Full, SessionOptions
from tests.server.fakes import FakeEngine, speech

PATIENCE_S = 60


def test_who_comes_goes_where_there_is_most_room() -> None:
    engines = [FakeEngine(slots=1), FakeEngine(slots=3)]
    pool = EnginePool(engines)
    assert (pool.slots, pool.free_slots) == (4, 4)
    for _ in range(4):
        pool.open(SessionOptions())
    assert [engine.free_slots for engine in engines] == [0, 0]
    assert len(pool.sessions) == 4
    with pytest.raises(Full, match="all 4 slots"):
        pool.open(SessionOptions())


def test_a_broken_engine_ends_its_own_sessions_alone() -> None:
    engines = [FakeEngine(slots=1), FakeEngine(slots=1)]
    pool = EnginePool(engines)
    worker = Worker(pool)
    worker.start()
    sessions = [engine.open(SessionOptions()) for engine in engines]
    engines[0].break_next = True
    for session in sessions:
        session.receive(speech(1, 2, 3))
    assert worker.drain(PATIENCE_S)
    assert worker.alive
    worker.stop()
    told = [[type(event).__name__ for event in session.events()] for session in sessions]
    assert told == [["Fault"], ["Partial"]]
    assert all(engine.closed for engine in engines)


def test_engines_share_their_weights_and_nothing_else(tiny_en: Whisper, jfk: Tensor) -> None:
    recognizer = WhisperRecognizer(tiny_en)
    options = SessionOptions(chunk_ms=600, final_pass="none")
    samples = jfk.numpy()

    def heard(n_engines: int, n_sessions: int) -> list[list[Event]]:
        pool = EnginePool([Engine(recognizer, tiny_en, "tiny", n_sessions) for _ in range(n_engines)])
        worker = Worker(pool)
        worker.start()
        sessions = [pool.open(options) for _ in range(n_sessions)]
        for session in sessions:
            session.receive_samples(samples)
            session.finish()
        assert worker.drain(PATIENCE_S)
        worker.stop()
        return [session.events() for session in sessions]

    def finals(events: list[Event]) -> list[str]:
        assert isinstance(events[-1], Closed)
        return [event.text for event in events if isinstance(event, Final)]

    (alone,) = heard(1, 1)
    assert finals(alone)
    assert [finals(events) for events in heard(2, 4)] == [finals(alone)] * 4
