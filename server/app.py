"""The ASGI app: one route a dialect, health and metrics; and `serve`, which runs it to a good end."""

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from asr.audio import SAMPLE_RATE, read_audio
from server.config import Settings, unknown_variables
from server.connection import Connection, Conversation
from server.dialects import Dialect, Terms
from server.dialects.deepgram import Deepgram
from server.dialects.native import Native
from server.dialects.openai import OpenAi
from server.dialects.realtime import Realtime
from server.dialects.vosk import Vosk
from server.door import AdmissionError, check
from server.engine_process import EngineProcess
from server.log import configure_logging, fields, whence
from server.metrics import Metrics
from server.page import page_routes
from server.sockets import ModestWebSocket, PromptHttp
from server.spec import spec_routes
from server.transcriptions import Upload
from server.worker import Worker
from streaming.events import Fault
from streaming.session import SessionOptions

if TYPE_CHECKING:
    from streaming.pool import AnyEngine, EnginePool

DIALECTS: dict[str, type[Dialect]] = {
    "/v1/stream": Native,
    "/v1/listen": Deepgram,
    "/v1/realtime": Realtime,
    "/vosk": Vosk,
}
RECEIVE_BUFFER_BYTES = 2**18  # in the kernel: 8 s of 16 kHz s16le that a throttled client has sent ahead
SEND_BUFFER_BYTES = 2**16  # in the kernel: hundreds of messages that a client has not read
SILENT_PEER_MS = 30_000  # then the kernel gives up a peer that acknowledges nothing, or never reads
HEAD_TIMEOUT_S = 10  # for the head of a request, or of a handshake, to be complete
LAST_FINALS_S = 2.0  # of a drain, in which second passes are given up
LAST_FRAMES_S = 5  # for close frames to leave, of conversations that did not finish in time
PORT_TAKEN = 2  # exit code
SPEECH = Path(__file__).parent.parent / "samples" / "jfk.wav"  # what the model is warmed up with
SPEECH_BEGINS_S = 0.3

log = logging.getLogger("asr_stream.server")


