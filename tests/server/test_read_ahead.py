"""What waits to be read is bounded, also where the server reads ahead of the app."""

import asyncio

from starlette.types import Message

from server.read_ahead import FRAME_BYTES, ReadAhead

Frames = list[Message]


def frame(size: int) -> Message:
    return {"type": "websocket.receive", "bytes": bytes(size), "text": None}


async def converse(
    frames: Frames, limit: int, *, listens: bool, kind: str = "websocket"
) -> tuple[Frames, Frames]:
    """What the app heard and what the client was told; the app `listens` at once, or when all frames have come."""
    coming = asyncio.Queue[Message]()
    for each in frames:
        coming.put_nowait(each)
    heard: Frames = []
    told: Frames = []

    async def app(scope, receive, send):
        while not listens and not coming.empty() and not told:
            await asyncio.sleep(0)
        while not heard or heard[-1]["type"] != "websocket.disconnect":
            heard.append(await receive())
            await send({"type": "websocket.send", "text": "heard"})

    async def send(message: Message) -> None:
        told.append(message)

    async def receive() -> Message:
        await asyncio.sleep(0)  # a socket takes its time, an app that listens is faster
        await asyncio.sleep(0)
        return await coming.get()

    async with asyncio.timeout(5):
        await ReadAhead(app, limit)({"type": kind}, receive, send)
    return heard, told


GONE: Message = {"type": "websocket.disconnect", "code": 1000}


def test_an_app_that_listens_hears_everything_in_order():
    frames = [*(frame(size) for size in range(1, 40)), GONE]
    heard, told = asyncio.run(converse(frames, FRAME_BYTES + 50, listens=True))
    assert heard == frames
    assert len(told) == len(frames)


def test_a_client_far_ahead_is_told_why_it_must_go():
    frames = [*(frame(10) for _ in range(6)), GONE]
    heard, told = asyncio.run(converse(frames, 6 * FRAME_BYTES + 50, listens=False))
    assert [message["type"] for message in heard] == ["websocket.disconnect"]
    assert [(message["type"], message["code"]) for message in told] == [("websocket.close", 1008)]
    assert "speed of speech" in told[0]["reason"]
    assert len(told[0]["reason"].encode()) <= 123  # what a close frame holds


def test_text_counts_as_audio_does():
    frames = [*({"type": "websocket.receive", "text": "x" * 30} for _ in range(2)), GONE]
    heard, _ = asyncio.run(converse(frames, 2 * FRAME_BYTES + 50, listens=False))
    assert heard[0]["code"] == 1008


def test_empty_frames_do_not_wait_without_bound():
    frames = [*(frame(0) for _ in range(5)), GONE]
    heard, _ = asyncio.run(converse(frames, 4 * FRAME_BYTES, listens=False))
    assert heard[0].get("code") == 1008
    heard, _ = asyncio.run(converse(frames, 5 * FRAME_BYTES, listens=False))
    assert heard == frames


def test_what_is_read_no_longer_waits():
    frames = [*(frame(30) for _ in range(20)), GONE]
    heard, _ = asyncio.run(converse(frames, FRAME_BYTES + 50, listens=True))
    assert len(heard) == 21


def test_requests_that_are_no_conversations_pass():
    frames: Frames = [{"type": "http.request", "body": bytes(100)}, GONE]
    heard, _ = asyncio.run(converse(frames, 50, listens=True, kind="http"))
    assert heard == frames
