"""Log lines: one format for everything, a session id on every line of a conversation, never a transcript."""

import json
import logging
import sys
from typing import Literal


class TextFormatter(logging.Formatter):
    """`time level logger [session] message`"""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s [%(session)s] %(message)s", defaults={"session": "-"}
        )


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "session": getattr(record, "session", None),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None})


def configure_logging(level: str, line_format: Literal["text", "json"]) -> None:
    """Sends all logs to stderr. uvicorn's only from warnings on: its access lines hold queries, so keys."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if line_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_not_a_refusal)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _not_a_refusal(record: logging.LogRecord) -> bool:
    """uvicorn 0.54 takes a refused upgrade, when it was answered as ASGI has it, for a broken handshake."""
    return not record.getMessage().startswith("ASGI callable returned without completing handshake")


def session_log(session: str) -> "logging.LoggerAdapter[logging.Logger]":
    """A logger whose every line bears the conversation's id."""
    return logging.LoggerAdapter(logging.getLogger("asr_stream.session"), {"session": session})
