"""Who may come in: keys, browsers' origins, free slots. A refusal is an HTTP status before the upgrade."""

import hmac

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
    """Raises AdmissionError for a wrong key (401) or a browser's foreign origin (403)."""
    origin = request.headers.get("origin")
    if origin is not None and not origin_allowed(origin, request.headers.get("host", ""), settings.origins):
        raise AdmissionError(
            403, "bad_origin", f"origin {origin[:60]!r} is not allowed: add it to ASR_STREAM_ORIGINS"
        )
    if settings.keys:
        given = admission.key(request.headers, request.query_params)
        if not any(key_matches(given, key) for key in settings.keys):
            raise AdmissionError(401, "bad_key", f"a valid key is needed: {admission.key_place}")


def origin_allowed(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of `origin` may connect: our own pages always, others if they are listed."""
    return "*" in allowed or origin in allowed or origin.partition("://")[2] == host


def key_matches(given: str, key: str) -> bool:
    """In constant time, so that answers do not tell how much of a guess was right."""
    return hmac.compare_digest(given.encode(), key.encode())
