"""A TCP proxy that reads the WebSocket messages going through it, and cuts the connection at the one it was told."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from websockets.frames import Opcode


@dataclass(frozen=True)
class Cut:
    """Where a connection ends: at the `count`-th message of this kind, from whichever side it comes.

    Kinds: of the client "upgrade", "audio", and the native protocol's texts; of the server "accepted" or "refused"
    and the native protocol's texts; "goodbye" is either side's close frame.
    """

    kind: str
    count: int = 1
    arrives: bool = True  # whether that message still reaches the other side
    silent: bool = False  # nothing goes through any more, and nobody is told: a cable is pulled


async def messages(reader: asyncio.StreamReader, greeting: str) -> AsyncIterator[tuple[str, bytes]]:
    """Kind and bytes of what comes: the HTTP head, then frame by frame. Raises IncompleteReadError at the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    if greeting == "accepted" and not head.startswith(b"HTTP/1.1 101 "):
        yield "refused", head + await reader.read()
        return
    yield greeting, head
    while True:
        head = await reader.readexactly(2)
        opcode, masked, length = head[0] & 0x0F, head[1] & 0x80, head[1] & 0x7F
        longer = await reader.readexactly({126: 2, 127: 8}.get(length, 0))
        mask = await reader.readexactly(4 if masked else 0)
        payload = await reader.readexactly(int.from_bytes(longer, "big") if longer else length)
        kind = {Opcode.BINARY: "audio", Opcode.CLOSE: "goodbye"}.get(Opcode(opcode), "ping or pong")
        if opcode == Opcode.TEXT:
            unmasked = bytes(a ^ b for a, b in zip(payload, itertools.cycle(mask or b"\0"), strict=False))
            kind = json.loads(unmasked)["type"]
        yield kind, head + longer + mask + payload


class CuttingProxy:
    """At `url`, before the server at `port` of loopback. The n-th connection ends at `cuts[n]`, if there is one."""

    def __init__(self, port: int, cuts: Iterable[Cut]) -> None:
        self._port = port
        self._left = list(cuts)
        self.done = 0  # cuts that happened
        self._pulled: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "CuttingProxy":
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/stream"
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._pulled:
            writer.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self._left.pop(0) if self._left else None
        with contextlib.suppress(ConnectionError):  # the server is away
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            both = writer, far_writer
            ways = {
                asyncio.create_task(self._relay(reader, "upgrade", far_writer, cut)),
                asyncio.create_task(self._relay(far_reader, "accepted", writer, cut)),
            }
            done, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in rest:
                way.cancel()
            await asyncio.wait(ways)
            struck = any(way.result() for way in done)
            self.done += struck
            if struck and cut is not None and cut.silent:
                self._pulled += both
                return
            for each in both:
                if struck:
                    each.transport.abort()
                each.close()
            return
        writer.transport.abort()

    async def _relay(
        self, reader: asyncio.StreamReader, greeting: str, writer: asyncio.StreamWriter, cut: Cut | None
    ) -> bool:
        """One direction, until it ends; True where it ended with the cut."""
        seen = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async for kind, data in messages(reader, greeting):
                here = False
                if cut is not None and kind == cut.kind:
                    seen += 1
                    here = seen == cut.count
                if not here or (cut is not None and cut.arrives):
                    writer.write(data)
                    await writer.drain()
                if here:
                    return True
        return False
