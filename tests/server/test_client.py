"""The reconnecting client against servers that die, drain, refuse and come back: every word exactly once."""

import asyncio

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from server import client as client_module
from server.client import StreamClient
from server.dial import ServerError
from streaming.events import Bookmark, Closed, Endpoint, Event, Fault, Final, Partial
from tests.server.fakes import FakeEngine, speech, text
from tests.server.running import Running, serving, start, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_DELAY_S", 0.1)


async def listen(client: StreamClient) -> list[Event]:
    async with asyncio.timeout(10):
        return [event async for event in client]


def words(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final))


def assert_one_story(events: list[Event]) -> None:
    """Utterances are numbered through, told once, ended before their final; partials go forward."""
    told = [event.utterance for event in events if isinstance(event, Final)]
    assert told == list(range(len(told)))
    assert [event.utterance for event in events if isinstance(event, Endpoint)] == told
    partial_ms = [event.audio_ms for event in events if isinstance(event, Partial)]
    assert partial_ms == sorted(set(partial_ms))
    assert isinstance(events[-1], Closed)


def test_samples_and_bytes_come_back_as_events():
    async def main():
        async with serving() as running, StreamClient(running.url, chunk_ms=200) as client:
            await client.send(speech(1, 2))
            await client.send(np.frombuffer(speech(3), "<i2").astype(np.float32) / 32_767)
            await client.finalize()
            await client.send(speech(4))
            await client.close()
            events = await listen(client)
            assert [event.text for event in events if isinstance(event, Final)] == ["w1 w2 w3", "w4"]
            assert events[-1] == Closed(400, 2, 4)
            assert_one_story(events)
            with pytest.raises(ValueError, match="closed"):
                await client.send(speech(5))

    asyncio.run(main())


async def speak_through_deaths(first: Running, deaths: set[int], how: str) -> list[Event]:
    """Says w1 ... w40, pauses and a finalize; the server dies at some words, a new one takes its place."""
    running = first
    async with StreamClient(first.url, chunk_ms=200, retries=100) as client:
        listening = asyncio.create_task(listen(client))
        for number in range(1, 41):
            await client.send(speech(number))
            if number % 7 == 0:
                await client.send(speech(0))
            if number == 24:
                await client.finalize()
            await asyncio.sleep(0.005)
            if number in deaths:
                await (running.kill() if how == "kill" else running.stop())
                running = await start(FakeEngine(step_s=0.002), port=first.port)
        await client.close()
        events = await listening
    await running.stop()
    return events


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_a_server_that_dies_and_comes_back_loses_and_repeats_nothing(how):
    async def main():
        events = await speak_through_deaths(await start(FakeEngine(step_s=0.002)), {9, 24, 40}, how)
        assert words(events) == text(*range(1, 41))
        assert_one_story(events)
        assert events[-1].words == 40

    asyncio.run(main())


def test_an_utterance_outlives_a_server_that_drains():
    """It comes whole from the next one, and is not cut, perhaps in mid-word, where the first one ended."""

    async def main():
        first = await start(FakeEngine())
        async with StreamClient(first.url, chunk_ms=200, retries=100) as client:
            await client.send(speech(1, 2, 3))
            await until(lambda: client._decoded_ms >= 200)
            await first.stop()
            second = await start(FakeEngine(), port=first.port)
            await client.send(speech(4, 0))
            await client.close()
            events = await listen(client)
        await second.stop()
        assert [event.text for event in events if isinstance(event, Final)] == ["w1 w2 w3 w4"]
        assert_one_story(events)

    asyncio.run(main())


def test_an_utterance_outlives_a_client_that_stands_still(monkeypatch):
    """As a computer does that sleeps: nothing comes from it, not even that it is there."""
    monkeypatch.setattr(client_module, "KEEPALIVE_S", 100.0)

    async def main():
        async with serving(idle_timeout_s=0.1) as running, StreamClient(running.url, chunk_ms=200) as client:
            await client.send(speech(1, 2, 3))
            await until(lambda: client.reconnections > 0)
            assert "idle" in client.losses[0]
            await client.send(speech(4, 0))
            await client.close()
            events = await listen(client)
            assert [event.text for event in events if isinstance(event, Final)] == ["w1 w2 w3 w4"]
            assert_one_story(events)

    asyncio.run(main())


def test_a_broken_model_is_tried_again():
    async def main():
        async with serving() as running, StreamClient(running.url) as client:
            await client.send(speech(1, 2, 0))
            await until(lambda: client._tape.base_ms == 200)
            running.engine.break_next = True
            await client.send(speech(3, 4, 5))
            await client.close()
            events = await listen(client)
            assert words(events) == text(1, 2, 3, 4, 5)
            assert_one_story(events)

    asyncio.run(main())


