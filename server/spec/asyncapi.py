"""`/asyncapi.json`: the sockets, one channel a dialect (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from server.config import Settings
from server.dialects import CLOSE_CODES, Dialect
from server.spec.messages import VOCABULARIES, Vocabulary
from server.spec.schema import BYTES, Schema, open_record

Document = dict[str, Any]

CLOSES = {  # besides those of fatal faults
    1000: "done; or idle: the reason says which",
    1002: "frames that are no WebSocket's, compressed ones for example",
    1011: "any other fault: the server's own",
}
REFUSALS = {  # before the upgrade
    400: "the query cannot be served",
    401: "the key is missing, wrong, or in the wrong place",
    403: "the origin of the page is not allowed",
    503: "every slot is taken, or the server is ending: Retry-After says when to come again",
}


def asyncapi(settings: Settings, dialects: Mapping[str, type[Dialect]]) -> Document:
    """The document of a server with these settings, and these dialects by path."""
    named = {dialect.__name__.lower(): (path, dialect) for path, dialect in dialects.items()}
    channels = {name: _channel(name, path, dialect) for name, (path, dialect) in named.items()}
    operations = {
        f"{name}.{action}": {
            "action": action,  # as the server does it
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{kind}"} for kind in kinds],
        }
        for name, (path, _) in named.items()
        for action, kinds in (("receive", VOCABULARIES[path].client), ("send", VOCABULARIES[path].server))
    }
    messages = {
        f"{name}.{kind}": _message(kind, schema)
        for name, (path, _) in named.items()
        for kind, schema in VOCABULARIES[path].messages.items()
    }
    limits = (
        f"Frames hold at most {settings.max_frame_bytes} bytes. Who sends nothing for"
        f" {settings.idle_timeout_s:g} s is given its finals and closed."
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "asr-stream: sockets",
            "version": "1",
            "description": f"Audio in, words out while they are spoken. {limits} /openapi.json describes HTTP.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _channel(name: str, path: str, dialect: type[Dialect]) -> Document:
    vocabulary: Vocabulary = VOCABULARIES[path]
    query = open_record(vocabulary.query, **vocabulary.query)
    return {
        "address": path,
        "description": inspect.getdoc(inspect.getmodule(dialect)),
        "messages": {kind: {"$ref": f"#/components/messages/{name}.{kind}"} for kind in vocabulary.messages},
        "bindings": {"ws": {"method": "GET", "query": query, "bindingVersion": "0.1.0"}},
        "x-key": dialect.key_place,
        "x-subprotocols": list(dialect.subprotocols),
        "x-refusals": {str(status): why for status, why in REFUSALS.items()},
        "x-close-codes": _closes(),
    }


def _closes() -> dict[str, list[str]]:
    """Why a socket is closed, by code: codes of faults, or words."""
    closes: dict[int, list[str]] = defaultdict(list)
    for code, why in CLOSES.items():
        closes[code].append(why)
    for fault, code in CLOSE_CODES.items():
        closes[code].append(fault)
    return {str(code): closes[code] for code in sorted(closes)}


def _message(kind: str, schema: Schema) -> Document:
    """Texts are JSON; audio is bytes."""
    media = {"contentType": "application/octet-stream"} if schema is BYTES else {}
    return {"name": kind, **media, "payload": schema}
