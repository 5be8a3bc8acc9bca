"""Files over HTTP: an upload takes a slot and runs as one session like any other, as fast as its turns come.

The file waits on disk and is decoded a second at a time, never further ahead of the model than a client on a socket
may be: neither a large file nor a small one that holds days of audio costs memory.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from asr.audio import AudioError, Recording, Samples, stream_audio
from server.config import Settings
from server.dialects import Terms, transcription
from server.dialects.openai import OpenAi
from server.dialects.transcription import Wish
from server.door import AdmissionError
from server.log import session_log, whence
from server.metrics import Metrics
from streaming.events import Closed, Event, Fault, Final
from streaming.session import Full, Session

if TYPE_CHECKING:
    from streaming.pool import AnyEngine, EnginePool

SLOWEST_BYTES_S = 2_000  # of an upload, on average: a slot is kept for it while it comes
FORM_BYTES = 2**16  # beside the file: a prompt, and what separates the parts
STATUS = {"bad_audio": 400, "full": 503, "draining": 503}  # by the code of a Fault; else 500
NAME_CHARACTERS = 60


class Upload:
    """The conversation of one client that sends a file: an ASGI app, called once."""

    def __init__(
        self, engine: "AnyEngine | EnginePool", settings: Settings, terms: Terms, metrics: Metrics
    ) -> None:
        self.id = uuid4().hex[:12]
        self.awaited = True  # it may yet open its session, for which a slot is kept
        self.queue_age_s = 0.0  # its audio waits because it came at once, not because the server is slow
        self._engine = engine
        self._settings = settings
        self._terms = terms
        self._metrics = metrics
        self._log = session_log(self.id)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()  # the session has something to say, or the server wants to end
        self._session: Session | None = None
        self._reading: asyncio.Future[Samples | None] | None = None  # of the file, in a thread
        self._fault: Fault | None = None

    @property
    def backlog_s(self) -> float:
        """Audio decoded from the file and not yet by the model."""
        return self._session.backlog_ms / 1000 if self._session is not None else 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the form, answers it, and frees the slot, whatever happens."""
        self._log.info("open", extra=whence(Request(scope)))
        request = Request(scope, self._bounded(receive))
        try:
            response = await self._respond(request, receive)
            if response is not None:
                await response(scope, receive, self._prompt(send))
        except TimeoutError:
            self._metrics.errors.labels("slow_reader").inc()
            self._log.warning("slow_reader: the answer was not read")
        finally:
            self.awaited = False
            audio_s = self._session.decoded_ms / 1000 if self._session is not None else 0.0
            self._metrics.audio.inc(audio_s)
            if self._session is not None and not self._session.closed:
                self._session.abort()
            if self._reading is not None:  # nobody can interrupt it
                await asyncio.wait({self._reading})
            await request.close()  # the file is gone
            self._log.info("gone", extra={"audio_s": audio_s})

    def leave(self, code: int, why: str) -> None:
        """What is being transcribed may be finished; a file that has not come yet is refused."""
        if self.awaited:
            self.fail(Fault("draining", why, fatal=True))

    def fail(self, fault: Fault) -> None:
        """Ends it at once: the client is told."""
        self._fault = fault
        self._woken.set()

    async def _respond(self, request: Request, receive: Receive) -> Response | None:
        """The answer; None for a client that has gone."""
        try:
            wish, recording = await self._read(request)
            self._session = self._open(wish)
        except AdmissionError as refusal:
            return self._refuse(refusal)
        except ClientDisconnect:
            return None
        events = self._listen(self._session, recording)
        if wish.stream:
            return StreamingResponse(_stream(wish, events), media_type="text/event-stream")
        answering = asyncio.create_task(self._answer(wish, events))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return answering.result() if answering.done() else None
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, wish: Wish, events: AsyncIterator[Event]) -> Response:
        finals: list[Final] = []
        async for event in events:
            match event:
                case Final():
                    finals.append(event)
                case Closed(audio_ms):
                    text, media_type = transcription.body(wish, finals, audio_ms / 1000)
                    return Response(text, media_type=media_type)
                case Fault(code, message, fatal=True):
                    return AdmissionError(STATUS.get(code, 500), code, message).response(OpenAi)
        raise AssertionError("events end with Closed or a fatal fault")

    def _refuse(self, refusal: AdmissionError) -> Response:
        self._metrics.errors.labels(refusal.code).inc()
        self._log.warning("refused, %s: %s", refusal.code, refusal)
        return refusal.response(OpenAi)

    # -- the file

    def _prompt(self, send: Send) -> Send:
        """`send`, but it raises TimeoutError where the client does not read: what it is told as it is decoded
        holds a slot."""

        async def prompt(message: Message) -> None:
            async with asyncio.timeout(self._settings.idle_timeout_s):
                await send(message)

        return prompt

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, but it raises AdmissionError where too much comes, or too little for too long."""
        limit, n_bytes, started = self._settings.max_upload_bytes, 0, self._loop.time()

        async def bounded() -> Message:
            nonlocal n_bytes
            patience_s = self._settings.idle_timeout_s
            behind_s = self._loop.time() - started - n_bytes / SLOWEST_BYTES_S
            try:
                async with asyncio.timeout(min(patience_s, patience_s - behind_s)):
                    message = await receive()
            except TimeoutError:
                raise AdmissionError(408, "idle", "the file comes too slowly: send it again") from None
            if self._fault is not None:
                raise AdmissionError(503, self._fault.code, self._fault.message)
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit + FORM_BYTES:
                raise self._too_big()
            return message

        return bounded

    async def _read(self, request: Request) -> tuple[Wish, Recording]:
        """Raises AdmissionError."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_upload_bytes + FORM_BYTES:
            raise self._too_big()
        try:
            form = await request.form(max_files=1, max_part_size=FORM_BYTES)
        except (HTTPException, LookupError, ValueError) as error:  # of headers, charsets and encodings
            why = error.detail if isinstance(error, HTTPException) else error
            raise AdmissionError(400, "bad_request", f"the form cannot be read: {why}") from None
        except OSError as error:
            self._log.error("the file cannot be kept", exc_info=error)
            raise AdmissionError(
                500, "internal", "the server has no place to keep the file: try again later, or in pieces"
            ) from None
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise AdmissionError(
                400, "bad_request", "send multipart/form-data with the audio as a part named file"
            )
        if (file.size or 0) > self._settings.max_upload_bytes:
            raise self._too_big()
        fields = defaultdict(list)
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name].append(value)
        try:
            return Wish.parse(fields, self._terms), Recording(file.file, _name(file.filename))
        except ValueError as error:
            raise AdmissionError(400, "bad_request", str(error)) from None

    def _too_big(self) -> AdmissionError:
        limit = self._settings.max_upload_bytes
        return AdmissionError(
            413, "too_big", f"files hold at most {limit} bytes: send a piece at a time, or compressed"
        )

    # -- its session

    def _open(self, wish: Wish) -> Session:
        """Raises AdmissionError."""
        try:
            if self._fault is None:
                return self._engine.open(wish.options, notify=self._notify)
            raise AdmissionError(503, self._fault.code, self._fault.message)
        except Full:
            raise AdmissionError(503, "full", "no free slot: try again in a few seconds") from None
        finally:
            self.awaited = False

    def _notify(self) -> None:
        """Called in the engine's threads."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._woken.set)

    async def _listen(self, session: Session, recording: Recording) -> AsyncIterator[Event]:
        """The events of the file, up to Closed or a fatal fault."""
        blocks: Iterator[Samples] | None = stream_audio(recording)
        while True:
            self._woken.clear()
            try:
                if blocks is not None and not await self._feed(session, blocks):
                    blocks = None
                    session.finish()
            except AudioError as error:
                self._fault = Fault("bad_audio", str(error), fatal=True)
            for event in session.events() if self._fault is None else [self._fault]:
                if isinstance(event, Fault):
                    self._metrics.errors.labels(event.code).inc()
                    self._log.warning("%s: %s", event.code, event.message)
                yield event
                if isinstance(event, Closed) or (isinstance(event, Fault) and event.fatal):
                    return
            await self._woken.wait()

    async def _feed(self, session: Session, blocks: Iterator[Samples]) -> bool:
        """Gives the session audio up to its limit; whether there may be more. Raises AudioError."""
        longest_s = self._settings.max_upload_s
        while session.backlog_ms <= self._settings.max_backlog_s * 1000 and self._fault is None:
            self._reading = asyncio.ensure_future(asyncio.to_thread(next, blocks, None))
            samples = await asyncio.shield(self._reading)
            if samples is None:
                return False
            session.receive_samples(samples)
            if session.decoded_ms + session.backlog_ms > longest_s * 1000:
                raise AudioError(f"files last at most {longest_s:g} s: send a piece at a time")
        return True


async def _stream(wish: Wish, events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """Server-sent events: utterances as they become final, then the whole."""
    finals: list[Final] = []
    async for event in events:
        match event:
            case Final():
                yield transcription.delta(wish, event, first=not finals)
                finals.append(event)
            case Closed():
                yield transcription.done(wish, finals)
            case Fault(fatal=True):
                yield transcription.failed(event)


async def _gone(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _name(filename: str | None) -> str:
    """What a client calls its file, fit for one line."""
    printable = "".join(filter(str.isprintable, filename or ""))
    return printable[-NAME_CHARACTERS:] or "the file"
