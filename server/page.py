"""The demo page at `/`, static files with strict headers, and `/v1/models`: what this server offers."""

import hashlib
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.config import Settings
from server.dialects import Terms
from server.dialects.openai import error_body
from server.door import AdmissionError, check
from streaming.session import CHUNK_MS, DELAY_MS, PAUSE_MS

STATIC = Path(__file__).parent / "static"
TYPES = {  # not the machine's own table, which on some calls JavaScript text/plain
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
STEP_MS = 20  # of chunks and delays: an encoder frame
HEADERS = {
    # A browser asks each time whether its copy is still good: a new server never meets an old script.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "media-src blob:",  # the file that is played through
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Asset:
    """One file of the page, read once: served whole, or as 304 to whoever has it."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.media_type = TYPES[path.suffix]
        self.headers = HEADERS | {"ETag": f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'}

    async def serve(self, request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if self.headers["ETag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, media_type=self.media_type, headers=self.headers)


def page_routes(terms: Terms, settings: Settings) -> list[Route]:
    """`/`, the files under `/static/`, `/v1/models`, and one of them."""
    started = int(time.time())

    async def models(request: Request) -> Response:
        """The list that OpenAI's clients know, with what may be chosen besides; 401 as the door says it."""
        try:
            check(request, settings)
        except AdmissionError as refusal:
            return refusal.response()
        return JSONResponse({"object": "list", "data": [_offer(terms, started)]})

    async def model(request: Request) -> Response:
        """The one of the list that is called so, or OpenAI's 404."""
        try:
            check(request, settings)
        except AdmissionError as refusal:
            return refusal.response()
        if (name := request.path_params["id"]) != terms.model:
            why = f"there is no model {name[:60]!r} here: /v1/models tells which there is"
            return JSONResponse({"error": error_body("model_not_found", why, "model")}, 404)
        return JSONResponse(_offer(terms, started))

    files = [path for path in STATIC.iterdir() if path.suffix in TYPES and path.name != "index.html"]
    return [
        Route("/", Asset(STATIC / "index.html").serve),
        *(Route(f"/static/{path.name}", Asset(path).serve) for path in sorted(files)),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", model),  # which may be the path of a checkpoint
    ]


def _offer(terms: Terms, started: int) -> dict[str, object]:
    """The model of this server, and what a conversation with it may ask for; times in milliseconds."""
    return {
        "id": terms.model,
        "object": "model",
        "created": started,
        "owned_by": "asr-stream",
        "language": "en",
        "chunk_ms": _range(CHUNK_MS, terms.chunk_ms),
        "delay_ms": None if terms.delay_ms is None else _range(DELAY_MS, terms.delay_ms),
        "pause_ms": _range(PAUSE_MS, terms.pause_ms),
        "final_pass": {"choices": terms.final_passes, "default": terms.final_pass},
    }


def _range(limits: tuple[int, int], default: int) -> dict[str, int]:
    return {"least": limits[0], "most": limits[1], "step": STEP_MS, "default": default}
