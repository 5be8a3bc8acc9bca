"""A real server on a real socket, in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from server.app import House, Server, bind
from server.config import Settings
from tests.server.fakes import FakeEngine


@dataclass
class Running:
    server: Server
    engine: FakeEngine
    port: int
    task: "asyncio.Task[None]"

    @property
    def house(self) -> House:
        return self.server.house

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a plain HTTP request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    async def kill(self) -> None:
        """As if the process died: no goodbye, every connection cut, the port free."""
        for listener in self.server.servers:
            listener.close()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        await self.stop()

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.task


async def start(engine: FakeEngine, port: int = 0, **settings: object) -> Running:
    server = Server(engine, Settings(**settings))
    listener = bind("127.0.0.1", port)
    running = Running(
        server, engine, listener.getsockname()[1], asyncio.create_task(server.serve([listener]))
    )
    while not server.started:
        await asyncio.sleep(0.005)
    return running


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine | None = None, **settings: object) -> AsyncIterator[Running]:
    running = await start(engine or FakeEngine(), **settings)
    try:
        yield running
    finally:
        await running.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
