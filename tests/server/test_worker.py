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


def test_the_model_is_warm_before_anyone_is_served(caplog):
    engine, order = FakeEngine(), []
    stepped = queue.Queue()
    worker = Worker(
        engine, stepped=lambda *_: stepped.put(order.append("step")), warm_up=lambda _: order.append("warm")
    )
    engine.open(SessionOptions()).receive(speech(1, 2, 3))
    worker.start()
    assert order[0] == "warm"
    stepped.get(timeout=PATIENCE_S)
    assert order == ["warm", "step"]
    worker.stop()


def test_a_model_that_cannot_be_warmed_up_is_tried_all_the_same(caplog):
    engine, told = FakeEngine(), queue.Queue()

    def break_down(_) -> None:
        engine.open(SessionOptions())
        raise RuntimeError("cold")

    worker = Worker(engine, warm_up=break_down)
    worker.start()
    assert "cold" in caplog.text
    assert engine.free_slots == engine.slots
    engine.open(SessionOptions(), notify=lambda: told.put("heard")).receive(speech(1, 2, 3))
    assert told.get(timeout=PATIENCE_S) == "heard"
    worker.stop()
