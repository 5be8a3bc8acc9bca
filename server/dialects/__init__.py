"""One wire protocol a file, each a translation wire <-> Session: frames and events in, steps out.

A dialect holds the state of one conversation and nothing else: no socket, no clock, no model, no asyncio.
The connection (server/connection.py) carries its steps out in order. A new protocol is a class that satisfies
`Dialect` and one line in the table of server/app.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from streaming.events import Event, Fault
from streaming.session import DEFAULT_DELAY_MS, SessionOptions

CLOSE_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code


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
    delay_ms: int = DEFAULT_DELAY_MS
    beam: int = 1
    prompt: str = ""
    hotwords: tuple[str, ...] = ()


class Dialect(Protocol):
    """The state of one conversation in one wire protocol."""

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> Self:
        """Reads the request's query; raises ValueError with one line for the client."""

    def greet(self, session: str) -> list[Step]:
        """The socket is open; `session` names the conversation, here and in the logs."""

    def receive(self, frame: str | bytes) -> list[Step]:
        """A frame came. Never raises: the client's mistakes are fatal Faults."""

    def render(self, event: Event) -> list[Step]:
        """The session (or the server: a Fault) said this; ends with Close after Closed or a fatal Fault."""

    def progress(self, audio_ms: int) -> list[Step]:
        """Audio is decoded up to `audio_ms`, and the events so far are rendered."""

    def leave(self, code: int, why: str) -> list[Step]:
        """The server wants to end: finish the session, and when it is Closed, close with `code` and `why`."""
