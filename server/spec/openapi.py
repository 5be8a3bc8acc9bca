"""`/openapi.json`: what the server does over HTTP (https://spec.openapis.org/oas/v3.1.1.html)."""

from collections.abc import Iterable
from typing import Any

from server.config import Settings
from server.dialects.openai import OpenAi
from server.dialects.transcription import FORMATS, GRANULARITIES
from server.page import TYPES
from server.spec.messages import (
    DURATION,
    ENGLISH,
    HOTWORDS,
    LOGPROB,
    PROMPT,
    VOCABULARIES,
    WORD,
    openai_error,
)
from server.spec.schema import (
    BYTES,
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    Schema,
    array,
    maybe,
    one_of,
    open_record,
    record,
)
from streaming.session import FINAL_PASSES

Document = dict[str, Any]

JSON, PLAIN = "application/json", "text/plain"
WHY = {  # a status that refuses
    "400": "the form or the audio cannot be used",
    "401": "the key is missing, wrong, or in the wrong place",
    "403": "the origin of the page is not allowed",
    "404": "the server's model has another name",
    "408": "the file came too slowly, or not at all",
    "413": "the file is too big",
    "500": "the server failed: try again",
    "503": "every slot is taken, or the server is ending",
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": INTEGER | {"minimum": 0}}}
OPENAI_ERROR = record(error=openai_error())
NATIVE_ERROR = VOCABULARIES["/v1/stream"].server["error"]


def openapi(settings: Settings, pages: Iterable[str]) -> Document:
    """The document of a server with these settings; `pages` are the paths of the demo page."""
    paths: Document = {
        "/v1/audio/transcriptions": {"post": _transcriptions(settings)},
        "/v1/models": {"get": _models()},
        "/v1/models/{id}": {"get": _one_model()},
        "/healthz": {"get": _health()},
        "/readyz": {"get": _readiness()},
        "/metrics": {"get": _operation("metrics", "Measurements, for Prometheus.", PLAIN, TEXT)},
        "/openapi.json": {"get": _operation("openapi", "This document.", JSON, {"type": "object"})},
        "/asyncapi.json": {"get": _operation("asyncapi", "The sockets.", JSON, {"type": "object"})},
    }
    for path in pages:
        paths.setdefault(path, {"get": _file(path)})
    if not settings.keys:
        for operations in paths.values():
            for operation in operations.values():
                operation.pop("security", None)
                operation["responses"].pop("401", None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "asr-stream: HTTP",
            "version": "1",
            "description": "Files in, words out, and what is around it. /asyncapi.json describes the sockets.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": OpenAi.key_place},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            }
        },
    }


def _transcriptions(settings: Settings) -> Document:
    limit = settings.max_upload_bytes
    wishes: dict[str, Schema] = {
        "model": TEXT | {"description": "any name: the server has one model"},
        "response_format": one_of(FORMATS),
        "language": ENGLISH,
        "prompt": PROMPT,
        "keywords[]": HOTWORDS,
        "stream": one_of(["true", "false", "1", "0"]),
        "include[]": array(TEXT | {"description": "logprobs, or what is ignored"}),
        "timestamp_granularities[]": array(one_of(GRANULARITIES)),
    }
    file = BYTES | {"description": f"WAV, FLAC, Ogg or MP3, {limit} bytes at most"}
    form = open_record(wishes, file=file, **wishes)
    texts = {media: {"schema": TEXT} for media in (PLAIN, "application/x-subrip", "text/vtt")}
    told: Document = {JSON: {"schema": _transcription()}, "text/event-stream": {"schema": _told()}}
    return {
        "operationId": "transcribe",
        "summary": "A file's words, all at once or, streamed, utterance by utterance.",
        "description": f"At most {settings.max_upload_s:g} s of audio; all of it is heard at once.",
        "security": [{"bearer": []}],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": {"description": "the words", "content": told | texts}}
        | _refusals(OPENAI_ERROR, "400", "401", "403", "408", "413", "500", "503"),
    }


