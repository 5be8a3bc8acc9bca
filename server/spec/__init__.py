"""What the server says of itself: `/openapi.json` for HTTP, `/asyncapi.json` for the sockets."""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.config import Settings
from server.dialects import Dialect
from server.spec.asyncapi import asyncapi
from server.spec.openapi import Document, openapi


def spec_routes(
    settings: Settings, dialects: Mapping[str, type[Dialect]], pages: Iterable[Route]
) -> list[Route]:
    """`/openapi.json` and `/asyncapi.json`; they tell no more than who reads README.md knows, so to anyone."""
    documents = {
        "/openapi.json": openapi(settings, [page.path for page in pages]),
        "/asyncapi.json": asyncapi(settings, dialects),
    }
    return [Route(path, _serve(document)) for path, document in documents.items()]


def _serve(document: Document) -> Callable[[Request], Awaitable[Response]]:
    response = JSONResponse(document)

    async def serve(_: Request) -> Response:
        return response

    return serve
