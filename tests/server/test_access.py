"""Who is refused, and how: the table of docs, each line of it against a real server."""

import asyncio
import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from server.app import DIALECTS, create_app
from server.config import Settings
from tests.server.running import Running, serving, until
from tests.server.test_transcriptions import PATH as FILES
from tests.server.test_transcriptions import Engine, error, post, recording

KEY = "a-key"
BEARER, TOKEN, BASIC = (f"Authorization: {scheme} {KEY}" for scheme in ("Bearer", "Token", "Basic"))
HIDDEN = f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{KEY}"
PAIR = f"Sec-WebSocket-Protocol: token, {KEY}"
WRONG = "Authorization: Bearer a-keY"
FOREIGN = "Origin: https://evil.example"
MODELS = "/v1/models"
MODEL = "/v1/models/fake.en"
LISTEN = "/v1/listen?encoding=linear16&sample_rate=16000"
QUERY = f"?token={KEY}"

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
)


async def ask(running: Running, path: str, *headers: str, host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Status, head and body of the answer to a handshake, an upload, or a question."""
    plain = path.partition("?")[0]
    method, more = ("POST", "Content-Length: 0\r\n") if plain == FILES else ("GET", "")
    more += UPGRADE if plain in DIALECTS else "Connection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    lines = "".join(f"{header}\r\n" for header in headers)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}{more}\r\n".encode())
    try:
        async with asyncio.timeout(20):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split()[1])
            return status, head, "" if status == 101 else (await reader.read()).decode()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("path", "header"),
    [
        *(("/v1/stream", header) for header in ("", WRONG, TOKEN, BASIC, PAIR, HIDDEN, f"X-Api-Key: {KEY}")),
        *((LISTEN, header) for header in ("", WRONG, BASIC, HIDDEN, f"Sec-WebSocket-Protocol: {KEY}, token")),
        *(("/v1/realtime", header) for header in ("", WRONG, TOKEN, PAIR)),
        *(("/vosk", header) for header in ("", WRONG, TOKEN, PAIR)),
        *((FILES, header) for header in ("", WRONG, TOKEN, HIDDEN, f"Cookie: token={KEY}")),
        *((MODELS, header) for header in ("", WRONG, TOKEN)),
        (MODEL, ""),
        ("/v1/stream?key=a-key", ""),
        ("/v1/stream?token=a-key%00", ""),
        (f"{LISTEN}&token={KEY}", ""),
        (f"/v1/realtime{QUERY}", ""),
        (f"{FILES}{QUERY}", ""),
    ],
)
def test_who_has_no_key_is_told_where_it_goes(path, header):
    async def main():
        async with serving(Engine(), api_key=KEY) as running:
            status, _, body = await ask(running, path, *filter(None, [header]))
            assert status == 401
            assert "a valid key is needed: " in body
            assert "Authorization" in body
            assert KEY not in body
            assert running.house.free_slots == 4

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        (f"/v1/stream{QUERY}", "", 101),
        ("/v1/stream", BEARER, 101),
        (LISTEN, TOKEN, 101),
        (LISTEN, BEARER, 101),
        (LISTEN, PAIR, 101),
        ("/v1/realtime", BEARER, 101),
        ("/v1/realtime", HIDDEN, 101),
        (f"/vosk{QUERY}", "", 101),
        ("/vosk", BEARER, 101),
        (f"{MODELS}{QUERY}", "", 200),
        (MODELS, BEARER, 200),
        (MODEL, BEARER, 200),
        (FILES, BEARER, 400),  # let in: what is missing is the form
    ],
)
def test_a_key_opens_where_it_belongs_but_to_no_foreign_page(path, header, status):
    async def main():
        async with serving(Engine(), api_key=KEY) as running:
            headers = list(filter(None, [header]))
            answered, head, body = await ask(running, path, *headers)
            assert answered == status, body
            assert "Sec-WebSocket-Extensions" not in head  # compression is not agreed to
            for origin in (FOREIGN, "Origin: null", f"Origin: http://127.0.0.1:{running.port}.evil.example"):
                refused, _, body = await ask(running, path, *headers, origin)
                assert refused == 403
                assert "ASR_STREAM_ORIGINS" in body
            await until(lambda: running.house.free_slots == 4)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/stream", LISTEN, "/v1/realtime", "/vosk", FILES, MODELS])
def test_a_name_that_somebody_led_to_this_machine_opens_nothing(path):
    """DNS rebinding: the page's origin is the host it asks, and only that name tells it from our own page."""

    async def main():
        async with serving(Engine(), allowed_hosts="asr.example, other.example") as running:
            for name in (
                "evil.example",
                f"evil.example:{running.port}",
                "127.0.0.1.evil.example",
                "[::1",
                "10.0.0.1",
            ):
                status, _, body = await ask(running, path, f"Origin: http://{name}", host=name)
                assert (status, "ASR_STREAM_ALLOWED_HOSTS" in body) == (403, True)
            for name in (
                "localhost",
                f"LOCALHOST:{running.port}",
                "127.0.0.1:1",
                "[::1]:8765",
                "asr.example.",
            ):
                status, _, body = await ask(running, path, f"Origin: http://{name}", host=name)
                assert status in (101, 200, 400), body
                assert "HOST" not in body
            await until(lambda: running.house.free_slots == 4)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 403),
        ({"host": "::1"}, 403),
        ({"host": "asr.example"}, 200),  # of the whole network: it says so when it starts
        ({"host": "0.0.0.0"}, 200),
        ({"api_key": KEY}, 200),
        ({"api_key": KEY, "allowed_hosts": "asr.example"}, 403),
        ({"allowed_hosts": "evil.example"}, 200),
    ],
)
def test_names_are_checked_where_nothing_else_is(settings, status):
    client = TestClient(create_app(Engine(), Settings(**settings)), "http://evil.example")
    assert client.get(MODELS, headers={"Authorization": f"Bearer {KEY}"}).status_code == status


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"GET /v1/stream?prompt={'a' * 9_000} HTTP/1.1", "no more than 8192 bytes"),
        ("GET /v1/stream HTTP/1.1\r\nContent-Length: 5", "request body"),
        ("GET /v1/stream HTTP/1.1" + 200 * "\r\nX: y", "no more than 128 headers"),
        ("GET /v1/stream?chunk_ms=7 HTTP/1.1", "chunk_ms must be"),
        ("GET /v1/listen HTTP/1.1", "encoding must be"),
        ("GET /v1/realtime?intent=conversation HTTP/1.1", "only transcribes"),
    ],
)
def test_a_handshake_that_cannot_be_served_is_answered(line, words):
    async def main():
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(f"{line}\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n".encode())
            async with asyncio.timeout(20):
                answer = (await reader.read()).decode()
            writer.close()
            assert answer.startswith("HTTP/1.1 400 ")
            assert words in answer
            await until(lambda: not running.server.server_state.connections)

    asyncio.run(main())


