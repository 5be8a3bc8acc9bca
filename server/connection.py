"""One conversation over one socket: frames to the session, events to the client, limits kept on both sides.

A frame's journey: `_read` takes it from the socket, the dialect turns it into steps, `_carry_out` calls the
session. An event's journey: the worker's `notify` has `_pump` run on the loop, the dialect renders the events
into the outbox, `_write` sends them. Reading stops while the session's backlog is over the limit: TCP slows
the client.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect

from server.config import Settings
from server.dialects import Audio, Close, Dialect, Finalize, Finish, Open, Send, Step
from server.log import session_log, whence
from server.metrics import ArrivalTimes, Metrics
from streaming.events import Endpoint, Event, Fault, Final, Partial
from streaming.session import Full, Session, SessionOptions

if TYPE_CHECKING:
    from streaming.pool import AnyEngine, EnginePool

FAREWELL_S = 5.0  # for the last frames to leave, when the client does not read


class Conversation(Protocol):
    """A client that the server has let in, whatever it speaks over."""

    @property
    def awaited(self) -> bool:
        """Whether it may yet open its session, for which a slot is kept."""

    @property
    def backlog_s(self) -> float:
        """Audio received and not yet decoded."""

    @property
    def queue_age_s(self) -> float:
        """How long the oldest undecoded audio has waited."""

    def leave(self, code: int, why: str) -> None:
        """Ends the conversation well: what was heard is finished first, unless the client resumes elsewhere."""

    def fail(self, fault: Fault) -> None:
        """Ends the conversation at once: the client is told, the slot is free."""


class Connection:
    """The conversation of one accepted client, from `run`'s start to its end."""

    def __init__(
        self,
        socket: WebSocket,
        dialect: Dialect,
        engine: "AnyEngine | EnginePool",
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.id = uuid4().hex[:12]
        self._socket = socket
        self._dialect = dialect
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._log = session_log(self.id)
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._outbox: asyncio.Queue[Send | Close] = asyncio.Queue()
        self._room = asyncio.Event()  # the backlog is under its limit
        self._room.set()
        self._leaving = False  # no frame of the client can change anything any more
        self._closing = asyncio.Event()  # Close is in the outbox: nothing may follow it
        self._arrivals = ArrivalTimes(SessionOptions())  # the session's own, once it is open
        self._awaited = True
        self._warned = False  # of samples that are no numbers
        self._ended_at: float | None = None  # when an utterance ended whose final is still to come
        self._decoded_ms = 0  # of the session's timeline, which may go on where another's ended
        self._audio_ms = 0  # decoded here
        self._finals = 0
        self._close: dict[str, object] = {}  # how the socket was closed

    @property
    def awaited(self) -> bool:
        """Whether it may yet open its session, for which a slot is kept."""
        return self._awaited

    @property
    def backlog_s(self) -> float:
        """Audio received and not yet decoded."""
        return self._session.backlog_ms / 1000 if self._session is not None else 0.0

    @property
    def queue_age_s(self) -> float:
        """How long the oldest undecoded audio has waited."""
        return self._arrivals.age()

    async def run(self) -> None:
        """Accepts the socket and serves it to the end; whatever happens, the slot is free afterwards."""
        wanted = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(next((name for name in wanted if name in self._dialect.subprotocols), None))
        started = time.monotonic()
        self._log.info("open", extra=whence(self._socket))
        self._carry_out(self._dialect.greet(self.id))
        reader, writer, closing = (
            asyncio.create_task(work) for work in (self._read(), self._write(), self._closing.wait())
        )
        try:
            await asyncio.wait({reader, writer, closing}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and (error := reader.exception()) is not None:
                self._log.error("the server failed on a frame", exc_info=error)
                self.fail(
                    Fault("internal", "the server failed on this frame: reconnect and resume", fatal=True)
                )
            if self._closing.is_set():
                await asyncio.wait({writer}, timeout=FAREWELL_S)
        finally:
            self._closing.set()  # who drains or fails us from here on, while the tasks end, has nothing to end
            self._let_go()
            for task in (reader, writer, closing):
                task.cancel()
            await asyncio.gather(reader, writer, closing, return_exceptions=True)
            seconds = round(time.monotonic() - started, 1)
            said = {"audio_s": self._audio_ms / 1000, "finals": self._finals}
            self._log.info("gone", extra={"seconds": seconds, **said, **self._close})

    def leave(self, code: int, why: str) -> None:
        """Ends the conversation well, as the dialect has it; the socket closes with this code."""
        self._carry_out(self._dialect.leave(code, why))

    def fail(self, fault: Fault) -> None:
        """Ends the conversation at once: the client is told, the slot is free."""
        self._carry_out([fault])

    async def _read(self) -> None:
        """Takes frames until the client is gone. While we do not read or decode, the client is not idle."""
        idle_s = self._settings.idle_timeout_s
        while True:
            await self._room.wait()
            try:
                async with asyncio.timeout(None if self._leaving else idle_s):
                    message = await self._socket.receive()
            except TimeoutError:
                session = self._session
                if session is not None and session.backlog_ms >= session.options.chunk_ms:
                    continue  # it may wait for our answer
                self.leave(1000, f"idle for {idle_s:g} s: send audio or keepalive")
                continue
            if message["type"] == "websocket.disconnect":
                self._close = self._close or {"close": message.get("code"), "by": "client"}
                return
            if self._leaving:
                continue
            frame = message["text"] if message.get("text") is not None else message["bytes"]
            if len(frame) > self._settings.max_frame_bytes:
                self.fail(
                    Fault("too_big", f"frames hold at most {self._settings.max_frame_bytes} bytes", True)
                )
            else:
                self._carry_out(self._dialect.receive(frame))

    async def _write(self) -> None:
        """Sends what is in the outbox until Close has been sent, or the client is gone."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the latter: uvicorn closed it itself
            while True:
                match await self._outbox.get():
                    case Send(str(text)):
                        await self._socket.send_text(text)
                    case Send(bytes(data)):
                        await self._socket.send_bytes(data)
                    case Close() as close:
                        await self._socket.close(close.code, close.reason)
                        return

    def _carry_out(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if self._closing.is_set():
                return
            match step:
                case Fault():
                    self._tell(step)
                case Send() | Close():
                    self._put(step)
                case Open(options):
                    self._open(options)
                case Audio(data):
                    self._receive(data)
                case Finalize():
                    self._opened.finalize()
                case Finish():
                    self._leaving = True
                    self._opened.finish()

    @property
    def _opened(self) -> Session:
        assert self._session is not None, "the dialect opens the session before it calls it"
        return self._session

    def _open(self, options: SessionOptions) -> None:
        self._awaited = False
        self._arrivals = ArrivalTimes(options)
        self._decoded_ms = options.start_ms
        try:
            self._session = self._engine.open(options, notify=self._notify)
        except Full:
            self.fail(Fault("full", "no free slot: try again in a few seconds", fatal=True))

    def _receive(self, data: bytes) -> None:
        session = self._opened
        session.receive(data)
        if session.bad_samples and not self._warned:
            self._warned = True
            what = "samples that are not numbers, or far too loud, were taken as silence: check the encoding"
            self._tell(Fault("bad_audio", what, fatal=False))
        self._arrivals.received(len(data))
        if session.backlog_ms > self._settings.max_backlog_s * 1000:
            self._room.clear()

    def _notify(self) -> None:
        """Called in the engine's threads."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._pump)

    def _pump(self) -> None:
        """Takes what the session has to say, whether or not the client reads: only the outbox fills."""
        if self._session is None:
            return
        decoded_ms = self._session.decoded_ms
        for event in _newest(self._session.events()):
            self._tell(event)
        self._carry_out(self._dialect.progress(decoded_ms))
        if (lag := self._arrivals.decoded(decoded_ms)) is not None:
            self._metrics.chunk_lag.observe(lag)
        self._metrics.audio.inc((decoded_ms - self._decoded_ms) / 1000)
        self._audio_ms += decoded_ms - self._decoded_ms
        self._decoded_ms = decoded_ms
        if self.backlog_s <= self._settings.max_backlog_s:
            self._room.set()

    def _tell(self, event: Event) -> None:
        """Measures and renders an event; a fatal fault also ends the session."""
        match event:
            case Endpoint():
                self._ended_at = time.monotonic()
            case Final():
                self._finals += 1
                if self._ended_at is not None:
                    self._metrics.time_to_final.observe(time.monotonic() - self._ended_at)
                    self._ended_at = None
            case Fault():
                self._metrics.errors.labels(event.code).inc()
                self._log.warning("%s: %s", event.code, event.message)
        self._carry_out(self._dialect.render(event))
        if isinstance(event, Fault) and event.fatal:
            self._let_go()

    def _put(self, step: Send | Close) -> None:
        """Into the outbox, which is bounded: a client too far behind is not told what it has missed."""
        if self._outbox.qsize() >= self._settings.max_unsent_events and isinstance(step, Send):
            while not self._outbox.empty():
                self._outbox.get_nowait()
            self.fail(Fault("slow_reader", "results were not read in time: reconnect and resume", fatal=True))
            return
        self._outbox.put_nowait(step)
        if isinstance(step, Close):
            self._close = {"close": step.code, "by": "server", "why": step.why}
            self._closing.set()

    def _let_go(self) -> None:
        """Frees the slot and lets the reader run on, to see the client go."""
        self._leaving, self._awaited = True, False
        self._room.set()
        if self._session is not None:
            if not self._session.closed:
                self._session.abort()
            self._session = None


def _newest(events: list[Event]) -> list[Event]:
    """Without partials that the next one replaces: minutes of them come at once after a final that took long."""
    return [
        event
        for event, following in zip_longest(events, events[1:])
        if not (
            isinstance(event, Partial)
            and isinstance(following, Partial)
            and event.utterance == following.utterance
        )
    ]
