"""The app in this process, with a model that says nonsense: real frames of all dialects."""

import base64
import contextlib
import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import streaming.engine
from asr.checkpoint import Whisper
from server.app import House, create_app
from server.config import Settings
from streaming.engine import Engine
from streaming.recognizer import WhisperRecognizer
from tests.streaming.test_engine import SHORT, LoudVoice, speech

Frame = str | bytes

AUDIO = (speech((0.1, 1.6), (2.4, 3.4), seconds=6) * 2**15).astype("<i2").tobytes()
"""Two utterances and pauses after them, 16 kHz s16le."""


@contextlib.contextmanager
def nonsense(tiny: Whisper, monkeypatch: pytest.MonkeyPatch, **settings: object) -> Iterator[TestClient]:
    """A client of a fresh app; the engine ends with it."""
    monkeypatch.setattr(streaming.engine, "VoiceActivity", LoudVoice)
    engine = Engine(WhisperRecognizer(tiny), tiny, "tiny", slots=4, endpoint=SHORT)
    with TestClient(
        create_app(engine, Settings(allowed_hosts=("testserver",), **{"pause_ms": 300} | settings))
    ) as client:
        yield client


def house(client: TestClient) -> House:
    return client.app.state.house


def converse(client: TestClient, url: str, *frames: Frame) -> tuple[list[Frame], int]:
    """What is heard after all these frames, until the socket closes, and the code of its close."""
    heard: list[Frame] = []
    with client.websocket_connect(url) as socket:
        for frame in frames:
            (socket.send_text if isinstance(frame, str) else socket.send_bytes)(frame)
        try:
            while True:
                message = socket.receive()
                socket._raise_on_close(message)
                heard.append(message.get("text") or message["bytes"])
        except WebSocketDisconnect as closed:
            return heard, closed.code


def blocks(audio: bytes, n_bytes: int = 9_600) -> list[bytes]:
    return [audio[at : at + n_bytes] for at in range(0, len(audio), n_bytes)]


def said(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def appended(audio: bytes) -> str:
    """For OpenAI Realtime."""
    return said("input_audio_buffer.append", audio=base64.b64encode(audio).decode())