def _transcription() -> Schema:
    """`json` and `verbose_json`."""
    segment = record(
        id=INTEGER,
        seek=INTEGER,
        **dict.fromkeys(("start", "end", "temperature", "avg_logprob", "compression_ratio"), NUMBER),
        text=TEXT,
        tokens=array(INTEGER),
        no_speech_prob=NUMBER,
    )
    verbose: dict[str, Schema] = {
        "task": {"const": "transcribe"},
        "language": {"const": "english"},
        "duration": NUMBER,
        "segments": array(segment),
        "words": array(WORD),
    }
    more: dict[str, Schema] = verbose | {"logprobs": array(LOGPROB)}
    return record(more, text=TEXT, usage=DURATION, **more)


def _told() -> Schema:
    """One of the events of a streamed answer."""
    logprobs: dict[str, Schema] = {"logprobs": array(LOGPROB)}
    delta = record(
        logprobs, type={"const": "transcript.text.delta"}, delta=TEXT, words=array(WORD), **logprobs
    )
    done = record(logprobs, type={"const": "transcript.text.done"}, text=TEXT, **logprobs)
    data = {"contentMediaType": JSON, "contentSchema": {"anyOf": [delta, done, OPENAI_ERROR]}}
    return open_record(data=TEXT | data)


def _models() -> Document:
    models = record(object={"const": "list"}, data=array(_model(), minItems=1))
    operation = _operation("models", "The server's model, and what may be asked of it.", JSON, models)
    return _for_known_clients(operation)


def _one_model() -> Document:
    operation = _operation("model", "The server's model by its name, as /v1/models has it.", JSON, _model())
    operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT}]
    operation["responses"] |= _refusals(OPENAI_ERROR, "404")
    return _for_known_clients(operation)


def _for_known_clients(operation: Document) -> Document:
    """It wants the key, in either place."""
    operation["security"] = [{"bearer": []}, {"token": []}]
    operation["responses"] |= _refusals(NATIVE_ERROR, "401", "403")
    return operation


def _model() -> Schema:
    least_to_most = record(**dict.fromkeys(("least", "most", "step", "default"), INTEGER))
    return record(
        id=TEXT,
        object={"const": "model"},
        created=INTEGER,
        owned_by=TEXT,
        language=TEXT,
        chunk_ms=least_to_most,
        pause_ms=least_to_most,
        delay_ms=maybe(least_to_most) | {"description": "null: the model has learnt when to wait"},
        final_pass=record(choices=array(one_of(FINAL_PASSES)), default=one_of(FINAL_PASSES)),
    )


def _health() -> Document:
    return _either("healthz", "Whether the model's thread lives.", record(status=TEXT))


def _readiness() -> Document:
    free = record(free_slots=INTEGER, slots=INTEGER, draining=FLAG)
    return _either("readyz", "Whether a conversation can be opened.", free)


def _file(path: str) -> Document:
    media = TYPES["." + path.rpartition(".")[2]] if "." in path else "text/html"
    name = path.rpartition("/")[2] or "page"
    operation = _operation(name, "A file of the demo page.", media, TEXT)
    operation["responses"]["304"] = {"description": "the copy of If-None-Match is still good"}
    return operation


def _operation(name: str, summary: str, media: str, schema: Schema) -> Document:
    """One that gives an answer of one kind."""
    answer = {"description": summary, "content": {media: {"schema": schema}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer}}


def _either(name: str, question: str, schema: Schema) -> Document:
    """200 for yes, 503 for no, and the same body."""
    operation = _operation(name, question, JSON, schema)
    operation["responses"]["503"] = {"description": "no", "content": {JSON: {"schema": schema}}}
    return operation


def _refusals(schema: Schema, *statuses: str) -> Document:
    return {
        status: {"description": WHY[status], "content": {JSON: {"schema": schema}}}
        | ({"headers": RETRY_AFTER} if status == "503" else {})
        for status in statuses
    }
