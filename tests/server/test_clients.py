"""Other services' own clients against our server: real sockets, real weights, a real voice, the same words."""

import asyncio
import base64
import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from deepgram import AsyncDeepgramClient, DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.types import (
    ListenV1Metadata,
    ListenV1Results,
    ListenV1SpeechStarted,
    ListenV1UtteranceEnd,
)
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, OpenAI
from websockets.exceptions import ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from asr_stream import build_engine
from server.app import Server, bind
from server.client import StreamClient
from server.config import Settings
from server.dialects import plain
from streaming.events import Final

pytestmark = pytest.mark.filterwarnings("ignore:websockets.*deprecated:DeprecationWarning")  # of deepgram-sdk

SAMPLES = Path(__file__).parent.parent.parent / "samples"
KEY = "a-key"
SECONDS = 13.0  # of audio: the clip, and a pause after it
PATIENCE_S = 300  # machines that test may stand still for long
BLOCK = 2 * 1_600  # 100 ms of it


@dataclass(frozen=True)
class Address:
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """A server with the real model and a key, in a thread of its own."""
    settings = Settings(api_key=KEY, idle_timeout_s=PATIENCE_S)
    server = Server(build_engine("tiny.en", slots=4), settings)
    listener = bind("127.0.0.1", 0)
    listener.listen()  # who comes before the server runs waits
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    address = Address(listener.getsockname()[1])
    try:
        # It warms up before it answers, and clients wait for 10 s at most.
        with urllib.request.urlopen(f"{address.http}/readyz", timeout=PATIENCE_S) as response:
            assert response.status == 200
        yield address
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def pcm() -> bytes:
    """jfk.wav and silence, 16 kHz s16le."""
    samples, _ = soundfile.read(SAMPLES / "jfk.wav", dtype="int16")
    return bytes(samples.tobytes()).ljust(int(SECONDS * 32_000), b"\0")


@pytest.fixture(scope="module")
def finals(address: Address, pcm: bytes) -> list[Final]:
    """What our own client hears."""

    async def converse() -> list[Final]:
        async with StreamClient(f"{address.ws}/v1/stream", token=KEY) as client:
            await client.send(pcm)
            await client.close()
            return [event async for event in client if isinstance(event, Final)]

    heard = asyncio.run(converse())
    said = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"
    assert agreement(said, " ".join(final.text for final in heard)) > 0.85
    return heard


def plain_words(text: str) -> list[str]:
    return [plain(word) for word in text.split()]


def agreement(one: str, other: str) -> float:
    """Share of words in common and in order."""
    return SequenceMatcher(None, plain_words(one), plain_words(other)).ratio()


def blocks(pcm: bytes, size: int = BLOCK) -> list[bytes]:
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


def deepgram_environment(address: Address) -> DeepgramClientEnvironment:
    return DeepgramClientEnvironment(
        base=address.http, production=address.ws, agent=address.ws, agent_rest=address.http
    )


def test_deepgrams_client_hears_the_words(address, pcm, finals):
    async def converse() -> list[object]:
        client = AsyncDeepgramClient(api_key=KEY, environment=deepgram_environment(address))
        async with client.listen.v1.connect(
            model="nova-3",
            encoding="linear16",
            sample_rate=16_000,
            interim_results=True,
            punctuate=True,
            vad_events=True,
            utterance_end_ms=1000,
        ) as connection:
            for block in blocks(pcm):
                await connection.send_media(block)
            await connection.send_keep_alive()
            messages = [await connection.recv()]
            while getattr(messages[-1], "last_word_end", 0) < 10:  # s: the last of the clip
                messages.append(await connection.recv())
            await connection.send_close_stream()
            return [*messages, *[message async for message in connection]]

    messages = asyncio.run(converse())
    results = [message for message in messages if isinstance(message, ListenV1Results)]
    said = [message.channel.alternatives[0] for message in results if message.is_final]
    assert [each.transcript for each in said] == [final.text for final in finals]
    words = [(w.punctuated_word, w.start, w.end, w.confidence) for each in said for w in each.words]
    assert words == [
        (w.text, w.start_ms / 1000, w.end_ms / 1000, w.confidence) for final in finals for w in final.words
    ]
    assert any(not message.is_final for message in results)
    assert sum(isinstance(message, ListenV1SpeechStarted) for message in messages) == len(finals)
    (*_, ended) = (message for message in messages if isinstance(message, ListenV1UtteranceEnd))
    assert ended.last_word_end == words[-1][2]
    assert isinstance(messages[-1], ListenV1Metadata)
    assert messages[-1].duration == SECONDS


