"""The threads that own the model, one for each engine: they step it while there is work and sleep otherwise.

Sockets never wait for these threads, nor they for a socket: sessions take bytes at any time, and tell by `notify`
that they have something to say.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from streaming.pool import EnginePool

if TYPE_CHECKING:
    from streaming.engine import Engine

WAIT_S = 0.1  # how long a thread sleeps at most before it looks whether it should stop
CRASH_PAUSE_S = 0.05  # a model that always fails must not keep a core busy

log = logging.getLogger("asr_stream.worker")


class Worker:
    """Steps `engine`, or each of a pool, in a thread of its own, from `start` to `stop`.

    `stepped(seconds, rows)` is called there after every batch: its time, and how many sessions advanced;
    `warm_up(engine)` once, before all others.
    """

    def __init__(
        self,
        engine: "Engine | EnginePool",
        *,
        stepped: Callable[[float, int], None] | None = None,
        warm_up: "Callable[[Engine], None]" = lambda _: None,
    ) -> None:
        self.engine = engine
        self._stepped = stepped
        self._warm_up = warm_up
        self._stopping = threading.Event()
        engines = engine.engines if isinstance(engine, EnginePool) else (engine,)
        self._warm = [threading.Event() for _ in engines]
        self._threads = [
            threading.Thread(target=self._run, args=work, name="model", daemon=True)
            for work in zip(engines, self._warm, strict=True)
        ]

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Returns once the model is warm."""
        for thread in self._threads:
            thread.start()
        for warm in self._warm:
            warm.wait()

    def drain(self, timeout: float) -> bool:
        """Waits until everything received is decoded; False when `timeout` seconds were not enough."""
        deadline = time.monotonic() + timeout
        while not self.engine.idle:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def stop(self) -> None:
        """Ends the threads after the batches at hand, and closes the engine."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self.engine.close()

    def _run(self, engine: "Engine", warm: threading.Event) -> None:
        started = time.perf_counter()
        try:
            self._warm_up(engine)
            log.info("the model is warm, after %.1f s", time.perf_counter() - started)
        except Exception as error:
            log.exception("the model could not be warmed up")
            engine.fail(error)
        warm.set()
        while not self._stopping.is_set():
            try:
                if not self._step(engine):
                    engine.wait(WAIT_S)
            except Exception as error:
                log.exception("the model failed: every session of it is ended")
                engine.fail(error)
                self._stopping.wait(CRASH_PAUSE_S)

    def _step(self, engine: "Engine") -> bool:
        positions = {session: session.decoded_ms for session in engine.sessions}
        started = time.perf_counter()
        if not engine.step():
            return False
        if self._stepped is not None:
            rows = sum(session.decoded_ms > before for session, before in positions.items())
            self._stepped(time.perf_counter() - started, rows)
        return True