def test_every_connection_is_told_what_the_speaker_may_say(monkeypatch):
    """Also the one after the server died; nothing is asked that was not chosen."""
    opened = []
    open_ = FakeEngine.open

    def noting(engine, options, **rest):
        opened.append((options.beam, options.prompt, options.hotwords))
        return open_(engine, options, **rest)

    monkeypatch.setattr(FakeEngine, "open", noting)

    async def main():
        first = await start(FakeEngine(), beam=2)
        chosen = StreamClient(first.url, prompt="A ship.", hotwords=("Ishmael", "Moby Dick"), retries=100)
        async with chosen as client:
            await client.send(speech(1, 2, 0))
            await until(lambda: client._tape.base_ms == 200)
            await first.kill()
            second = await start(FakeEngine(), port=first.port, beam=2)
            await client.send(speech(3))
            await client.close()
            assert words(await listen(client)) == text(1, 2, 3)
        await second.stop()

    asyncio.run(main())
    assert opened == [(2, "A ship.", ("Ishmael", "Moby Dick"))] * 2


def test_a_server_that_never_comes_back_is_an_error():
    async def main():
        running = await start(FakeEngine())
        async with StreamClient(running.url, retries=3) as client:
            await client.send(speech(1))
            await running.kill()
            with pytest.raises(ServerError, match="asr-stream serve") as error:
                await listen(client)
            assert error.value.code == "unreachable"
            with pytest.raises(ServerError):
                await client.send(speech(2))

    asyncio.run(main())


def test_no_server_is_an_error_at_once():
    async def main():
        running = await start(FakeEngine())
        await running.stop()
        with pytest.raises(ServerError, match="is it running"):
            async with StreamClient(running.url):
                pass
        for url in ("http://127.0.0.1", "ws://127.0.0.1:99999/v1/stream"):
            with pytest.raises(ServerError, match="not an address"):
                async with StreamClient(url):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "code"),
    [({"token": "wrong"}, "bad_key"), ({"token": "key", "model": "other"}, "bad_request")],
)
def test_a_refusal_says_why(options, code):
    async def main():
        async with serving(api_key="key") as running:
            with pytest.raises(ServerError) as error:
                async with StreamClient(running.url, **options):
                    pass
            assert error.value.code == code
            assert "wrong" not in error.value.message
            async with StreamClient(running.url, token="key") as client:
                await client.close()
                assert await listen(client) == [Closed(0, 0, 0)]

    asyncio.run(main())


def test_a_path_that_is_not_there_is_asked_about():
    async def main():
        async with serving() as running:
            with pytest.raises(ServerError, match="HTTP 403: is it ADDRESS/v1/stream"):
                async with StreamClient(running.url.removesuffix("/v1/stream")):
                    pass

    asyncio.run(main())


def test_a_full_server_is_waited_for_when_reconnecting():
    async def main():
        async with serving(FakeEngine(slots=1)) as running, StreamClient(running.url, retries=50) as client:
            await client.send(speech(1))
            await until(lambda: running.engine.sessions)
            for connection in running.house.connections:
                connection.fail(Fault("internal", "broken", fatal=True))
            running.engine.slots = 0
            await asyncio.sleep(0.1)
            running.engine.slots = 1
            await client.close()
            assert words(await listen(client)) == "w1"

    asyncio.run(main())


def test_a_client_that_was_too_slow_comes_back_and_resumes():
    async def main():
        async with serving() as running, StreamClient(running.url) as client:
            deaf = client.connection
            await client.send(speech(1, 2, 0, 3, 4, 5))
            await until(lambda: client._decoded_ms == 600)
            for connection in running.house.connections:
                connection.fail(Fault("slow_reader", "results were not read in time", fatal=True))
            await client.send(speech(6))
            await client.close()
            events = await listen(client)
            assert deaf.close_code == 1013  # "try again later"
            assert words(events) == text(1, 2, 3, 4, 5, 6)
            assert_one_story(events)

    asyncio.run(main())


async def says_late(socket: ServerConnection) -> None:
    """A server whose second pass never ends: it decodes on and on."""
    heard_ms = 0
    async for frame in socket:
        if isinstance(frame, str):
            continue
        heard_ms += len(frame) * 100 // len(speech(0))
        if heard_ms == 1000:
            await socket.send('{"type":"partial","utterance":0,"text":"w1","stable":0,"audio_ms":1000}')
            await socket.send('{"type":"endpoint","utterance":0,"audio_ms":1000}')
        await socket.send(f'{{"type":"progress","audio_ms":{heard_ms}}}')


