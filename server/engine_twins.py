"""What the process of an engine runs: the twins of the sessions that are in the server (server/engine_process.py)."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from server.engine_messages import (
    Abort,
    Built,
    Close,
    Hear,
    Hurry,
    News,
    Open,
    Report,
    Request,
    SecondPass,
    Stepped,
    Warm,
    WarmUp,
)
from streaming.events import Fault
from streaming.session import Session

if TYPE_CHECKING:
    from streaming.engine import Engine

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # which go to all processes of a terminal, or of a service

log = logging.getLogger("asr_stream.engine")


def serve(connection: Connection, build: "Callable[[], Engine]", prepare: Callable[[], None] | None) -> None:
    """What the process runs, until its parent asks for its end, or is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        if prepare is not None:
            prepare()
        engine = build()
    except Exception as error:
        connection.send(Built(error=_portable(error)))
        return
    connection.send(Built(engine.model_name, engine.final_passes))
    Twins(engine, connection).run()


def _end_with_parent() -> None:
    """At once when it is gone, even if killed, whatever is under way: nobody would hear of it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """As it can be sent, with its traceback for who is shown one."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind: what an exception holds, and how it is made anew, is its own affair
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Twins:
    """The sessions of the engine's process. One thread does it all but second passes: none waits for another."""

    def __init__(self, engine: "Engine", connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._sending = threading.Lock()
        self._sessions: dict[int, Session] = {}
        self._thread = threading.get_ident()
        self._changed: list[int] = []  # sessions that have something to say after a step
        engine.stepped = lambda seconds, rows: self._send(Stepped(seconds, rows))
        engine.second_pass_ended = lambda outcome: self._send(SecondPass(outcome))

    def run(self) -> None:
        """Steps the engine and does what the parent asks for, until that is to end."""
        busy = False
        try:
            while True:
                while self._connection.poll(0 if busy else None):
                    request: Request = self._connection.recv()
                    if isinstance(request, Close):
                        return
                    self._carry_out(request)
                    busy = True
                busy = self._step()
        except (EOFError, OSError):
            pass  # the parent is gone
        finally:
            self._engine.close()

    def _step(self) -> bool:
        try:
            busy = self._engine.step()
        except Exception as error:
            log.exception("the model failed: every session of it is ended")
            self._engine.fail(error)
            busy = True
        changed, self._changed = self._changed, []
        if changed:
            self._tell(changed)
        return busy

    def _carry_out(self, request: Request) -> None:
        match request:
            case Open():
                self._open(request)
            case Hear() if session := self._sessions.get(request.number):
                session.receive_samples(request.samples)
                if request.finalize:
                    session.finalize()
                if request.finish:
                    session.finish()
            case Abort() if session := self._sessions.pop(request.number, None):
                session.abort()
            case WarmUp():
                self._warm_up(request)
            case Hurry():
                self._engine.hurry()

    def _open(self, request: Open) -> None:
        while not self._engine.free_slots:  # the parent knows of one that a step sets free
            self._step()
        notify = partial(self._note, request.number)
        try:
            self._sessions[request.number] = self._engine.open(request.options, notify=notify)
        except Exception as error:  # which must not cost the others their conversations
            log.exception("the model could not open a session")
            message = f"the recogniser failed ({type(error).__name__}); open a new session"
            fault = Fault("internal", message, fatal=True)
            self._send([News(request.number, [fault], request.options.start_ms)])

    def _warm_up(self, request: WarmUp) -> None:
        try:
            self._engine.warm_up(request.speech, request.options)
        except Exception as error:
            log.exception("the model could not be warmed up")
            self._engine.fail(error)
        self._send(Warm())

    def _note(self, number: int) -> None:
        """A session has something to say; called in `step`, or in the thread of second passes."""
        if threading.get_ident() == self._thread:
            self._changed.append(number)
        else:
            self._tell([number])

    def _tell(self, numbers: list[int]) -> None:
        with self._sending:  # events leave in the order in which they were taken
            sessions = [(number, self._sessions[number]) for number in numbers if number in self._sessions]
            news = [News(number, session.events(), session.decoded_ms) for number, session in sessions]
            for number, session in sessions:
                if session.closed:
                    self._sessions.pop(number, None)
            self._put(news)

    def _send(self, report: Report) -> None:
        with self._sending:
            self._put(report)

    def _put(self, report: Report) -> None:
        with suppress(OSError):  # the parent is gone: the main thread sees it, too
            self._connection.send(report)
