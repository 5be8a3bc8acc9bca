"""Several engines as one, for CPUs: two, stepped by a thread each, serve half as many streams again as one.

Between products of matrices a step is Python and small operations, which more threads of torch do not shorten.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streaming.session import Full, Session, SessionOptions

if TYPE_CHECKING:
    from streaming.engine import Engine


class EnginePool:
    """Engines with the same model; each may be stepped by a thread of its own.

    Args:
        engines: one at least. They may share a recogniser, whose weights do not change; all state is theirs.
    """

    def __init__(self, engines: "Sequence[Engine]") -> None:
        self.engines = tuple(engines)
        self.model_name = self.engines[0].model_name
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

    def close(self) -> None:
        """Finishes second passes under way."""
        for engine in self.engines:
            engine.close()
