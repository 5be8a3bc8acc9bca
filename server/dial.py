"""Reaching a server: one connection, the native protocol's messages as a client reads them, its errors."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from streaming.events import Bookmark, Closed, Endpoint, Event, Fault, Final, Finalized, Partial, Word

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")

SAMPLE_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1}
BUSY = {429, 502, 503, 504}  # HTTP statuses that pass
MAX_MESSAGE_BYTES = 2**22
STREAM = "/v1/stream"
EVENTS: dict[str, type[Partial | Final | Endpoint | Finalized | Closed]] = {
    "partial": Partial,
    "final": Final,
    "endpoint": Endpoint,
    "finalized": Finalized,
    "closed": Closed,
}


class ServerError(RuntimeError):
    """The server cannot be used. `code` is for machines, `message` says what to do; `transient`: may pass."""

    def __init__(self, code: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = transient


async def dial(url: str, token: str | None = None) -> ClientConnection:
    """Opens a WebSocket. Raises ServerError."""
    where = urlunsplit(urlsplit(url)._replace(query=""))  # for messages: a query may hold a key
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    try:
        return await connect(
            url, additional_headers=headers, compression=None, close_timeout=1, max_size=MAX_MESSAGE_BYTES
        )
    except InvalidStatus as error:
        said = json_object((error.response.body or b"").decode(errors="replace"))
        status = error.response.status_code
        silent = f"HTTP {status}" + ("" if status in BUSY else f": is it ADDRESS{STREAM}?")
        message = f"{where} refused: {said.get('message', silent)}"
        raise ServerError(str(said.get("code", "refused")), message, transient=status in BUSY) from error
    except (OSError, InvalidHandshake) as error:  # OSError: no route, no listener, or no answer in time
        message = f"cannot connect to {where} ({error}): is it running? start one with `asr-stream serve`"
        raise ServerError("unreachable", message, transient=True) from error
    except (InvalidURI, ValueError) as error:  # the latter: its port is no number, or too great a one
        raise ServerError("bad_url", f"{where} is not an address: use ws://HOST:PORT{STREAM}") from error


def with_query(url: str, query: Mapping[str, object]) -> str:
    """`url` with these parameters added to its query."""
    parts = urlsplit(url)
    added = urlencode({key: value for key, value in query.items() if value is not None})
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, added)))))


def json_object(text: str) -> dict[str, Any]:
    """The object that `text` says; empty if it says none."""
    try:
        message = json.loads(text)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def read_event(message: dict[str, Any]) -> Event | None:
    """The event that a server's message says; None for ready and progress."""
    if message.get("type") == "error":
        return _read(Fault, message)
    kind = EVENTS.get(str(message.get("type")))
    if kind is None:
        return None
    if "words" in message and kind in (Partial, Final):
        message = {**message, "words": tuple(_read(Word, word) for word in message["words"])}
    return _read(kind, message)


def read_bookmark(message: dict[str, Any]) -> Bookmark | None:
    """The bookmark that a server's message says, if it says one."""
    return _read(Bookmark, message) if message.get("type") == "bookmark" else None


def _read(kind: type[R], message: Mapping[str, Any]) -> R:
    """One of `kind` with what it knows of the message: a newer server may tell more."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in message.items() if name in known})


def encode(samples: np.ndarray, encoding: str) -> bytes:
    """float32 samples in -1..1, (n,) or (n, channels), as the bytes of s16le or f32le. Raises ValueError."""
    if encoding == "f32le":
        return samples.astype("<f4").tobytes()
    if encoding == "s16le":
        return (np.clip(samples, -1.0, 1.0) * 32_767).round().astype("<i2").tobytes()
    raise ValueError(f"samples cannot be sent as {encoding}: use s16le or f32le, or send bytes")
