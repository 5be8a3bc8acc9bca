"""Log lines: one an event, found by its fields; nothing that was said, and no key."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from server.log import JsonFormatter, SessionLog, TextFormatter, fields, session_log


def test_a_line_of_a_conversation_bears_its_id_and_its_fields(caplog):
    caplog.set_level(logging.INFO, "asr_stream")
    session_log("a1b2").info("gone", extra={"close": 1001, "why": 'told "so"\nin lines', "by": None})
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
    assert line == {
        "level": "info", "logger": "asr_stream.session", "session": "a1b2",
        "message": "gone", "close": 1001, "why": 'told "so"\nin lines',
    }  # fmt: skip
    text = TextFormatter().format(record)
    assert text.endswith(r'[a1b2] gone close=1001 why="told \"so\"\nin lines" by=null')
    assert "\n" not in text


def test_a_line_outside_of_conversations(caplog):
    caplog.set_level(logging.INFO, "asr_stream")
    logging.getLogger("asr_stream.server").warning("refused", extra=fields(path="/vosk"))
    (record,) = caplog.records
    assert json.loads(JsonFormatter().format(record))["path"] == "/vosk"
    assert "session" not in JsonFormatter().format(record)
    assert TextFormatter().format(record).endswith('asr_stream.server [-] refused path="/vosk"')


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_failure_is_told_with_its_place(caplog, formatter):
    try:
        raise RuntimeError("as it was told to")
    except RuntimeError:
        session_log("a1b2").exception("the model failed", extra={"rows": 3})
    told = formatter.format(caplog.records[0])
    assert "a1b2" in told
    assert "test_log.py" in told
    assert isinstance(session_log("x"), SessionLog)


PROGRAM = """
import logging, warnings
from server.log import configure_logging
configure_logging("debug", "json")
logging.getLogger("asr_stream.session").debug("ours")
logging.getLogger("asr.weights").info("ours, too")
logging.getLogger("numba").info("a library's, with whatever it holds")
logging.getLogger("uvicorn.error").info('"WebSocket /v1/stream?token=key" [accepted]')
logging.getLogger("uvicorn.error").warning("trouble")
warnings.warn("an old name")
"""


def test_every_line_is_json_and_libraries_say_only_what_is_wrong():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert messages[:3] == ["ours", "ours, too", "trouble"]
    assert "an old name" in messages[3]
    assert len(messages) == 4