def test_deepgrams_client_is_answered_when_it_finalizes(address, pcm):
    client = DeepgramClient(api_key=KEY, environment=deepgram_environment(address))
    with client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate=16_000) as connection:
        for said in (pcm[: 2 * 16_000 * 2], bytes(BLOCK)):  # "And so, my fellow Americans", and nothing
            connection.send_media(said)
            connection.send_finalize()
            message = connection.recv()
            while not message.from_finalize:
                message = connection.recv()
            alternative = message.channel.alternatives[0]
            assert bool(alternative.transcript) == bool(alternative.words) == (len(said) > BLOCK)
        connection.send_close_stream()
        assert isinstance(list(connection)[-1], ListenV1Metadata)


def test_deepgrams_client_is_told_of_a_wrong_key(address):
    client = DeepgramClient(api_key="wrong", environment=deepgram_environment(address))
    with (
        pytest.raises(InvalidStatus) as refused,
        client.listen.v1.connect(model="nova-3", encoding="mulaw", sample_rate=8000),
    ):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["err_code"] == "INVALID_AUTH"


def test_keys_come_as_subprotocols_from_browsers(address):
    with connect(f"{address.ws}/v1/listen?encoding=mulaw", subprotocols=["token", KEY]) as client:
        assert client.subprotocol == "token"
    offer = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with connect(f"{address.ws}/v1/realtime", subprotocols=offer) as client:
        assert client.subprotocol == "realtime"
        assert json.loads(client.recv())["type"] == "session.created"
    for path, wrong in (("listen?encoding=mulaw", ["token", "no"]), ("realtime", ["realtime", KEY])):
        with pytest.raises(InvalidStatus) as refused, connect(f"{address.ws}/v1/{path}", subprotocols=wrong):
            pass
        assert refused.value.response.status_code == 401


@pytest.mark.parametrize("turns", [True, False])
def test_openais_realtime_client_hears_the_words(address, pcm, finals, turns):
    samples = np.frombuffer(pcm, "<i2").astype(np.float32)
    upsampled = (
        soxr.resample(samples, 16_000, 24_000).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes()
    )

    async def converse() -> list:
        client = AsyncOpenAI(base_url=f"{address.http}/v1", api_key=KEY)
        events = []
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24_000},
                            "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                            "turn_detection": {"type": "server_vad"} if turns else None,
                        }
                    },
                }
            )
            for block in blocks(upsampled, 4800):
                await connection.input_audio_buffer.append(audio=base64.b64encode(block).decode())
            if not turns:
                await connection.input_audio_buffer.commit()
            completed = 0
            while completed < (len(finals) if turns else 1):
                events.append(await connection.recv())
                assert events[-1].type != "error", events[-1]
                completed += events[-1].type.endswith("transcription.completed")
        return events

    events = asyncio.run(converse())
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    assert (events[1].session.audio.input.turn_detection is None) != turns
    completed = [event for event in events if event.type.endswith("transcription.completed")]
    text = " ".join(event.transcript for event in completed)
    assert agreement(text, " ".join(final.text for final in finals)) > 0.9
    assert 11 <= sum(event.usage.seconds for event in completed) <= SECONDS + 0.01
    words = [word for event in completed for word in event.words]
    ends = [word.end_ms / 1000 for final in finals for word in final.words]
    assert words[-1]["end"] == pytest.approx(ends[-1], abs=0.3)
    assert all(0 < word["confidence"] <= 1 for word in words)
    kinds = [event.type for event in events]
    assert kinds.count("input_audio_buffer.committed") == len(completed)
    assert ("input_audio_buffer.speech_started" in kinds) == turns
    deltas = "".join(event.delta for event in events if event.type.endswith("transcription.delta"))
    assert agreement(deltas, text) > 0.6  # settled streaming words: the second pass may have others


