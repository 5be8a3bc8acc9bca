"""An engine in a process of its own is used as one of this process, and survives its death."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from server import engine_process
from server import worker as worker_module
from server.engine_process import EngineDied, EngineProcess
from server.worker import Worker
from streaming.events import Closed, Event, Fault, Final, Finalized, Partial
from streaming.session import Full, Session, SessionOptions
from tests.server.engines import (
    Nothing,
    build,
    build_nothing,
    build_picky,
    build_unportable,
    die,
)

PATIENCE_S = 60
RATE = 16_000
OPTIONS = SessionOptions(chunk_ms=400, final_pass="none")


def lives(pid: int) -> bool:
    """Also of one that nobody has asked how it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def open_files() -> int:
    """Of this process; 0 where the system does not tell."""
    return len(list(Path("/proc/self/fd").glob("*")))


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineProcess]:
    process = EngineProcess(partial(build_picky, 2), 2)
    yield process
    process.close()


@pytest.fixture
def process(shared: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProcess]:
    """It outlives its workers, and is left as it was found: no session is open, and nothing is still to be told."""
    for name in ("stepped", "second_pass_ended"):
        monkeypatch.setattr(shared, name, getattr(shared, name))
    monkeypatch.setattr(shared, "close", lambda: None)
    yield shared
    for session in shared.sessions:
        session.abort()
    shared.step()
    hear_out(shared)
    assert shared.free_slots == 2 and shared.restarts == 0


@pytest.fixture
def mortal() -> Iterator[EngineProcess]:
    """For a test that leaves it as it was not."""
    process = EngineProcess(partial(build, 2), 2)
    yield process
    process.close()


@pytest.fixture
def work(process: EngineProcess) -> Iterator[Callable[..., Worker]]:
    """Starts a worker."""
    with ExitStack() as stack:

        def start(**how: Any) -> Worker:
            worker = Worker(process, **how)
            stack.callback(worker.stop)
            worker.start()
            return worker

        yield start


@pytest.fixture
def worker(work: Callable[..., Worker]) -> Worker:
    return work()


def hear_out(process: EngineProcess) -> None:
    """It tells things in order: all that it had to tell has come when one more session is over."""
    last = process.open(OPTIONS)
    last.finish()
    until(lambda: process.step() or bool(last.events() and last.closed))


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


def test_it_says_what_an_engine_here_says(mortal: EngineProcess, jfk: Tensor) -> None:
    process, worker = mortal, Worker(mortal)
    worker.start()
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
    process.hurry()  # no time for second passes any more
    asked = replace(OPTIONS, final_pass="full")
    hasty = converse(process.open(asked, notify=lambda: news.put(None)), jfk.numpy(), news)
    finals = [[event.text for event in events if isinstance(event, Final)] for events in (here, hasty)]
    assert finals[0] == finals[1]
    worker.stop()


