"""An engine in a process of its own, used as one of this process is.

Python runs one thread at a time. Two engines in a process, or an engine and many sockets, hold each other up at every
small operation: two threads of six streams each took 1.3 times as long as two processes, of two streams 1.7 times.

Sessions stay on this side, so that a client never waits for the other one. Each has a twin there, which hears what
was received here; what the twin tells is put into the session. A process that dies ends its sessions and is replaced.
"""

import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

import numpy as np

from asr.audio import Samples
from streaming.endpoint import samples_in
from streaming.events import Closed, Event, Fault
from streaming.session import Full, Session, SessionOptions, no_such_pass

if TYPE_CHECKING:
    from streaming.engine import Engine

AHEAD_CHUNKS = 2  # sent before they are decoded: one is computed while the next waits; the rest is backlog
ENDING_S = 5.0  # for a process to end that was asked to; then it is killed
RESTART_PAUSE_S = 1.0  # a model that dies at once must not keep a core busy
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # which go to all processes of a terminal, or of a service

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that it does not copy

log = logging.getLogger("asr_stream.engine")


class EngineDied(RuntimeError):
    """An engine's process has ended that was not asked to."""


@dataclass(frozen=True)
class Open:
    """What a process is told of a new session; `number` stands for it from then on."""

    number: int
    options: SessionOptions


@dataclass(frozen=True)
class Hear:
    """The next audio of a session, and what the client asked for behind it."""

    number: int
    samples: np.ndarray  # (n,) float32, 16 kHz
    finalize: bool
    finish: bool


@dataclass(frozen=True)
class Abort:
    """The client is gone."""

    number: int


@dataclass(frozen=True)
class WarmUp:
    """See `Engine.warm_up`."""

    speech: Samples
    options: SessionOptions


class Close:
    """Second passes under way are finished, then the process ends."""


@dataclass(frozen=True)
class Built:
    """The first that a process says: it serves, or why it does not."""

    model_name: str = ""
    final_passes: tuple[str, ...] = ()
    error: Exception | None = None


class Warm:
    """The model is warm, or as warm as it gets."""


@dataclass(frozen=True)
class News:
    """What a session says, and how far it has heard."""

    number: int
    events: list[Event]
    decoded_ms: int


@dataclass(frozen=True)
class Stepped:
    """See `Engine.stepped`."""

    seconds: float
    rows: int


@dataclass(frozen=True)
class SecondPass:
    """See `Engine.second_pass_ended`."""

    outcome: str


Request = Open | Hear | Abort | WarmUp | Close
Report = Built | Warm | Stepped | SecondPass | list[News]


# --- this side --------------------------------------------------------------------------------------


@dataclass
class _Stream:
    session: Session
    opened: bool = False  # there, too
    sent: int = 0  # samples
    finished: bool = False

    @property
    def ahead(self) -> int:
        """Samples that were sent and are not decoded."""
        return self.sent - samples_in(self.session.decoded_ms - self.session.options.start_ms)


