"""The thread that owns the model: it steps the engine while there is work and sleeps while there is none.

Sockets never wait for this thread, nor it for a socket: sessions take bytes at any time, and tell by `notify`
that they have something to say.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaming.engine import Engine

WAIT_S = 0.1  # how long the thread sleeps at most before it looks whether it should stop
CRASH_PAUSE_S = 0.05  # a model that always fails must not keep a core busy

log = logging.getLogger("asr_stream.worker")


class Worker:
    """Steps `engine` in a thread of its own, from `start` to `stop`.

    `stepped(seconds, rows)` is called there after every batch: its time, and how many sessions advanced;
    `warm_up()` once, before all others.
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        stepped: Callable[[float, int], None] | None = None,
        warm_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self._stepped = stepped
        self._warm_up = warm_up
        self._warm = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """Returns once the model is warm."""
        self._thread.start()
        self._warm.wait()

    def drain(self, timeout: float) -> bool:
        """Waits until everything received is decoded; False when `timeout` seconds were not enough."""
        deadline = time.monotonic() + timeout
        while not self.engine.idle:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def stop(self) -> None:
        """Ends the thread after the batch at hand, and closes the engine."""
        self._stopping.set()
        if self.alive:
            self._thread.join()
        self.engine.close()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._warm_up()
            log.info("the model is warm, after %.1f s", time.perf_counter() - started)
        except Exception as error:
            log.exception("the model could not be warmed up")
            self.engine.fail(error)
        self._warm.set()
        while not self._stopping.is_set():
            try:
                if not self._step():
                    self.engine.wait(WAIT_S)
            except Exception as error:
                log.exception("the model failed: every open session is ended")
                self.engine.fail(error)
                self._stopping.wait(CRASH_PAUSE_S)

    def _step(self) -> bool:
        positions = {session: session.decoded_ms for session in self.engine.sessions}
        started = time.perf_counter()
        if not self.engine.step():
            return False
        if self._stepped is not None:
            rows = sum(session.decoded_ms > before for session, before in positions.items())
            self._stepped(time.perf_counter() - started, rows)
        return True
