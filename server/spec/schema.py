"""JSON Schema in few words: what OpenAPI 3.1 (draft 2020-12) and AsyncAPI 3.0 (draft 07) both understand."""

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}  # of certainty
BYTES: Schema = {"type": "string", "format": "binary"}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def one_of(values: Iterable[object], **more: Any) -> Schema:
    return {"enum": list(values), **more}


def between(low: float, high: float, kind: Schema = INTEGER, **more: Any) -> Schema:
    return {**kind, "minimum": low, "maximum": high, **more}


def maybe(schema: Schema) -> Schema:
    """`schema`, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(optional: Iterable[str] = (), /, **fields: Schema) -> Schema:
    """An object with these fields and no others, all of them required but for the optional ones."""
    return open_record(optional, **fields) | {"additionalProperties": False}


def open_record(optional: Iterable[str] = (), /, **fields: Schema) -> Schema:
    """An object in which other fields are ignored."""
    required = [name for name in fields if name not in set(optional)]
    return {"type": "object", "properties": fields} | ({"required": required} if required else {})


def fields_of(kind: type) -> dict[str, Schema]:
    """What a dataclass of ours looks like in JSON, field by field; dataclasses within it are written out."""
    schema = TypeAdapter(kind).json_schema(mode="serialization")
    return {name: _plain(each, schema.get("$defs", {})) for name, each in schema["properties"].items()}


def _plain(schema: Any, defined: dict[str, Schema]) -> Any:
    """Without references, titles and defaults."""
    if isinstance(schema, list):
        return [_plain(each, defined) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        inner = _plain(defined[schema["$ref"].rpartition("/")[2]], defined)
        return record(**inner["properties"])
    return {
        key: {name: _plain(each, defined) for name, each in value.items()}
        if key == "properties"
        else _plain(value, defined)
        for key, value in schema.items()
        if key not in ("title", "default", "description")
    }
