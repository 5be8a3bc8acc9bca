"""A client that survives its server: it keeps the audio since the last bookmark, reconnects, goes on."""

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from server.dial import (
    SAMPLE_BYTES,
    ServerError,
    dial,
    encode,
    json_object,
    read_bookmark,
    read_event,
    with_query,
)
from server.tape import Control, Tape
from server.timeline import Timeline
from streaming.events import Bookmark, Closed, Event, Fault, Final, Partial

FRAME_BYTES = 2**15  # at most, of one WebSocket message: 1 s of 16 kHz s16le
MAX_AHEAD_MS = 10_000  # audio sent and not yet decoded: pings and their answers wait behind it
KEEP_MS = 60_000  # longer than any utterance: audio decoded that long ago, with no word told, was silence
KEEPALIVE_S = 3.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0  # between attempts to reconnect
CLOSED_SLACK_MS = 100  # what the server's count of the audio may lack, by rounding
HOPELESS = {1002, 1003, 1007, 1008, 1009}  # close codes after which the same would happen again


class StreamClient:
    """One conversation with the server at `url` (ws://host:port/v1/stream), over one connection or several.

        async with StreamClient(url) as client:
            await client.send(samples)
            await client.close()
            async for event in client: ...

    Events are those of streaming/events.py on one timeline, each final exactly once, Closed last; a consumer
    that comes late sees only the newest partial. Raises ServerError when the server refuses, or cannot be
    reached: at the start at once, later after `retries` attempts that brought nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        chunk_ms: int | None = None,
        sample_rate: int = 16_000,
        encoding: str = "s16le",
        channels: int = 1,
        final_pass: str | None = None,
        token: str | None = None,
        delay_ms: int | None = None,
        pause_ms: int | None = None,
        beam: int | None = None,
        prompt: str | None = None,
        hotwords: tuple[str, ...] | None = None,
        retries: int = 8,
    ) -> None:
        if encoding not in SAMPLE_BYTES:
            raise ValueError(f"encoding must be one of {', '.join(SAMPLE_BYTES)}, not {encoding!r}")
        query = {"model": model, "chunk_ms": chunk_ms, "sample_rate": sample_rate, "encoding": encoding}
        query |= {
            "delay_ms": delay_ms,  # a transducer refuses it: it has learnt when to wait
            "pause_ms": pause_ms,
            "channels": channels,
            "final_pass": final_pass,
            "words": "true",
            "progress": "true",
            "resumes": "true",
        }
        self._url, self._token = with_query(url, query), token
        wishes = {"beam": beam, "prompt": prompt, "hotwords": hotwords and list(hotwords)}
        self._wishes = {name: wish for name, wish in wishes.items() if wish is not None}
        self._encoding = encoding
        self._frame_bytes = channels * SAMPLE_BYTES[encoding]  # one sample of every channel
        self._bytes_per_ms = sample_rate * self._frame_bytes / 1000
        self._tape = Tape(sample_rate, self._frame_bytes)  # what was said
        self._retries, self._tries = retries, 0
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self._failure: Exception | None = None
        self._said = asyncio.Event()  # the tape grew
        self._moved = asyncio.Event()  # the server decoded more, or it is over
        self._news = asyncio.Event()  # there are events, or it is over
        self._over = False
        self._events: deque[Event] = deque()
        self._timeline = Timeline()  # what was heard
        self._decoded_ms = 0  # by the server of this connection
        self._furthest_ms = 0  # by any
        self._bookmark: Bookmark | None = None  # where the tape begins; None at the very beginning
        self._coming: Bookmark | None = None  # that of the final which comes next
        self.keepalives = True  # while nothing is said; False for those who would be taken for dead
        self.losses: list[str] = []  # by what each connection was lost after which there was another
        self._owed = False  # words were told whose final is still to come, however late it is

    async def __aenter__(self) -> Self:
        self._socket = await dial(self._url, self._token)
        self._task = asyncio.create_task(self._run(self._socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        assert self._socket is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._socket.close()

    @property
    def connection(self) -> ClientConnection:
        """The connection at hand, for those who disturb it: after a loss it is another."""
        assert self._socket is not None, "the client is entered first"
        return self._socket

    @property
    def reconnections(self) -> int:
        """How often a lost connection was followed by another."""
        return len(self.losses)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._check()
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    async def send(self, audio: bytes | np.ndarray) -> None:
        """Says audio: bytes in the client's encoding, or float32 samples (n,) or (n, channels).

        Returns at once while the server keeps up; waits when it is MAX_AHEAD_MS behind.
        """
        data = audio if isinstance(audio, bytes) else encode(audio, self._encoding)
        piece_bytes = FRAME_BYTES - FRAME_BYTES % self._frame_bytes
        for start in range(0, len(data), piece_bytes):
            self._open_tape().record(data[start : start + piece_bytes])
            self._said.set()
            await self._until_near(self._tape.end_ms)

    async def finalize(self) -> None:
        """Ends the utterance here: its final follows."""
        self._mark("finalize")

    async def close(self) -> None:
        """There is no more audio: the last finals follow, then Closed."""
        if not self._tape.closed:
            self._mark("close")

    def _mark(self, control: Control) -> None:
        self._open_tape().mark(control)
        self._said.set()

    def _open_tape(self) -> Tape:
        self._check()
        if self._tape.closed:
            raise ValueError("the conversation is closed: nothing can be said any more")
        return self._tape

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _until_near(self, audio_ms: float, stay: Callable[[], Awaitable[None]] | None = None) -> None:
        """Waits until the server has decoded all but MAX_AHEAD_MS of the audio before `audio_ms`.

        Args:
            stay: called now and then meanwhile.
        """
        while audio_ms - self._decoded_ms > MAX_AHEAD_MS:
            self._check()
            self._moved.clear()
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    await self._moved.wait()
            except TimeoutError:
                if stay is not None:
                    await stay()

    async def _run(self, socket: ClientConnection) -> None:
        """Connection after connection, until the server has told everything, or cannot be used."""
        try:
            while (lost := await self._converse(socket)) is not None:
                socket = self._socket = await self._reconnect(lost)
                self.losses.append(str(lost))
        except Exception as error:
            self._failure = error  # raised where the caller sends or listens
        self._over = True
        self._moved.set()
        self._news.set()

    async def _reconnect(self, lost: ServerError) -> ClientConnection:
        """Tries again, later every time. Raises ServerError when that is hopeless, or was done too often."""
        while lost.transient and self._tries < self._retries:
            delay_s = min(FIRST_DELAY_S * 2**self._tries, LONGEST_DELAY_S)
            self._tries += 1
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            try:
                return await dial(self._url, self._token)
            except ServerError as error:
                lost = error
        raise lost

    async def _converse(self, socket: ClientConnection) -> ServerError | None:
        """One connection to its end: None if all is said and told, else what it was lost by."""
        self._decoded_ms, self._owed = self._tape.base_ms, False
        self._timeline.reconnected()
        closed: Closed | None = None
        fault: Fault | None = None
        speaker = asyncio.create_task(self._speak(socket))
        try:
            async for text in socket:
                event = self._hear(json_object(str(text)))
                closed = event if isinstance(event, Closed) else closed
                fault = event if isinstance(event, Fault) and event.fatal else fault
        except ConnectionClosed:
            pass  # with what code is looked at below
        finally:
            speaker.cancel()
            await asyncio.wait({speaker})
        if (
            closed is not None
            and self._tape.closed
            and closed.audio_ms + CLOSED_SLACK_MS >= self._tape.end_ms
        ):
            self._tell(closed)
            return None
        transient = socket.close_code not in HOPELESS
        if fault is not None:
            return ServerError(fault.code, fault.message, transient=transient)
        reason = socket.close_reason or f"code {socket.close_code}"
        return ServerError("lost", f"the connection was lost ({reason})", transient=transient)

    async def _speak(self, socket: ClientConnection) -> None:
        """Says the tape, from what has no final yet to its end, and keepalives while nothing is said."""
        stay = partial(self._stay, socket)
        with contextlib.suppress(ConnectionClosed):  # seen where we listen
            if self._wishes:
                await socket.send(json.dumps({"type": "start", **self._wishes}))
            if self._bookmark is not None:
                await socket.send(json.dumps({"type": "resume", **asdict(self._bookmark)}))
            number, said_ms = self._tape.first, float(self._tape.base_ms)
            while True:
                number = max(number, self._tape.first)
                entry = self._tape.entry(number)
                if entry is None:
                    self._said.clear()
                    try:
                        async with asyncio.timeout(KEEPALIVE_S):
                            await self._said.wait()
                    except TimeoutError:
                        await stay()
                    continue
                number += 1
                if isinstance(entry, bytes):
                    said_ms += len(entry) / self._bytes_per_ms
                    # An answer that is not read for long must not look as if nobody were there: the server would
                    # close, and all since the last final be said again.
                    await self._until_near(said_ms, stay)
                    await socket.send(entry)
                else:
                    await socket.send(json.dumps({"type": entry}))

    async def _stay(self, socket: ClientConnection) -> None:
        if self.keepalives:
            await socket.send(json.dumps({"type": "keepalive"}))

    def _hear(self, message: dict[str, Any]) -> Event | None:
        """Notes how far the server is, forgets what is finished, tells the event: Closed only at the end."""
        event = read_event(message)
        self._coming = read_bookmark(message) or self._coming
        self._decoded_ms = max(self._decoded_ms, message.get("audio_ms", 0))
        match event:
            case Final():
                self._owed = False
                self._turn_page(event.audio_ms)
            case Partial():
                self._owed = bool(event.text)
            case None if not self._owed:  # progress, which comes after all events of the audio it covers
                finished_ms = self._bookmark.audio_ms if self._bookmark else 0  # words of a final are before
                if (kept_ms := self._decoded_ms - KEEP_MS) > finished_ms:
                    self._go_on_from(Bookmark.at(kept_ms))
        if self._decoded_ms > self._furthest_ms:
            self._furthest_ms, self._tries = self._decoded_ms, 0
        self._moved.set()
        if (
            event is not None
            and not isinstance(event, Closed)
            and not (isinstance(event, Fault) and event.fatal)
        ):
            self._tell(event)
        return event

    def _turn_page(self, audio_ms: int) -> None:
        """What is before the final that ends at `audio_ms` is not needed any more; older servers set no bookmark."""
        if self._coming is None or self._coming.audio_ms != audio_ms:
            self._coming = Bookmark.at(audio_ms)
        self._go_on_from(self._coming)

    def _go_on_from(self, bookmark: Bookmark) -> None:
        self._bookmark = bookmark
        self._tape.forget(bookmark.from_ms)

    def _tell(self, event: Event) -> None:
        told = self._timeline.tell(event)
        if told is None:
            return
        if isinstance(told, Partial) and self._events and isinstance(self._events[-1], Partial):
            self._events.pop()  # the consumer is late: the newer partial says it all
        self._events.append(told)
        self._news.set()
