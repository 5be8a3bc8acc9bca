"""The model's thread, with a model that may break."""

import queue

from server.worker import Worker
from streaming.events import Fault
from streaming.session import SessionOptions
from tests.server.fakes import FakeEngine, speech

PATIENCE_S = 5


def test_sessions_are_stepped_and_counted():
    steps: queue.Queue[int] = queue.Queue()
    engine = FakeEngine()
    worker = Worker(engine, stepped=lambda seconds, rows: steps.put(rows))
    sessions = [engine.open(SessionOptions()) for _ in range(2)]
    for session in sessions:
        session.receive(speech(1, 2, 3))
    worker.start()
    assert steps.get(timeout=PATIENCE_S) == 2
    assert worker.drain(PATIENCE_S)
    assert [len(session.events()) for session in sessions] == [1, 1]
    worker.stop()
    assert engine.closed
    assert not worker.alive


def test_drain_gives_up_in_time():
    engine = FakeEngine()
    worker = Worker(engine)  # never started
    engine.open(SessionOptions()).receive(speech(1, 2, 3))
    assert not worker.drain(0.02)
    worker.stop()


def test_a_broken_model_ends_its_sessions_and_serves_the_next(caplog):
    engine, told = FakeEngine(slots=1), queue.Queue()
    worker = Worker(engine)
    worker.start()
    engine.break_next = True
    session = engine.open(SessionOptions(), notify=lambda: told.put(session.events()))
    session.receive(speech(1, 2, 3))
    (fault,) = told.get(timeout=PATIENCE_S)
    assert isinstance(fault, Fault)
    assert fault.fatal
    assert "Traceback" in caplog.text
    session = engine.open(SessionOptions(), notify=lambda: told.put(session.events()))
    session.receive(speech(1, 2, 3))
    (partial,) = told.get(timeout=PATIENCE_S)
    assert partial.text == "w1 w2 w3"
    worker.stop()