def test_an_end_that_the_client_asks_for_is_heard_there(
    process: EngineProcess, worker: Worker, jfk: Tensor
) -> None:
    session = process.open(OPTIONS)
    session.receive_samples(jfk.numpy()[: 3 * RATE + 77])
    session.finalize()
    events: list[Event] = []
    until(lambda: bool(events.extend(session.events()) or any(isinstance(e, Finalized) for e in events)))
    assert events[-1] == Finalized((3 * RATE + 77) * 1000 // RATE) and isinstance(events[-2], Final)
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


def test_audio_waits_here_while_it_computes(process: EngineProcess, work: Callable[..., Worker]) -> None:
    """What was sent ahead is little, so that who sends too fast is told to wait."""
    session = process.open(OPTIONS)
    session.receive_samples(np.zeros(20 * RATE, np.float32))
    assert session.backlog_ms == 20_000
    process.step()
    assert session.backlog_ms == 20_000 - 2 * OPTIONS.chunk_ms
    work()
    until(lambda: session.decoded_ms >= 19_600)
    assert session.backlog_ms < OPTIONS.chunk_ms


def test_its_batches_are_counted(process: EngineProcess, work: Callable[..., Worker]) -> None:
    steps: queue.Queue[tuple[float, int]] = queue.Queue()
    work(stepped=lambda *step: steps.put(step))
    process.open(OPTIONS).receive_samples(np.zeros(RATE, np.float32))
    seconds, rows = steps.get(timeout=PATIENCE_S)
    assert seconds > 0 and rows == 1


def test_a_process_that_dies_is_replaced(mortal: EngineProcess, jfk: Tensor, caplog) -> None:
    process = mortal
    warmed: list[int] = []
    files, threads = open_files(), threading.active_count()

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
    assert warmed != [process.pid] and not lives(warmed[0]) and process.restarts == 1
    assert (open_files(), threading.active_count() - 1) == (files, threads)  # the worker's is new
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
    with pytest.raises(Nothing, match="fetch some") as error:
        EngineProcess(build_nothing, 1)
    assert "in build_nothing" in error.value.__notes__[0]  # where it was raised
    with pytest.raises(RuntimeError, match="Unportable: the disk is gone"):
        EngineProcess(build_unportable, 1)
    with pytest.raises(EngineDied, match="exit code 3"):
        EngineProcess(partial(build, 1), 1, prepare=die)


def test_a_session_that_cannot_be_opened_there_costs_no_other(
    process: EngineProcess, worker: Worker, jfk: Tensor
) -> None:
    news: queue.Queue[None] = queue.Queue()
    good = process.open(OPTIONS, notify=lambda: news.put(None))
    bad = process.open(replace(OPTIONS, prompt="worse"))
    until(lambda: process.free_slots == 1)
    (fault,) = bad.events()
    assert isinstance(fault, Fault) and fault.fatal and "KeyError" in fault.message
    assert isinstance(converse(good, jfk.numpy()[:RATE], news)[-1], Closed)
    assert process.restarts == 0


def test_every_second_pass_is_counted(
    process: EngineProcess, work: Callable[..., Worker], jfk: Tensor
) -> None:
    outcomes: Counter[str] = Counter()
    worker = work(second_pass_ended=lambda outcome: outcomes.update([outcome]))
    news: queue.Queue[None] = queue.Queue()
    options = replace(OPTIONS, final_pass="full")
    events = converse(process.open(options, notify=lambda: news.put(None)), jfk.numpy(), news)
    assert outcomes.total() == sum(isinstance(event, Final) for event in events) > 0
    converse(process.open(OPTIONS, notify=lambda: news.put(None)), jfk.numpy(), news)
    worker.stop()
    hear_out(process)
    assert outcomes.total() == sum(isinstance(event, Final) for event in events)


def test_one_that_hangs_makes_nobody_wait_and_is_killed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pipe is full, and the worker waits for room in it."""
    monkeypatch.setattr(engine_process, "ENDING_S", 0.2)
    monkeypatch.setattr(worker_module, "LAST_STEP_S", 0.2)
    process = EngineProcess(partial(build, 8), 8)
    pid, options = process.pid, replace(OPTIONS, chunk_ms=1000)
    worker = Worker(process)
    worker.start()
    os.kill(pid, signal.SIGSTOP)
    sessions = [process.open(options) for _ in range(7)]
    for session in sessions:
        session.receive_samples(np.zeros(3 * RATE, np.float32))
    until(lambda: sessions[0].backlog_ms == 1000)
    process.open(options).abort()
    worker.stop()
    assert not lives(pid)
    until(lambda: not worker.alive)  # it waited for room in the pipe, and goes on to its end
    process.close()  # twice is once


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent_whatever_it_does(number: signal.Signals) -> None:
    modules = (
        "from server.engine_process import EngineProcess; from tests.server.engines import build_for_ever"
    )
    command = [sys.executable, "-c", f"{modules}; EngineProcess(build_for_ever, 1)"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait()
        until(lambda: not lives(pid))


def test_its_end_ends_the_process() -> None:
    engine = EngineProcess(partial(build, 1), 1)
    pid = engine.pid
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine.free_slots == 0