class House:
    """All that one server holds: the worker, the conversations, and how many more may come in."""

    def __init__(self, engine: "AnyEngine | EnginePool", settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.worker = Worker(
            engine,
            stepped=self.metrics.stepped,
            second_pass_ended=self.metrics.second_pass_ended,
            warm_up=self._warm_up,
        )
        self.terms = Terms(
            model=engine.model_name,
            chunk_ms=settings.chunk_ms,
            final_pass=settings.final_pass,
            max_frame_bytes=settings.max_frame_bytes,
            max_backlog_s=settings.max_backlog_s,
            idle_timeout_s=settings.idle_timeout_s,
            delay_ms=settings.delay_ms,
            pause_ms=settings.pause_ms,
            beam=settings.beam,
            prompt=settings.prompt,
            hotwords=settings.hotwords,
            final_passes=engine.final_passes,
        )
        self.connections: set[Conversation] = set()
        self.draining = False
        self.metrics.watch(
            sessions=lambda: len(self.connections),
            slots=lambda: engine.slots,
            slots_free=lambda: self.free_slots,
            draining=lambda: self.draining,
            backlog=lambda: max((each.backlog_s for each in self.connections), default=0.0),
            queue_age=lambda: max((each.queue_age_s for each in self.connections), default=0.0),
            engines=[each for each in self.worker.engines if isinstance(each, EngineProcess)],
        )

    @property
    def free_slots(self) -> int:
        """Conversations that may still come in; those that have yet to send audio have a slot kept."""
        if self.draining:
            return 0
        return self.worker.engine.free_slots - sum(connection.awaited for connection in self.connections)

    def _warm_up(self, engine: "AnyEngine") -> None:
        """Lets the model hear a clip as clients will send theirs, so that the first of them does not wait longer."""
        speech = read_audio(SPEECH)[round(SPEECH_BEGINS_S * SAMPLE_RATE) :]
        engine.warm_up(speech, SessionOptions(**self.terms.options()))

    async def converse(self, client: WebSocket, dialect_type: type[Dialect]) -> None:
        """One WebSocket, from the door to its end."""
        try:
            connection = self._admit(client, dialect_type)
        except AdmissionError as refusal:
            self._note(refusal, client)
            await refusal.tell(client, dialect_type)
            return
        self.connections.add(connection)
        self.metrics.conversations.labels(client.scope["path"]).inc()
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)

    async def transcribe(self, request: Request) -> ASGIApp:
        """One uploaded file, from the door to its answer."""
        try:
            check(request, self.settings, OpenAi)
            self._check_room()
        except AdmissionError as refusal:
            self._note(refusal, request)
            return refusal.response(OpenAi)
        self.metrics.conversations.labels(request.scope["path"]).inc()
        upload = Upload(self.worker.engine, self.settings, self.terms, self.metrics)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            self.connections.add(upload)
            try:
                await upload(scope, receive, send)
            finally:
                self.connections.discard(upload)

        return answer

    def _admit(self, client: WebSocket, dialect_type: type[Dialect]) -> Connection:
        """Raises AdmissionError."""
        check(client, self.settings, dialect_type)
        try:
            dialect = dialect_type.parse(client.query_params, self.terms)
        except ValueError as error:
            raise AdmissionError(400, "bad_request", str(error)) from error
        self._check_room()
        return Connection(client, dialect, self.worker.engine, self.settings, self.metrics)

    def _check_room(self) -> None:
        """Raises AdmissionError."""
        if self.draining:
            raise AdmissionError(
                503, "draining", "the server is ending: connect to another, or try again in a few seconds"
            )
        if self.free_slots <= 0:
            raise AdmissionError(503, "full", "every slot is taken: try again in a few seconds")

    def _note(self, refusal: AdmissionError, client: HTTPConnection) -> None:
        self.metrics.errors.labels(refusal.code).inc()
        log.warning("refused, %s: %s", refusal.code, refusal, extra=fields(**whence(client)))

    async def drain(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Takes no one in and lets conversations finish that cannot resume, for drain_timeout_s or until `hurry`.

        Near its end second passes are given up, so that the words which the stream has heard still become finals.
        """
        self.draining = True
        for connection in self.connections:
            connection.leave(1001, "the server is draining: reconnect and resume")
        last_s = min(LAST_FINALS_S, self.settings.drain_timeout_s)
        await self._empty(self.settings.drain_timeout_s - last_s, hurry)
        if self.connections:
            self.worker.engine.hurry()
        await self._empty(last_s, hurry)
        for connection in self.connections:
            connection.fail(Fault("draining", "the server is ending: reconnect and resume", fatal=True))
        await self._empty(LAST_FRAMES_S, hurry)

    async def _empty(self, timeout_s: float, hurry: Callable[[], bool]) -> None:
        """Waits until every conversation is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.connections and loop.time() < deadline and not hurry():
            await asyncio.sleep(0.02)

    async def healthz(self, _: Request) -> Response:
        """200 while the model's thread lives."""
        alive = self.worker.alive
        return JSONResponse(
            {"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503
        )

    async def readyz(self, _: Request) -> Response:
        """200 while a conversation can be opened."""
        body = {"free_slots": self.free_slots, "slots": self.worker.engine.slots, "draining": self.draining}
        return JSONResponse(body, 200 if self.free_slots > 0 and self.worker.alive else 503)

    async def show_metrics(self, _: Request) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def create_app(engine: "AnyEngine | EnginePool", settings: Settings) -> Starlette:
    """The app around `engine`; its lifespan starts and stops the worker and closes the engine.

    `app.state.house` is the House, for whoever ends the server and wants to drain it first.
    """
    house = House(engine, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(house.worker.start)
        try:
            yield
        finally:
            await asyncio.to_thread(house.worker.stop)

    def conversation(dialect_type: type[Dialect]) -> Callable[[WebSocket], Awaitable[None]]:
        async def endpoint(client: WebSocket) -> None:
            await house.converse(client, dialect_type)

        return endpoint

    pages = page_routes(house.terms, settings)
    app = Starlette(
        routes=[
            *(WebSocketRoute(path, conversation(dialect_type)) for path, dialect_type in DIALECTS.items()),
            Route("/v1/audio/transcriptions", house.transcribe, methods=["POST"]),
            Route("/healthz", house.healthz),
            Route("/readyz", house.readyz),
            Route("/metrics", house.show_metrics),
            *pages,
            *spec_routes(settings, DIALECTS, pages),
        ],
        lifespan=lifespan,
    )
    app.state.house = house
    return app


class Server(uvicorn.Server):
    """uvicorn, but it drains before it closes sockets, and the signal that ended it is not raised again."""

    def __init__(self, engine: "AnyEngine | EnginePool", settings: Settings) -> None:
        app = create_app(engine, settings)
        self.house: House = app.state.house
        super().__init__(
            uvicorn.Config(
                app,
                http=PromptHttp,
                ws=ModestWebSocket,
                ws_max_size=4 * settings.max_frame_bytes,  # what is a little too big is told so in words
                ws_per_message_deflate=False,  # audio hardly shrinks
                timeout_keep_alive=HEAD_TIMEOUT_S,
                ws_ping_timeout=None,  # pongs wait behind throttled audio; idle clients are seen anyway
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=LAST_FRAMES_S,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once. From now on the server is not ready."""
        self.house.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settings = self.house.settings
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            scheme, page = ("wss", "https") if settings.tls_cert else ("ws", "http")
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._announce(f"listening on {scheme}://{address}/v1/stream")
            self._announce(f"a page to try it: {page}://{address}/")
            self._announce(
                f"from a terminal: asr-stream mic --url {scheme}://{address}/v1/stream (Ctrl-C ends either)"
            )
        warn(settings)

    def _announce(self, line: str) -> None:
        """For whoever has started us; among JSON lines, one of them."""
        if self.house.settings.log_format == "json":
            log.info("%s", line)
        else:
            sys.stderr.write(f"{line}\n")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining %d conversations", len(self.house.connections))
        await self.house.drain(hurry=lambda: self.force_exit)
        await super().shutdown(sockets)
        log.info("ended")


def warn(settings: Settings) -> None:
    """Tells what is probably not meant, though it may be."""
    for name in unknown_variables():
        log.warning("%s is in the environment, and is no setting", name)
    if settings.exposed:
        log.warning("ANYONE on the network can use this server: set ASR_STREAM_API_KEY, or bind to 127.0.0.1")


def bind(host: str, port: int) -> socket.socket:
    """A socket with small kernel buffers, so that back-pressure is felt soon: it has the port, and does not listen
    yet. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_PEER_MS)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def serve(settings: Settings, build: Callable[[], "AnyEngine | EnginePool"]) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    SystemExit(2) if the address is taken, which is found before `build` loads a model. Until it has, clients are
    refused as if nobody were there.
    """
    with _ending_if_taken(settings):
        listener = bind(settings.host, settings.port)
    configure_logging(settings.log_level, settings.log_format)
    with listener:
        server = Server(build(), settings)
        with _ending_if_taken(settings):  # somebody else may have had a smaller model to load
            listener.listen()
        server.run([listener])


@contextlib.contextmanager
def _ending_if_taken(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        foreign = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        advice = "--host is an address of this machine, as 127.0.0.1" if foreign else "try --port 0"
        sys.stderr.write(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; {advice}\n")
        raise SystemExit(PORT_TAKEN) from None
