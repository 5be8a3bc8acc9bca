"""Log lines: one an event, a session id on every line of a conversation, never a transcript, never a key."""

import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.requests import HTTPConnection

OURS = ("asr_stream", "asr", "streaming", "adapters", "server")  # the service's, and the rooms'
LEVELS = logging.getLevelNamesMapping()


class TextFormatter(logging.Formatter):
    """`time level logger [session] message name="value" ...`"""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s [%(session)s] %(message)s", defaults={"session": "-"}
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{k}={json.dumps(v)}" for k, v in fields.items())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line; times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "session": getattr(record, "session", None),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None})


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """Every line bears the conversation's id; what a call gives as `extra` are fields of its line."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **fields(**kwargs.get("extra") or {})}}


def configure_logging(level: str, line_format: Literal["text", "json"]) -> None:
    """Sends all logs to stderr: ours from `level` on, others' from warnings on.

    uvicorn's access lines hold queries, so keys; what libraries say while debugging may hold anything.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if line_format == "json" else TextFormatter())
    logging.basicConfig(level=max(logging.WARNING, LEVELS[level.upper()]), handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)


def session_log(session: str) -> SessionLog:
    """A logger whose every line bears the conversation's id."""
    return SessionLog(logging.getLogger("asr_stream.session"), {"session": session})


def whence(client: HTTPConnection) -> dict[str, object]:
    """Fields that tell who asks for what; the query stays out, since it may hold a key."""
    return {"path": client.scope["path"], "client": client.client.host if client.client else None}


def fields(**values: object) -> dict[str, object]:
    """The `extra` of a line outside of conversations, for its fields to be found by name."""
    return {"fields": values}
