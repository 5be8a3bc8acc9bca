"""A conversation without a server: used as `StreamClient` is, with an engine of this process."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING, Protocol, Self

from asr.audio import Samples
from server.worker import Worker
from streaming.events import Event
from streaming.listen import raise_fatal
from streaming.session import SessionOptions

if TYPE_CHECKING:
    from streaming.engine import Engine


class Conversation(Protocol):
    """What StreamClient and LocalClient have in common."""

    async def send(self, audio: Samples) -> None: ...
    async def close(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...


class LocalClient:
    """One conversation with `engine`, which it steps in a thread of its own and closes at the end."""

    def __init__(self, engine: "Engine", options: SessionOptions) -> None:
        self._worker = Worker(engine)
        self._news = asyncio.Event()
        self._events: deque[Event] = deque()
        self._options = options

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def notify() -> None:
            loop.call_soon_threadsafe(self._news.set)

        self._session = self._worker.engine.open(self._options, notify=notify)
        self._worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._session.closed:
            self._session.abort()
        await asyncio.to_thread(self._worker.stop)

    async def send(self, audio: Samples) -> None:
        """16 kHz mono, (n,)."""
        self._session.receive_samples(audio)

    async def close(self) -> None:
        """There is no more audio: the last finals follow, then Closed."""
        self._session.finish()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Raises RecognitionError when the engine failed."""
        while not self._events:
            self._news.clear()
            closed = self._session.closed  # asked before: nothing comes after what is taken then
            self._events.extend(self._session.events())
            if self._events:
                break
            if closed:
                raise StopAsyncIteration
            await self._news.wait()
        event = self._events.popleft()
        raise_fatal(event)
        return event


async def converse(
    conversation: Conversation, audio: AsyncIterable[Samples], hear: Callable[[Event], None]
) -> None:
    """Says all of `audio` while it hears every event, to the end. What either side raises ends both."""

    async def speak() -> None:
        async for samples in audio:
            await conversation.send(samples)
        await conversation.close()

    async def listen() -> None:
        async for event in conversation:
            hear(event)

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(speak())
            both.create_task(listen())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
