"""Files over HTTP on a real server, with a model that hears numbers."""

import asyncio
import errno
import io
import json
import tempfile
from collections.abc import Callable

import httpx2
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette import formparsers

from asr.audio import Samples
from server.dialects import Terms
from server.dialects.transcription import FORMATS, Wish
from streaming.session import SessionOptions
from tests.server.fakes import FakeEngine, FakeSession, speech
from tests.server.running import Running, serving, until

PATH = "/v1/audio/transcriptions"
TERMS = Terms("fake.en", 300, "full", max_frame_bytes=2**20, max_backlog_s=5, idle_timeout_s=10)


class Engine(FakeEngine):
    """Its sessions take samples, too."""

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> FakeSession:
        session = super().open(options, notify=notify)

        def receive_samples(samples: Samples) -> None:
            session.receive((samples * 2**15).round().astype("<i2").tobytes())

        session.receive_samples = receive_samples
        return session


def recording(*words: int, kind: str = "WAV") -> bytes:
    """An audio file that says these words."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(speech(*words), "<i2"), 16_000, format=kind, subtype="PCM_16")
    return file.getvalue()


async def post(
    running: Running, data: bytes, headers: dict[str, str] | None = None, **fields: object
) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20) as client:
        return await client.post(
            f"http://127.0.0.1:{running.port}{PATH}",
            files={"file": ("a.wav", data)},
            data=fields,
            headers=headers,
        )


def error(response: httpx2.Response) -> dict[str, object]:
    (body,) = response.json().values()
    return body


def transcribed(*words: int, engine: Engine | None = None, **fields: object) -> httpx2.Response:
    async def main() -> httpx2.Response:
        async with serving(engine or Engine()) as running:
            response = await post(running, recording(*words), **fields)
            await until(lambda: not running.house.connections)
            assert running.engine.free_slots == running.engine.slots
            return response

    return asyncio.run(main())


def test_json_is_the_default():
    response = transcribed(1, 2, 0, 3)
    assert response.status_code == 200
    assert response.json() == {"text": "w1 w2 w3", "usage": {"type": "duration", "seconds": 0.4}}


def test_a_long_file_is_fed_as_the_model_goes():
    words = [n % 90 + 1 if n % 30 else 0 for n in range(600)]  # a minute
    response = transcribed(*words, engine=Engine(step_s=0.002))
    assert response.json()["text"] == " ".join(f"w{word}" for word in words if word)


@pytest.mark.parametrize(
    ("form", "media_type", "text"),
    [
        ("text", "text/plain", "w1 w2\n"),
        ("srt", "application/x-subrip", "1\n00:00:00,000 --> 00:00:01,000\nw1 w2\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nw1 w2\n"),
    ],
)
def test_texts_and_subtitles(form, media_type, text):
    response = transcribed(1, 2, response_format=form)
    assert response.headers["content-type"].startswith(media_type)
    assert response.text == text


def test_verbose_json_has_segments_and_words():
    answer = transcribed(1, 2, 0, 3, response_format="verbose_json").json()
    assert (answer["duration"], answer["language"], answer["text"]) == (0.4, "english", "w1 w2 w3")
    assert [(s["id"], s["start"], s["end"], s["text"]) for s in answer["segments"]] == [
        (0, 0.0, 0.2, " w1 w2"),
        (1, 0.3, 0.4, " w3"),
    ]
    assert answer["words"][2] == {"word": "w3", "start": 0.3, "end": 0.4, "confidence": 1.0}


def test_granularities_are_chosen():
    answer = transcribed(1, **{"response_format": "verbose_json", "timestamp_granularities[]": "word"}).json()
    assert "words" in answer
    assert "segments" not in answer


def test_a_stream_tells_utterances_as_they_end():
    response = transcribed(1, 2, 0, 3, stream="true", **{"include[]": "logprobs"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert [event["type"] for event in events] == [*["transcript.text.delta"] * 2, "transcript.text.done"]
    assert [event.get("delta", event.get("text")) for event in events] == ["w1 w2", " w3", "w1 w2 w3"]
    assert events[0]["words"][1] == {"word": "w2", "start": 0.1, "end": 0.2, "confidence": 1.0}
    assert [each["token"] for each in events[2]["logprobs"]] == ["w1", "w2", "w3"]


def test_prompt_and_keywords_reach_the_session():
    fields = {"prompt": ["Ada"], "keywords[]": ["Bob", "Eve"], "model": ["whisper-1"], "language": ["en"]}
    wish = Wish.parse(fields, TERMS)
    assert wish.options == SessionOptions(1000, prompt="Ada", hotwords=("Bob", "Eve"))


@pytest.mark.parametrize(
    ("data", "fields", "said"),
    [
        (b"", {}, "a.wav is empty"),
        (b"no audio at all", {}, "a.wav is not audio"),
        (recording(), {}, "a.wav holds no audio"),
        (recording(1), {"response_format": "diarized_json"}, "response_format"),
        (recording(1), {"language": "de"}, "use en"),
        (recording(1), {"stream": "maybe"}, "stream"),
        (recording(1), {"prompt": "x" * 3000}, "prompt"),
        (recording(1), {"timestamp_granularities[]": "token"}, "segment and word"),
        (recording(1), {"prompt": "x" * 100_000}, "form cannot be read"),
    ],
)
def test_what_cannot_be_transcribed_is_refused_in_a_line(data, fields, said):
    async def main():
        async with serving(Engine()) as running:
            response = await post(running, data, **fields)
            assert response.status_code == 400
            assert said in error(response)["message"]
            assert "\n" not in error(response)["message"]
            assert error(response)["type"] == "invalid_request_error"
            await until(lambda: running.house.free_slots == 4)
            assert (await post(running, recording(5))).json()["text"] == "w5"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"),
        (
            "multipart/form-data; boundary=x; charset=klingon",
            b'--x\r\nContent-Disposition: form-data; name="p"\r\n\r\n1',
        ),
        ("application/x-www-form-urlencoded", b"file=1"),
        ("text/plain; charset=", b"\xff"),
    ],
)
def test_what_is_no_form_with_a_file_is_refused(content_type, body):
    async def main():
        async with serving(Engine()) as running, httpx2.AsyncClient() as client:
            url = f"http://127.0.0.1:{running.port}{PATH}"
            response = await client.post(url, content=body, headers={"content-type": content_type})
            assert response.status_code == 400
            assert error(response)["message"]

    asyncio.run(main())


def test_too_many_bytes_and_too_many_seconds_are_refused():
    async def main():
        async with serving(Engine(), max_upload_bytes=200_000, max_upload_s=5) as running:
            big = await post(running, bytes(200_001))
            assert (big.status_code, error(big)["code"]) == (413, "too_big")
            bigger = await post(running, bytes(1_000_000))
            assert (bigger.status_code, error(bigger)["code"]) == (413, "too_big")
            bomb = recording(*[0] * 600, kind="FLAC")
            assert len(bomb) < 100_000
            long = await post(running, bomb)
            assert (long.status_code, error(long)["code"]) == (400, "bad_audio")
            assert "at most 5 s" in error(long)["message"]
            await until(lambda: running.engine.free_slots == 4)

    asyncio.run(main())


def test_chunks_of_a_body_are_counted_though_its_length_is_not_told():
    async def main():
        async with serving(Engine(), max_upload_bytes=100_000) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            head = "Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked"
            part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            chunk = b"ffff\r\n" + bytes(0xFFFF) + b"\r\n"
            writer.write(
                f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n{len(part):x}\r\n{part}\r\n".encode()
            )
            writer.write(3 * chunk)
            assert (await reader.readline()).split()[1] == b"413"
            writer.close()
            await until(lambda: not running.house.connections)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"Authorization": "Token kéy".encode()}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer key", "Origin": "https://evil.example"}, 403, "bad_origin"),
        ({"Authorization": "Bearer key", "Origin": "http://["}, 403, "bad_origin"),
        ({"Authorization": "Bearer key"}, 200, None),
    ],
)
def test_keys_and_origins_are_checked_at_the_door(headers, status, code):
    async def main():
        async with serving(Engine(), api_key="key") as running:
            response = await post(running, recording(1), headers=headers)
            assert response.status_code == status
            assert code is None or error(response)["code"] == code

    asyncio.run(main())


def test_a_full_house_says_when_to_come_again():
    async def main():
        async with serving(Engine(slots=1)) as running:
            taken = running.engine.open(SessionOptions())
            response = await post(running, recording(1))
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert error(response)["code"] == "full"
            taken.abort()

    asyncio.run(main())


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_broken_model_is_told(stream):
    async def main():
        async with serving(Engine()) as running:
            running.engine.break_next = True
            response = await post(running, recording(1), stream=stream)
            assert response.status_code == (200 if stream == "true" else 500)
            body = json.loads(response.text.removeprefix("data: "))["error"]
            assert (body["type"], body["code"]) == ("server_error", "internal")
            await until(lambda: running.engine.free_slots == 4)

    asyncio.run(main())


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_goes_frees_its_slot(stream):
    async def main():
        async with serving(Engine(step_s=0.05)) as running:
            posting = asyncio.create_task(post(running, recording(*range(1, 600)), stream=stream))
            await until(lambda: running.engine.free_slots == 3)
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            await until(lambda: running.engine.free_slots == 4)
            await until(lambda: not running.house.connections)

    asyncio.run(main())


def test_draining_finishes_a_file_and_then_gives_up():
    async def main():
        async with serving(Engine(step_s=0.05), drain_timeout_s=5) as running:
            posting = asyncio.create_task(post(running, recording(1, 2)))
            await until(lambda: running.engine.sessions)
            await running.house.drain()
            assert (await posting).json()["text"] == "w1 w2"
        async with serving(Engine(step_s=0.2), drain_timeout_s=0.1) as running:
            posting = asyncio.create_task(post(running, recording(*range(1, 600))))
            await until(lambda: running.engine.sessions)
            await running.house.drain()
            response = await posting
            assert (response.status_code, error(response)["code"]) == (503, "draining")
            running.engine.step_s = 0

    asyncio.run(main())


def test_a_file_that_stops_coming_is_given_up():
    async def main():
        async with serving(Engine(), idle_timeout_s=0.2) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            head = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000"
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n--x".encode())
            assert (await reader.readline()).split()[1] == b"408"
            writer.close()
            await until(lambda: not running.house.connections)

    asyncio.run(main())


def test_a_large_file_waits_on_disk_and_is_gone_afterwards(monkeypatch):
    """Also where its client goes in the midst of it."""
    spooled: list[tempfile.SpooledTemporaryFile[bytes]] = []

    class Watched(tempfile.SpooledTemporaryFile):
        def __init__(self, max_size: int) -> None:
            super().__init__(max_size)
            spooled.append(self)

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Watched)
    data = recording(*[1, 0] * 400)

    async def main():
        async with serving(Engine(step_s=0.02)) as running:
            posting = asyncio.create_task(post(running, data))
            await until(lambda: running.engine.sessions)
            assert spooled[0]._rolled  # out of memory
            assert not spooled[0].closed
            posting.cancel()
            await until(lambda: not running.house.connections)
            running.engine.step_s = 0
            assert (await post(running, data)).json()["text"].count("w1") == 400
            await until(lambda: not running.house.connections)
            assert [file.closed for file in spooled] == [True, True]

    asyncio.run(main())


def test_a_full_disk_is_told(monkeypatch):
    async def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formparsers.UploadFile, "write", full)
    response = transcribed(1)
    assert (response.status_code, error(response)["code"]) == (500, "internal")
    assert "again" in error(response)["message"]


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["response_format", "language", "stream", "prompt", "keywords[]", "include[]"]),
        st.lists(st.text() | st.sampled_from(FORMATS), max_size=3),
    )
)
def test_any_fields_are_read_or_refused_in_one_line(fields):
    refusal = ""
    try:
        Wish.parse(fields, TERMS)
    except ValueError as wrong:
        refusal = str(wrong)
    assert "\n" not in refusal
