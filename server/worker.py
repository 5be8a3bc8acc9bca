"""The threads that own the model, one for each engine: they step it while there is work and sleep otherwise.

Sockets never wait for these threads, nor they for a socket: sessions take bytes at any time, and tell by `notify`
that they have something to say.
"""

import logging
import threading
import time
from collections.abc import Callable

from streaming.pool import AnyEngine, EnginePool

WAIT_S = 0.1  # how long a thread sleeps at most before it looks whether it should stop
CRASH_PAUSE_S = 0.05  # a model that always fails must not keep a core busy
LAST_STEP_S = 5.0  # for a batch to end when all does; a model that hangs is left behind

log = logging.getLogger("asr_stream.worker")


class Worker:
    """Steps `engine`, or each of a pool, in a thread of its own, from `start` to `stop`.

    `stepped(seconds, rows)` is called after every batch: its time, and how many sessions advanced;
    `second_pass_ended(outcome)` for every utterance that wants one; `warm_up(engine)` once, before all others.
    """

    def __init__(
        self,
        engine: AnyEngine | EnginePool,
        *,
        stepped: Callable[[float, int], None] | None = None,
        second_pass_ended: Callable[[str], None] | None = None,
        warm_up: Callable[[AnyEngine], None] = lambda _: None,
    ) -> None:
        self.engine = engine
        self._warm_up = warm_up
        self._stopping = threading.Event()
        self.engines = engine.engines if isinstance(engine, EnginePool) else (engine,)
        for each in self.engines:
            each.stepped = stepped or each.stepped
            each.second_pass_ended = second_pass_ended or each.second_pass_ended
        self._warm = [threading.Event() for _ in self.engines]
        self._threads = [
            threading.Thread(target=self._run, args=work, name="model", daemon=True)
            for work in zip(self.engines, self._warm, strict=True)
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
        deadline = time.monotonic() + LAST_STEP_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self.engine.close()

    def _run(self, engine: AnyEngine, warm: threading.Event) -> None:
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
                if not engine.step():
                    engine.wait(WAIT_S)
            except Exception as error:
                log.exception("the model failed: every session of it is ended")
                engine.fail(error)
                self._stopping.wait(CRASH_PAUSE_S)
