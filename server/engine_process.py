"""An engine in a process of its own, used as one of this process is.

Python runs one thread at a time. Two engines in a process, or an engine and many sockets, hold each other up at every
small operation: two threads of six streams each took 1.3 times as long as two processes, of two streams 1.7 times.

Sessions stay on this side, so that a client never waits for the other one. Each has a twin there
(server/engine_twins.py), which hears what was received here; what the twin tells is put into the session. A process
that dies ends its sessions and is replaced.
"""

import atexit
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from asr.audio import Samples, samples_in
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
from server.engine_twins import SIGNALS, serve
from streaming.events import Closed, Fault
from streaming.session import Full, Session, SessionOptions, no_such_pass

if TYPE_CHECKING:
    from streaming.engine import Engine

AHEAD_CHUNKS = 2  # sent before they are decoded: one is computed while the next waits; the rest is backlog
ENDING_S = 5.0  # for a process to end that was asked to; then it is killed
RESTART_PAUSE_S = 1.0  # a model that dies at once must not keep a core busy

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that it does not copy

log = logging.getLogger("asr_stream.engine")


class EngineDied(RuntimeError):
    """An engine's process has ended that was not asked to."""


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
        self._run = partial(serve, build=build, prepare=prepare)
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

    def hurry(self) -> None:
        """See `Engine.hurry`."""
        self._send(Hurry())

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
