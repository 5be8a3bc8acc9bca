"""Clients that mean no good, one layer below the app: real sockets, bytes by hand."""

import asyncio

import pytest

from tests.server.running import Running, serving, until

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
REFUSED_BODY = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"


async def trickled(running: Running, whole: bytes, rest: bytes) -> bytes:
    """What is answered to `whole` at once and `rest` in drops that never end, until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(whole)

    async def drip() -> None:
        for byte in rest:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    answer = b""
    try:
        async with asyncio.timeout(20):
            while more := await reader.read(1024):  # at once: a reset takes along what nobody has read
                answer += more
    except ConnectionResetError:
        pass
    finally:
        dripping.cancel()
        writer.close()
    return answer


@pytest.mark.parametrize(
    ("whole", "rest", "answered"),
    [
        (b"", b"", b""),
        (REQUEST[:20], b"", b""),
        (b"", REQUEST[:-2] + 10_000 * b"x-drop: x\r\n", b""),
        (b"", UPGRADE[:-2] + 10_000 * b"x-drop: x\r\n", b""),
        (REQUEST, b"", b"HTTP/1.1 200"),
        (REQUEST, 10_000 * b"x", b"HTTP/1.1 200"),
        (REFUSED_BODY, 10_000 * b"x", b"HTTP/1.1 405"),
    ],
)
def test_half_a_request_holds_no_connection(whole, rest, answered):
    async def main():
        async with serving() as running:
            running.server.config.timeout_keep_alive = 0.3
            assert (await trickled(running, whole, rest))[:12] == answered
            await until(lambda: not running.server.server_state.connections)

    asyncio.run(main())


def test_a_slow_answer_and_a_long_conversation_are_not_cut():
    async def main():
        async with serving() as running:
            running.server.config.timeout_keep_alive = 0.1
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(UPGRADE)
            assert (await reader.readuntil(b"\r\n\r\n"))[:12] == b"HTTP/1.1 101"
            assert b"ready" in await reader.readuntil(b"}}")
            await asyncio.sleep(0.3)
            assert len(running.house.connections) == 1
            writer.close()
            await until(lambda: not running.house.connections)

    asyncio.run(main())


def test_pongs_that_nobody_reads_do_not_pile_up():
    ping = b"\x89\xfd\0\0\0\0" + bytes(125)  # masked, as long as a ping may be

    async def main():
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**10)
            writer.write(UPGRADE)
            await reader.readuntil(b"}}")
            (connection,) = running.server.server_state.connections
            writer.transport.pause_reading()
            most = 0
            for _ in range(64):
                writer.write(256 * ping)
                await writer.drain()
                await asyncio.sleep(0)
                most = max(most, connection.transport.get_write_buffer_size())
            assert 0 < most < 2**18
            writer.transport.resume_reading()
            writer.write(b"\x88\x80\0\0\0\0")
            await until(lambda: not running.house.connections)
            writer.close()

    asyncio.run(main())
