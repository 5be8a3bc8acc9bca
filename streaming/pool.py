"""Several engines as one, for CPUs: as many cores as there are engines are kept busy.

Between products of matrices a step is Python and small operations, which more threads of torch do not shorten.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from asr.audio import Samples
from streaming.session import Full, Session, SessionOptions


class AnyEngine(Protocol):
    """What streaming/engine.py's `Engine` is to those who step it, and engines elsewhere are likewise."""

    stepped: Callable[[float, int], None]
    second_pass_ended: Callable[[str], None]

    @property
    def model_name(self) -> str: ...
    @property
    def final_passes(self) -> tuple[str, ...]: ...
    @property
    def slots(self) -> int: ...
    @property
    def free_slots(self) -> int: ...
    @property
    def sessions(self) -> list[Session]: ...
    @property
    def idle(self) -> bool: ...

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> Session: ...
    def warm_up(self, speech: Samples, options: SessionOptions) -> None: ...
    def step(self) -> bool: ...
    def wait(self, timeout: float) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def hurry(self) -> None: ...
    def close(self) -> None: ...


class EnginePool:
    """Engines with the same model; each is stepped by a thread of its own.

    Args:
        engines: one at least. They may share a recogniser, whose weights do not change; all state is theirs.
    """

    def __init__(self, engines: Sequence[AnyEngine]) -> None:
        self.engines = tuple(engines)
        self.model_name = self.engines[0].model_name
        self.final_passes = self.engines[0].final_passes
        self.slots = sum(engine.slots for engine in self.engines)

    @property
    def free_slots(self) -> int:
        return sum(engine.free_slots for engine in self.engines)

    @property
    def sessions(self) -> list[Session]:
        return [session for engine in self.engines for session in engine.sessions]

    @property
    def idle(self) -> bool:
        """Whether no engine has anything to do."""
        return all(engine.idle for engine in self.engines)

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> Session:
        """A new session, with the engine that has the most room.

        Raises:
            Full: every slot of every engine is taken.
        """
        for engine in sorted(self.engines, key=lambda engine: -engine.free_slots):
            try:
                return engine.open(options, notify=notify)
            except Full:
                continue  # somebody was faster
        raise Full(f"all {self.slots} slots are taken; try again later")

    def hurry(self) -> None:
        """See `Engine.hurry`."""
        for engine in self.engines:
            engine.hurry()

    def close(self) -> None:
        """Finishes second passes under way, all engines' at the same time."""
        with ThreadPoolExecutor(len(self.engines)) as closing:
            for closed in [closing.submit(engine.close) for engine in self.engines]:
                closed.result()
