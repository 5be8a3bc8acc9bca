"""For servers that take frames off a socket whether or not the app asks for them: a bound on what waits."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FRAME_BYTES = 256  # that a frame takes however short it is: empty ones would wait without bound
TOO_FAST = "audio came much faster than it can be heard: wait for results, or send at the speed of speech"


class ReadAhead:
    """ASGI middleware: ends a WebSocket whose unread frames take more than `limit` bytes, with 1008 and a reason.

    Our own server needs none: there a frame that is not asked for stays with the client (TCP's flow control).
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        frames: asyncio.Queue[Message] = asyncio.Queue()
        waiting, over = 0, False

        async def pump() -> None:
            nonlocal waiting, over
            while True:
                message = await receive()
                waiting += _size(message)
                if waiting > self._limit:
                    over = True
                    while not frames.empty():
                        frames.get_nowait()
                    frames.put_nowait({"type": "websocket.disconnect", "code": 1008, "reason": TOO_FAST})
                    await send({"type": "websocket.close", "code": 1008, "reason": TOO_FAST})
                    return
                frames.put_nowait(message)
                if message["type"] == "websocket.disconnect":
                    return

        async def take() -> Message:
            nonlocal waiting
            message = await frames.get()
            waiting -= _size(message)
            return message

        async def tell(message: Message) -> None:
            if not over:
                await send(message)

        pumping = asyncio.create_task(pump())
        try:
            await self._app(scope, take, tell)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)


def _size(message: Message) -> int:
    if message["type"] != "websocket.receive":
        return 0
    return FRAME_BYTES + len(message.get("bytes") or message.get("text") or b"")