class EngineProcess:
    """Starts a process that calls `build` and serves with what it returns. A worker steps it as any engine.

    Args:
        build: makes the engine. It and `prepare`, which is called before it, are sent to the process.
        slots: of that engine.

    Attributes:
        stepped, second_pass_ended: as of `Engine`; called in a thread that listens to the process.
        restarts: how often the process was replaced.

    Raises:
        EngineDied: the process ended before there was an engine.
        Exception: what `build` raised.
    """

    def __init__(
        self, build: "Callable[[], Engine]", slots: int, prepare: Callable[[], None] | None = None
    ) -> None:
        self.slots = slots
        self.stepped: Callable[[float, int], None] = lambda seconds, rows: None
        self.second_pass_ended: Callable[[str], None] = lambda outcome: None
        self.restarts = 0
        self._run = partial(_serve, build=build, prepare=prepare)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._lost = threading.Event()
        self._warm = threading.Event()
        self._closing = threading.Event()
        self._streams: dict[int, _Stream] = {}
        self._n_opened = 0
        self._warming: WarmUp | None = None
        self._replacing = False
        self._launch()

    def _launch(self) -> None:
        """Returns once the engine is built."""
        connection, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=self._run, args=(theirs,), name="engine", daemon=True)
        with _signals_held():
            process.start()
        theirs.close()
        atexit.register(self._abandon, process)
        try:
            built = connection.recv()
        except (EOFError, OSError):
            built = Built(error=EngineDied(_end_of(process)))
        if built.error is not None:
            self._bury(process)
            connection.close()
            raise built.error
        self._process, self._connection = process, connection
        self.model_name, self.final_passes = built.model_name, built.final_passes
        self._lost.clear()
        self._listener = threading.Thread(target=self._listen, name="engine", daemon=True)
        self._listener.start()

    # -- any thread

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None  # it was started
        return pid

    @property
    def free_slots(self) -> int:
        return 0 if self._lost.is_set() or self._replacing else self.slots - len(self._streams)

    @property
    def sessions(self) -> list[Session]:
        return [stream.session for _, stream in self._current()]

    @property
    def idle(self) -> bool:
        """Whether nothing is ready, under way, or still to be told."""
        return not any(
            stream.session.ready
            or stream.session.aborted
            or stream.finished
            or stream.ahead >= samples_in(stream.session.options.chunk_ms)
            for _, stream in self._current()
        )

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> Session:
        """A new session.

        Raises:
            Full: every slot is taken, or the process is being replaced.
            ValueError: the model cannot be asked for such a second pass.
        """
        if options.final_pass not in self.final_passes:
            raise ValueError(no_such_pass(self.model_name, options.final_pass, self.final_passes))
        session = Session(options, self._wake.set, notify)
        with self._lock:
            if self.free_slots <= 0:
                raise Full(f"all {self.slots} slots are taken; try again later")
            number, self._n_opened = self._n_opened, self._n_opened + 1
            self._streams[number] = _Stream(session)
        self._wake.set()
        return session

    def wait(self, timeout: float) -> None:
        """Blocks until there may be something to send, at most `timeout` seconds."""
        self._wake.wait(timeout)
        self._wake.clear()

    def close(self) -> None:
        """The process finishes second passes under way, and ends; one that hangs is killed."""
        self._closing.set()
        too_late = threading.Timer(ENDING_S, self._process.kill)  # it also frees who waits for a full pipe
        too_late.start()
        self._send(Close())
        self._process.join()
        too_late.cancel()
        self._kill()

    # -- the worker's thread

    def warm_up(self, speech: Samples, options: SessionOptions) -> None:
        """As `Engine.warm_up`; a process that replaces this one is warmed up likewise."""
        self._warming = WarmUp(speech, options)
        self._warm.clear()
        self._send(self._warming)
        self._warm.wait()

    def step(self) -> bool:
        """Sends what has been received; False, since nothing is computed here.

        Raises:
            EngineDied: `fail` replaces the process.
        """
        if self._lost.is_set() and not self._closing.is_set():
            raise EngineDied(_end_of(self._process))
        for number, stream in self._current():
            session = stream.session
            if not stream.opened:
                stream.opened = True
                self._send(Open(number, session.options))
            n = samples_in(session.options.chunk_ms)
            while not stream.finished and stream.ahead < AHEAD_CHUNKS * n and (piece := session.take(n)):
                samples, ending = piece
                stream.sent += len(samples)
                stream.finished = ending and session.drained
                self._send(Hear(number, samples, ending and not stream.finished, stream.finished))
            if session.aborted:
                self._forget(number)
                self._send(Abort(number))
        return False

    def fail(self, error: BaseException) -> None:
        """Ends every session after `step` has raised, and replaces the process."""
        message = f"the recogniser failed ({type(error).__name__}); open a new session"
        self._replacing = True
        for number, stream in self._current():
            stream.session.put(Fault("internal", message, fatal=True))
            self._forget(number)
            stream.session.tell()
        self._kill()
        if self._closing.wait(RESTART_PAUSE_S):
            return
        try:
            self._launch()
            self.restarts += 1
            if self._closing.is_set():
                self._kill()
                return
            if self._warming is not None:
                self.warm_up(self._warming.speech, self._warming.options)
            self._replacing = False
            log.warning("the engine's process has been replaced")
        except Exception:
            log.exception("the engine's process could not be replaced; it will be tried again")

    def _kill(self) -> None:
        """Ends the process, if it lives, and all that belongs to it."""
        self._bury(self._process)
        self._listener.join()
        self._connection.close()

    def _bury(self, process: SpawnProcess) -> None:
        process.kill()
        process.join()
        atexit.unregister(self._abandon)

    def _abandon(self, process: SpawnProcess) -> None:
        """When the server ends at once: multiprocessing would wait for it, since it ignores its signal."""
        self._closing.set()
        process.kill()

    def _current(self) -> list[tuple[int, _Stream]]:
        with self._lock:
            return list(self._streams.items())

    def _forget(self, number: int) -> None:
        with self._lock:
            self._streams.pop(number, None)

    def _send(self, message: Request) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:  # it has ended
            self._lose()

    def _lose(self) -> None:
        """The next step tells."""
        self._lost.set()
        self._warm.set()
        self._wake.set()

    # -- the listening thread

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self._connection.recv())
        except (EOFError, OSError):
            pass  # it has ended
        finally:
            self._lose()

    def _hear(self, report: Report) -> None:
        match report:
            case list():
                for news in report:
                    self._tell(news)
                self._wake.set()  # there is room for more
            case Stepped():
                self.stepped(report.seconds, report.rows)
            case SecondPass():
                self.second_pass_ended(report.outcome)
            case Warm():
                self._warm.set()

    def _tell(self, news: News) -> None:
        with self._lock:
            stream = self._streams.get(news.number)
        if stream is None:  # its client is gone
            return
        stream.session.put(*news.events)
        stream.session.decoded_ms = news.decoded_ms
        if any(isinstance(each, Closed) or (isinstance(each, Fault) and each.fatal) for each in news.events):
            self._forget(news.number)
        stream.session.tell()


def _end_of(process: SpawnProcess) -> str:
    """One line about a process that has ended, or is about to."""
    process.join(ENDING_S)
    hint = ": is there memory for it?" if process.exitcode == -signal.SIGKILL else ""
    return f"the engine's process has ended (exit code {process.exitcode}){hint}"


@contextmanager
def _signals_held() -> Iterator[None]:
    """A process that is started here is deaf from its beginning: Ctrl-C must not end it with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the other side ---------------------------------------------------------------------------------


def _serve(connection: Connection, build: "Callable[[], Engine]", prepare: Callable[[], None] | None) -> None:
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
    _Twins(engine, connection).run()


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


class _Twins:
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