def test_audio_is_kept_until_its_final_however_late_that_is(monkeypatch):
    """A second pass may be minutes behind a stream that was sent faster than it was spoken."""
    monkeypatch.setattr(client_module, "KEEP_MS", 3000)

    async def main():
        async with (
            serve(says_late, "127.0.0.1", 0) as server,
            StreamClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client,
        ):
            await client.send(speech(*[0] * 9))
            await until(lambda: client._decoded_ms == 900)
            await client.send(speech(1))
            for _ in range(10):
                await client.send(speech(*[0] * 10))
            await until(lambda: client._decoded_ms == 11_000)
            assert client._tape.base_ms == 0

    asyncio.run(main())


def test_the_mistakes_of_a_client_are_not_repeated():
    async def main():
        async with serving(max_frame_bytes=1024) as running, StreamClient(running.url) as client:
            await client.send(speech(1))
            with pytest.raises(ServerError, match="1024") as error:
                await listen(client)
            assert error.value.code == "too_big"

    asyncio.run(main())


def test_silence_is_kept_alive_and_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(client_module, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(client_module, "KEEP_MS", 500)

    async def main():
        async with serving(idle_timeout_s=0.2) as running, StreamClient(running.url) as client:
            for _ in range(20):
                await client.send(speech(0, 0, 0))
            await until(lambda: client._tape.base_ms == 6000 - 500)
            await asyncio.sleep(0.4)
            await client.send(speech(1))
            await client.close()
            assert words(await listen(client)) == "w1"

    asyncio.run(main())


def test_who_waits_for_the_server_is_not_idle(monkeypatch):
    """Its answers may lie unread for long; a server closes on who says nothing for 10 s."""
    monkeypatch.setattr(client_module, "KEEPALIVE_S", 0.01)
    monkeypatch.setattr(client_module, "MAX_AHEAD_MS", 200)

    class Socket:
        def __init__(self) -> None:
            self.sent: list[bytes | str] = []

        async def send(self, message: bytes | str) -> None:
            self.sent.append(message)

    async def main():
        client, socket = StreamClient("ws://localhost"), Socket()
        client._tape.record(speech(1, 2))
        client._tape.record(speech(3))
        speaking = asyncio.create_task(client._speak(socket))
        await until(lambda: len(socket.sent) > 3)
        assert socket.sent[0] == speech(1, 2)
        assert {*socket.sent[1:]} == {'{"type": "keepalive"}'}
        client._hear({"type": "progress", "audio_ms": 100})
        await until(lambda: speech(3) in socket.sent)
        speaking.cancel()

    asyncio.run(main())


def test_the_words_of_a_final_are_never_what_a_client_goes_on_from(monkeypatch):
    """Its audio is kept for the second pass: from the middle of it they would be said twice."""
    monkeypatch.setattr(client_module, "KEEP_MS", 500)
    client = StreamClient("ws://localhost")
    client._tape.record(speech(*[0] * 30))

    def hear(kind: str, audio_ms: int, **more: object) -> tuple[int, int]:
        client._hear({"type": kind, "audio_ms": audio_ms, **more})
        assert client._bookmark is not None
        return client._bookmark.audio_ms, client._tape.base_ms

    client._coming = Bookmark(2000, 200, 2000, said="w1 w2", said_ms=1800)
    final = {"utterance": 0, "text": "w1 w2", "start_ms": 0, "end_ms": 1900, "words": []}
    assert hear("final", 2000, **final) == (2000, 200)
    assert hear("progress", 2100) == (2000, 200)
    assert hear("progress", 2500) == (2000, 200)
    assert hear("progress", 2600) == (2100, 2100)


def test_a_client_is_not_far_ahead_of_its_server(monkeypatch):
    monkeypatch.setattr(client_module, "MAX_AHEAD_MS", 2000)

    async def main():
        async with serving(FakeEngine(step_s=0.01)) as running, StreamClient(running.url) as client:
            sending = asyncio.create_task(client.send(speech(*[0] * 150)))
            ahead_ms = 0
            while not sending.done():
                await asyncio.sleep(0.005)
                ahead_ms = max(ahead_ms, client._tape.end_ms - client._decoded_ms)
            assert 2000 < ahead_ms <= 2000 + 1100

    asyncio.run(main())


def test_a_late_consumer_sees_the_newest_partial():
    async def main():
        async with serving() as running, StreamClient(running.url, chunk_ms=100) as client:
            for number in range(1, 6):
                await client.send(speech(number))
            await until(lambda: client._decoded_ms == 500)
            await client.close()
            await until(lambda: client._over)
            events = await listen(client)
            assert [type(event) for event in events] == [Partial, Endpoint, Final, Closed]
            assert events[0].text == text(1, 2, 3, 4, 5)

    asyncio.run(main())
