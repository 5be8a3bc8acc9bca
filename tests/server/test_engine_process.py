"""An engine in a process of its own is used as one of this process, and survives its death."""

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from server.engine_process import EngineProcess
from server.worker import Worker
from streaming.engine import Engine
from streaming.events import Closed, Event, Fault, Final, Partial
from streaming.recognizer import WhisperRecognizer
from streaming.session import Full, Session, SessionOptions
from tests.conftest import random_whisper

PATIENCE_S = 60
RATE = 16_000
OPTIONS = SessionOptions(chunk_ms=400, final_pass="none")


class Nothing(ValueError):
    """That is not what it is called where it is caught."""


def build(slots: int) -> Engine:
    torch.set_num_threads(1)
    return Engine(WhisperRecognizer(random_whisper(0)), random_whisper(0), "tiny", slots)


def build_nothing() -> Engine:
    raise Nothing("there are no weights: fetch some")


def die() -> None:
    os._exit(3)


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    engine = EngineProcess(partial(build, 2), 2)
    yield engine
    engine.close()


@pytest.fixture
def worker(process: EngineProcess) -> Iterator[Worker]:
    worker = Worker(process)
    worker.start()
    yield worker
    worker.stop()


def converse(session: Session, samples: np.ndarray, news: "queue.Queue[None]") -> list[Event]:
    """Everything that a session says of `samples`, which come at once."""
    session.receive_samples(samples)
    session.finish()
    events: list[Event] = []
    while not session.closed:
        news.get(timeout=PATIENCE_S)
        events += session.events()
    return events


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_says_what_an_engine_here_says(process: EngineProcess, worker: Worker, jfk: Tensor) -> None:
    news: queue.Queue[None] = queue.Queue()
    there = converse(process.open(OPTIONS, notify=lambda: news.put(None)), jfk.numpy(), news)
    engine = build(1)
    session = engine.open(OPTIONS)
    session.receive_samples(jfk.numpy())
    session.finish()
    while engine.step():
        pass
    here = session.events()
    engine.close()
    assert there == here and isinstance(here[-1], Closed)
    assert any(isinstance(event, Partial) for event in here) and any(
        isinstance(event, Final) for event in here
    )
    until(lambda: process.free_slots == 2)


def test_an_end_that_the_client_asks_for_is_heard_there(
    process: EngineProcess, worker: Worker, jfk: Tensor
) -> None:
    session = process.open(OPTIONS)
    session.receive_samples(jfk.numpy()[: 3 * RATE + 77])
    session.finalize()
    events: list[Event] = []
    until(lambda: bool(events.extend(session.events()) or any(isinstance(e, Final) for e in events)))
    assert session.decoded_ms >= 3_000 and not session.closed and process.free_slots == 1
    session.receive_samples(jfk.numpy()[3 * RATE : 5 * RATE])
    session.finish()
    until(lambda: bool(events.extend(session.events()) or session.closed))
    assert events[-1].audio_ms == (5 * RATE + 77) * 1000 // RATE
    finals = [event.utterance for event in events if isinstance(event, Final)]
    assert finals == list(range(len(finals))) and len(finals) >= 2


def test_slots_are_its_own_and_come_back(process: EngineProcess, worker: Worker) -> None:
    sessions = [process.open(OPTIONS), process.open(OPTIONS)]
    with pytest.raises(Full, match="all 2 slots"):
        process.open(OPTIONS)
    assert process.sessions == sessions
    for session in sessions:
        session.abort()
    until(lambda: process.free_slots == 2)
    for _ in range(20):  # the other side always has room for who is let in here
        session = process.open(OPTIONS)
        session.receive_samples(np.zeros(RATE, np.float32))
        session.abort()
        until(lambda: process.free_slots == 2)
    news: queue.Queue[None] = queue.Queue()
    session = process.open(OPTIONS, notify=lambda: news.put(None))
    assert converse(session, np.zeros(RATE, np.float32), news) == [Closed(1_000, 0, 0)]


def test_what_cannot_be_asked_is_refused_here(process: EngineProcess) -> None:
    with pytest.raises(ValueError, match="tiny cannot rescore"):
        process.open(replace(OPTIONS, final_pass="rescore", beam=4))


def test_audio_waits_here_while_it_computes(process: EngineProcess) -> None:
    """What was sent ahead is little, so that who sends too fast is told to wait."""
    session = process.open(OPTIONS)
    session.receive_samples(np.zeros(20 * RATE, np.float32))
    assert session.backlog_ms == 20_000
    process.step()
    assert session.backlog_ms == 20_000 - 2 * OPTIONS.chunk_ms
    worker = Worker(process)
    worker.start()
    until(lambda: session.decoded_ms >= 19_600)
    assert session.backlog_ms < OPTIONS.chunk_ms
    worker.stop()


def test_its_batches_are_counted(process: EngineProcess) -> None:
    steps: queue.Queue[tuple[float, int]] = queue.Queue()
    worker = Worker(process, stepped=lambda *step: steps.put(step))
    worker.start()
    process.open(OPTIONS).receive_samples(np.zeros(RATE, np.float32))
    seconds, rows = steps.get(timeout=PATIENCE_S)
    assert seconds > 0 and rows == 1
    worker.stop()


def test_a_process_that_dies_is_replaced(process: EngineProcess, jfk: Tensor, caplog) -> None:
    warmed: list[int] = []

    def warm_up(engine: EngineProcess) -> None:
        warmed.append(engine.pid)
        engine.warm_up(jfk.numpy()[RATE:], replace(OPTIONS, chunk_ms=200))

    worker = Worker(process, warm_up=warm_up)
    worker.start()
    news: queue.Queue[None] = queue.Queue()
    session = process.open(OPTIONS, notify=lambda: news.put(None))
    session.receive_samples(jfk.numpy()[:RATE])
    until(lambda: session.decoded_ms > 0)
    os.kill(process.pid, signal.SIGKILL)
    events: list[Event] = []
    while not session.closed:
        news.get(timeout=PATIENCE_S)
        events += session.events()
    assert isinstance(events[-1], Fault) and events[-1].fatal and events[-1].code == "internal"
    until(lambda: process.free_slots == 2)
    assert worker.alive and "exit code -9" in caplog.text and "has been replaced" in caplog.text
    assert warmed != [process.pid]
    session = process.open(OPTIONS, notify=lambda: news.put(None))
    assert isinstance(converse(session, jfk.numpy()[:RATE], news)[-1], Closed)
    worker.stop()


def test_signals_for_the_whole_group_do_not_end_it(
    process: EngineProcess, worker: Worker, jfk: Tensor
) -> None:
    """Ctrl-C, or systemd, ends all processes of a service; the server lets its clients finish first."""
    news: queue.Queue[None] = queue.Queue()
    session = process.open(OPTIONS, notify=lambda: news.put(None))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    assert isinstance(converse(session, jfk.numpy()[:RATE], news)[-1], Closed)


def test_why_there_is_no_engine_is_told_here() -> None:
    with pytest.raises(Nothing, match="fetch some"):
        EngineProcess(build_nothing, 1)
    with pytest.raises(RuntimeError, match="exit code 3"):
        EngineProcess(partial(build, 1), 1, prepare=die)


def test_its_end_ends_the_process() -> None:
    engine = EngineProcess(partial(build, 1), 1)
    pid = engine.pid
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine.free_slots == 0