def frame(first: int, data: bytes, *, masked: bool = True, claimed: int | None = None) -> bytes:
    """A WebSocket frame by hand (RFC 6455, 5.2): `first` byte, length, a mask of zeros, data."""
    n = len(data) if claimed is None else claimed
    mask = 0x80 if masked else 0
    length = bytes([mask | n]) if n < 126 else struct.pack("!BQ", mask | 127, n)
    return bytes([first]) + length + (bytes(4) if masked else b"") + data


TEXT, BINARY, UNFINISHED, MORE, COMPRESSED, CLOSE, PING = 0x81, 0x82, 0x02, 0x00, 0x40, 0x88, 0x89
BOMB = zlib.compress(bytes(10**6), 9)


@pytest.mark.parametrize("path", ["/v1/stream", LISTEN, "/v1/realtime", "/vosk"])
@pytest.mark.parametrize(
    ("frames", "code", "words"),
    [
        (frame(BINARY, bytes(1_100)), 1009, b"frames hold at most 1024 bytes"),
        (frame(TEXT, b" " * 1_100), 1009, b"frames hold at most 1024 bytes"),
        (frame(BINARY, bytes(9_000)), 1009, b""),
        (frame(BINARY, b"", claimed=2**62), 1009, b""),
        (frame(UNFINISHED, bytes(1_000)) + 9 * frame(MORE, bytes(1_000)), 1009, b""),
        (frame(BINARY | COMPRESSED, BOMB), 1002, b""),
        (frame(BINARY, b"ab", masked=False), 1002, b""),
        (frame(0x83, b"ab"), 1002, b""),
        (frame(PING, bytes(126)), 1002, b""),
        (frame(MORE, b"ab"), 1002, b""),
        (frame(TEXT, b"\xff\xfe"), 1007, b""),
    ],
)
def test_frames_that_are_too_big_or_none_close_the_socket(path, frames, code, words):
    async def main():
        async with serving(max_frame_bytes=1024) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n".encode())
            async with asyncio.timeout(20):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
                writer.write(frames)
                await reader.readuntil(struct.pack("!H", code))
                assert await reader.readexactly(len(words)) == words
            writer.write(frame(CLOSE, b""))
            writer.close()
            await until(lambda: not running.house.connections and running.engine.free_slots == 4)

    asyncio.run(main())