@pytest.fixture
def openai(address) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address.http}/v1", api_key=KEY) as client:
        yield client


SHORT = SAMPLES / "austen-0880.flac"
SHORT_TEXT = "He was not an ill-disposed young man"


def test_openais_client_has_a_file_transcribed(openai, finals):
    with (SAMPLES / "jfk.wav").open("rb") as file:
        answer = openai.audio.transcriptions.create(model="whisper-1", file=file)
    assert agreement(answer.text, " ".join(final.text for final in finals)) > 0.9
    assert answer.usage.seconds == pytest.approx(11, abs=0.01)


def test_openais_client_gets_every_format(openai):
    def transcribe(form: str, **wishes: object):
        return openai.audio.transcriptions.create(
            model="whisper-1", file=SHORT, response_format=form, language="en", **wishes
        )

    verbose = transcribe("verbose_json", timestamp_granularities=["word", "segment"])
    assert agreement(verbose.text, SHORT_TEXT) > 0.8
    assert [plain(word.word) for word in verbose.words] == plain_words(verbose.text)
    assert all(word.start < word.end <= verbose.duration for word in verbose.words)
    assert "".join(segment.text for segment in verbose.segments).strip() == verbose.text
    assert transcribe("text").strip() == verbose.text
    assert " ".join(transcribe("srt").splitlines()[2:]).strip() == verbose.text
    assert transcribe("vtt").startswith("WEBVTT\n\n00:00:0")
    answer = transcribe("json", include=["logprobs"])
    assert [each.token for each in answer.logprobs] == verbose.text.split()


def test_openais_client_gets_a_stream(openai):
    events = list(openai.audio.transcriptions.create(model="whisper-1", file=SHORT, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert agreement(events[-1].text, SHORT_TEXT) > 0.8
    assert "".join(event.delta for event in events[:-1]) == events[-1].text


def test_openais_client_is_told_what_is_wrong(openai, address):
    with pytest.raises(BadRequestError, match="is not audio of a known kind"):
        openai.audio.transcriptions.create(model="whisper-1", file=("a.wav", io.BytesIO(b"no audio")))
    with pytest.raises(BadRequestError, match="use en"):
        openai.audio.transcriptions.create(model="whisper-1", file=SHORT, language="de")
    with (
        OpenAI(base_url=f"{address.http}/v1", api_key="wrong") as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.audio.transcriptions.create(model="whisper-1", file=SHORT)


def test_vosks_loop_of_sending_and_receiving_hears_the_words(address, pcm, finals):
    answers = []
    with connect(f"{address.ws}/vosk?token={KEY}") as client:
        client.send('{ "config" : { "sample_rate" : 16000 } }')
        for block in blocks(pcm, 8000):
            client.send(block)
            answers.append(json.loads(client.recv(timeout=PATIENCE_S)))
        patience = time.monotonic() + PATIENCE_S
        while not any(answer.get("text") for answer in answers):  # not all comes at the end
            assert time.monotonic() < patience
            time.sleep(0.1)
            client.send(bytes(3200))
            answers.append(json.loads(client.recv(timeout=PATIENCE_S)))
        client.send('{"eof" : 1}')
        answers.append(json.loads(client.recv(timeout=PATIENCE_S)))
        with pytest.raises(ConnectionClosedOK):
            client.recv(timeout=PATIENCE_S)
    results = [answer for answer in answers if answer.get("text")]
    text = " ".join(answer["text"] for answer in results)
    assert text.split() == [plain(word) for final in finals for word in final.text.split()]
    words = [(w["word"], w["start"], w["end"], w["conf"]) for answer in results for w in answer["result"]]
    assert words == [
        (plain(w.text), w.start_ms / 1000, w.end_ms / 1000, w.confidence)
        for final in finals
        for w in final.words
    ]
    assert any(answer.get("partial") for answer in answers)
