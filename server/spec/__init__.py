"""What the server says of itself: `/openapi.json` for HTTP, `/asyncapi.json` for the sockets."""

from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.config import Settings
from server.dialects import Dialect
from server.spec.asyncapi import asyncapi
from server.spec.openapi import openapi


def spec_routes(
    settings: Settings, dialects: Mapping[str, type[Dialect]], pages: Iterable[Route]
) -> list[Route]:
    """`/openapi.json` and `/asyncapi.json`; they tell no more than who reads README.md knows, so to anyone."""
    http = JSONResponse(openapi(settings, [page.path_format for page in pages]))
    sockets = asyncapi(settings, dialects)

    async def tell_http(_: Request) -> Response:
        return http

    async def tell_sockets(request: Request) -> Response:
        """With the address that the client reached us by: what we listen on may be 0.0.0.0, or behind a proxy."""
        host = request.headers.get("host", f"{settings.host}:{settings.port}")
        protocol = "wss" if request.scope["scheme"] == "https" else "ws"
        return JSONResponse(sockets | {"servers": {"this": {"host": host, "protocol": protocol}}})

    return [Route("/openapi.json", tell_http), Route("/asyncapi.json", tell_sockets)]