def silence(seconds: int, kind: str, rate: int = 16_000) -> bytes:
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", rate, 1, format=kind) as file:
        for _ in range(seconds):  # libsndfile's Vorbis does not survive more at once
            file.write(np.zeros(rate, np.float32))
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (silence(300, "FLAC"), "at most 5 s"),
        (silence(300, "OGG"), "at most 5 s"),
        (silence(60, "MP3"), "at most 5 s"),
        (silence(4_000, "WAV", rate=1), "sample rate of 1 Hz"),
        (gzip.compress(recording(1, 2), mtime=0), "is not audio"),
    ],
)
def test_small_files_that_hold_hours_are_refused_as_they_are_decoded(data, words):
    async def main():
        async with serving(Engine(), max_upload_bytes=2_000_000, max_upload_s=5) as running:
            response = await post(running, data)
            assert (response.status_code, error(response)["code"]) == (400, "bad_audio")
            assert words in error(response)["message"]
            await until(lambda: running.engine.free_slots == 4)
            assert (await post(running, recording(5))).json()["text"] == "w5"

    asyncio.run(main())


def test_a_compressed_body_is_not_unpacked():
    async def main():
        async with serving(Engine(), api_key=KEY) as running:
            response = await post(
                running, recording(1), {"Authorization": f"Bearer {KEY}", "Content-Encoding": "gzip"}
            )
            assert response.json()["text"] == "w1"  # the bytes are taken as they are

    asyncio.run(main())


async def begin_upload(
    running: Running, data: bytes, **fields: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An upload of these fields and this file, up to where the file begins."""
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    file = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    end = b"\r\n--x--\r\n"
    length = len(parts + file) + len(data) + len(end)
    media = "multipart/form-data; boundary=x"
    head = f"POST {FILES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media}\r\nContent-Length: {length}"
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**10)
    writer.write(f"{head}\r\n\r\n{parts}{file}".encode())
    return reader, writer


def test_an_upload_in_drops_keeps_no_slot():
    async def main():
        async with serving(Engine(), idle_timeout_s=0.3) as running:
            reader, writer = await begin_upload(running, bytes(10**6))
            await until(lambda: running.house.free_slots == 3)

            async def drip() -> None:
                while not writer.is_closing():
                    writer.write(b"x")
                    await asyncio.sleep(0.01)

            dripping = asyncio.create_task(drip())
            async with asyncio.timeout(20):
                assert (await reader.readline()).split()[1] == b"408"
            await until(lambda: running.house.free_slots == 4)
            dripping.cancel()
            writer.close()

    asyncio.run(main())


def test_a_streamed_answer_that_nobody_reads_keeps_no_slot():
    async def main():
        async with serving(Engine(), idle_timeout_s=0.3, max_upload_s=10**6) as running:
            # a word and a pause, again and again: an answer far longer than what sockets hold
            data = recording(*[1, 0] * 8_000, kind="FLAC")
            _, writer = await begin_upload(running, data, stream="true")
            writer.transport.pause_reading()
            writer.write(data + b"\r\n--x--\r\n")
            await until(lambda: running.engine.sessions, timeout_s=60)
            await until(lambda: not running.engine.sessions and not running.house.connections, timeout_s=60)
            writer.transport.abort()
            metrics = (await running.get("/metrics"))[1]
            assert 'code="slow_reader"} 1.0' in metrics

    asyncio.run(main())
