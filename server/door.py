"""Who may come in: names, browsers' origins, keys. A refusal is an HTTP status before the upgrade."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from server.config import Settings
from server.dialects import Admission, Close
from server.dialects.native import Native

RETRY_AFTER_S = 5


class AdmissionError(Exception):
    """Why a client may not come in: `status` for HTTP, `code` for machines, the message says what to do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self, admission: type[Admission] = Native) -> JSONResponse:
        """The refusal in the words of the client's protocol."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else None
        return JSONResponse(admission.refusal(self.code, str(self)), self.status, headers)

    async def tell(self, socket: WebSocket, admission: type[Admission]) -> None:
        """Refuses the upgrade; where ASGI cannot say why, accepts it and says so in a close frame."""
        if "websocket.http.response" in socket.scope.get("extensions", {}):
            await socket.send_denial_response(self.response(admission))
        else:
            close = Close(1013 if self.status == 503 else 1008, str(self))
            await socket.accept()
            await socket.close(close.code, close.reason)


def check(request: HTTPConnection, settings: Settings, admission: type[Admission] = Native) -> None:
    """Raises AdmissionError for a wrong key (401), a browser's foreign origin or a foreign name (403)."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if (settings.private or settings.allowed_hosts) and not host_allowed(host, settings):
        raise AdmissionError(
            403, "bad_host", f"{host[:60]!r} is no name of this server: add it to ASR_STREAM_ALLOWED_HOSTS"
        )
    if origin is not None and not origin_allowed(origin, host, settings.origins):
        raise AdmissionError(
            403, "bad_origin", f"origin {origin[:60]!r} is not allowed: add it to ASR_STREAM_ORIGINS"
        )
    if settings.keys:
        given = admission.key(request.headers, request.query_params)
        if not any(key_matches(given, key) for key in settings.keys):
            raise AdmissionError(401, "bad_key", f"a valid key is needed: {admission.key_place}")


def host_allowed(host: str, settings: Settings) -> bool:
    """Whether a Host header names this server: loopback, what it is bound to, or what is listed.

    A page can have its own name lead to 127.0.0.1 (DNS rebinding). Its origin then equals the host, and nothing but
    that name tells it from our own page.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        if ipaddress.ip_address(name).is_loopback:
            return True
    except ValueError:
        pass  # a name
    return name in {"localhost", settings.host.lower(), *map(str.lower, settings.allowed_hosts)}


def origin_allowed(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of `origin` may connect: our own pages always, others if they are listed."""
    return "*" in allowed or origin in allowed or origin.partition("://")[2] == host


def key_matches(given: str, key: str) -> bool:
    """In constant time, so that answers do not tell how much of a guess was right."""
    return hmac.compare_digest(given.encode(), key.encode())
