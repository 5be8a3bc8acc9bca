"""One wire protocol a file, each a translation wire <-> Session: frames and events in, steps out.

A dialect holds the state of one conversation and nothing else: no socket, no clock, no model, no asyncio.
The connection (server/connection.py) carries its steps out in order. A new protocol is a class that satisfies
`Dialect` and one line in the table of server/app.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeGuard

from streaming.events import Event, Fault
from streaming.session import DEFAULT_DELAY_MS, DEFAULT_PAUSE_MS, SessionOptions

CLOSE_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code
CLOSE_CODES = {  # by the code of a fatal Fault; anything else is the server's own trouble, 1011
    "draining": 1001,
    "bad_type": 1003,
    "bad_text": 1007,
    "bad_audio": 1007,
    "bad_order": 1008,
    "too_big": 1009,
    "full": 1013,  # "try again later": clients reconnect, and resume where they can
    "slow_reader": 1013,
}


@dataclass(frozen=True)
class Open:
    """Open the session; comes once, before any other call on it."""

    options: SessionOptions


@dataclass(frozen=True)
class Audio:
    """Hand these bytes, in the encoding of the options, to the session."""

    data: bytes


@dataclass(frozen=True)
class Finalize:
    """End the current utterance now."""


@dataclass(frozen=True)
class Finish:
    """There is no more audio: flush, and end with Closed."""


@dataclass(frozen=True)
class Send:
    """Send a frame: text or binary."""

    frame: str | bytes


@dataclass(frozen=True)
class Close:
    """Close the socket, after what was sent before; nothing follows."""

    code: int
    why: str

    @classmethod
    def after(cls, fault: Fault) -> "Close":
        """The close that ends a conversation with a fatal fault."""
        return cls(CLOSE_CODES.get(fault.code, 1011), fault.message)

    @property
    def reason(self) -> str:
        """`why`, cut to what a close frame can carry."""
        return self.why.encode()[:CLOSE_REASON_BYTES].decode(errors="ignore")


Step = Open | Audio | Finalize | Finish | Send | Close | Fault
"""What to do next. A Fault in answer to a frame is the client's mistake; it comes back through `render`."""


@dataclass(frozen=True)
class Terms:
    """What a server offers: the defaults for what a client leaves out, and the limits it is told of."""

    model: str
    chunk_ms: int
    final_pass: str
    max_frame_bytes: int
    max_backlog_s: float
    idle_timeout_s: float
    delay_ms: int | None = DEFAULT_DELAY_MS  # None: the model has learnt when to wait, and cannot be asked to
    pause_ms: int = DEFAULT_PAUSE_MS
    beam: int = 1
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    final_passes: tuple[str, ...] = ("full", "none")

    def options(self) -> dict[str, Any]:
        """The part of SessionOptions that a server sets, for a client to override."""
        names = ("chunk_ms", "pause_ms", "final_pass", "beam", "prompt", "hotwords")
        return {name: getattr(self, name) for name in names} | {"delay_ms": self.delay_ms or 0}


class Admission(Protocol):
    """How clients of a protocol show their key, and how they are told that they may not come in."""

    key_place: ClassVar[str]
    """Where the key goes, to be told to who comes without."""

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The key that the request shows, empty if none; names of headers are in lower case."""

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        """The JSON body of the HTTP answer that refuses a client."""


class Dialect(Admission, Protocol):
    """The state of one conversation in one wire protocol."""

    subprotocols: ClassVar[tuple[str, ...]]
    """WebSocket subprotocols that the server agrees to, where a client offers one."""

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> Self:
        """Reads the request's query; raises ValueError with one line for the client."""

    def greet(self, session: str) -> list[Step]:
        """The socket is open; `session` names the conversation, here and in the logs."""

    def receive(self, frame: str | bytes) -> list[Step]:
        """A frame came. Never raises: the client's mistakes are Faults, fatal where the protocol says so."""

    def render(self, event: Event) -> list[Step]:
        """The session (or the server: a Fault) said this; ends with Close after Closed or a fatal Fault."""

    def progress(self, audio_ms: int) -> list[Step]:
        """Audio is decoded up to `audio_ms`, and the events so far are rendered."""

    def leave(self, code: int, why: str) -> list[Step]:
        """The server wants to end: finish the session, and when it is Closed, close with `code` and `why`.

        At once where the client has said that it resumes.
        """


@dataclass
class Lifecycle:
    """What every dialect does alike: the session is opened once, finished once, and the socket closed after."""

    options: SessionOptions
    opened: bool = field(default=False, init=False)
    finished: bool = field(default=False, init=False)
    farewell: Close = field(default=Close(1000, "done"), init=False)

    def open(self) -> list[Step]:
        """The call that opens the session, the first time."""
        if self.opened:
            return []
        self.opened = True
        return [Open(self.options)]

    def finish(self) -> list[Step]:
        self.finished = True
        return [*self.open(), Finish()]

    def progress(self, audio_ms: int) -> list[Step]:
        return []

    def leave(self, code: int, why: str) -> list[Step]:
        self.farewell = Close(code, why)
        return [] if self.finished else self.finish()


def authorization(headers: Mapping[str, str], *schemes: str) -> str:
    """The credentials of an Authorization header of one of these schemes (lower case); empty if there are none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() in schemes else ""


def offered(headers: Mapping[str, str]) -> list[str]:
    """The WebSocket subprotocols that a client offers, in which browsers must hide their key."""
    return [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]


def json_object(frame: str) -> dict[str, Any]:
    """A text frame that must hold a JSON object; ValueError with one line for the client."""
    try:
        value = json.loads(frame)
    except (ValueError, RecursionError):
        raise ValueError("a text frame must be JSON") from None
    if not isinstance(value, dict):
        raise ValueError("a text frame must be a JSON object")
    return value


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string that can be encoded: JSON can escape halves of characters, which cannot."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def plain(word: str) -> str:
    """A word without capitals and the punctuation around it; one that is nothing else stays."""
    first = next((i for i, char in enumerate(word) if char.isalnum()), None)
    if first is None:
        return word
    last = max(i for i, char in enumerate(word) if char.isalnum())
    return word[first : last + 1].lower()
