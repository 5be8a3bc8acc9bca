"""uvicorn's protocols, for clients that mean no good: slow heads of requests, and pings whose pongs nobody reads."""

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


class PromptHttp(H11Protocol):
    """HTTP where the head of a request must be complete `timeout_keep_alive` seconds after the connection or
    the last answer.

    uvicorn's own timer runs only after an answer, and any byte stops it: half a head, of a handshake too, would
    hold its connection for ever (slowloris), as would the slow body of a request that has been answered.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._relax()

    def _watch(self) -> None:
        """The timer runs while no request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._relax()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _relax(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


class ModestWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that answers no ping while the client does not read, so that pongs never pile up.

    RFC 6455, 5.5.3: of several pings, the newest alone may be answered.
    """

    def data_received(self, data: bytes) -> None:
        """A handshake that websockets cannot read (it has a limit of 8 KiB a line) is refused, not left waiting."""
        super().data_received(data)
        error = self.conn.handshake_exc
        if error is not None and not self.handshake_initiated and not self.transport.is_closing():
            why = f"the handshake cannot be read: {error.__cause__ or error}\n"
            self.transport.write(self.conn.reject(400, why).serialize())
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # the pong: forgotten

    async def send(self, message: "ASGISendEvent") -> None:
        """A refusal in words completes the handshake; uvicorn would log an error (its pull request 3138)."""
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent
