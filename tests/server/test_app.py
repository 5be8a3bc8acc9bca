"""The app over real sockets, with a model that hears numbers."""

import asyncio
import json
import logging
import socket

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streaming.session import SessionOptions
from tests.server.fakes import BLOCK_BYTES, FakeEngine, speech, text
from tests.server.running import Running, serving, until


async def say(socket_: ClientConnection, **message: object) -> None:
    await socket_.send(json.dumps(message))


async def hear(client: ClientConnection, kind: str) -> dict:
    """The next message of this kind."""
    async with asyncio.timeout(5):
        while True:
            message = json.loads(await client.recv())
            if message["type"] == kind:
                return message


async def hear_all(client: ClientConnection) -> list[dict]:
    """Everything until the socket closes."""
    messages = []
    async with asyncio.timeout(5):
        try:
            while True:
                messages.append(json.loads(await client.recv()))
        except ConnectionClosed:
            return messages


def finals(messages: list[dict]) -> list[str]:
    return [message["text"] for message in messages if message["type"] == "final"]


def test_a_conversation_from_ready_to_closed():
    async def main():
        async with serving() as running, connect(running.url + "?words=true") as client:
            ready = await hear(client, "ready")
            assert ready["model"] == "fake.en"
            await client.send(speech(1, 2, 3))
            partial = await hear(client, "partial")
            assert (partial["text"], partial["audio_ms"]) == ("w1 w2 w3", 300)
            await say(client, type="finalize")
            final = await hear(client, "final")
            assert [word["start_ms"] for word in final["words"]] == [0, 100, 200]
            assert await hear(client, "finalized") == {"type": "finalized", "audio_ms": 300}
            await client.send(speech(4))
            await say(client, type="close")
            messages = await hear_all(client)
            assert finals(messages) == ["w4"]
            assert messages[-1] == {"type": "closed", "audio_ms": 400, "utterances": 2, "words": 4}
            assert (client.close_code, client.close_reason) == (1000, "done")
            await until(lambda: running.engine.free_slots == 4)

    asyncio.run(main())


def test_several_clients_at_once_hear_their_own_words():
    async def one(url: str, first: int) -> list[str]:
        async with connect(url) as client:
            for word in range(first, first + 6):
                await client.send(speech(word))
                await asyncio.sleep(0.01)
            await say(client, type="close")
            return finals(await hear_all(client))

    async def main():
        async with serving(FakeEngine(slots=8)) as running:
            heard = await asyncio.gather(*(one(running.url, 100 * i) for i in range(1, 9)))
            assert heard == [[text(*range(100 * i, 100 * i + 6))] for i in range(1, 9)]

    asyncio.run(main())


def test_resume_goes_on_along_the_timeline():
    async def main():
        async with serving() as running, connect(running.url) as client:
            await say(client, type="resume", audio_ms=5000)
            await client.send(speech(1, 2, 0))
            assert (await hear(client, "final"))["audio_ms"] == 5300

    asyncio.run(main())


def test_progress_covers_silence():
    async def main():
        async with serving() as running, connect(running.url + "?progress=true") as client:
            await client.send(speech(0, 0, 0))
            assert (await hear(client, "progress"))["audio_ms"] == 300

    asyncio.run(main())


@pytest.mark.parametrize(
    ("frame", "code", "error"),
    [
        ("not json", 1007, "bad_text"),
        ('{"type":"sing"}', 1003, "bad_type"),
        (bytes(2000), 1009, "too_big"),
        (bytes(20_000), 1009, None),  # so big that the WebSocket layer refuses it
    ],
)
def test_bad_frames_are_errors_and_closes_in_words(frame, code, error):
    async def main():
        async with serving(max_frame_bytes=1024) as running, connect(running.url) as client:
            await client.send(frame)
            messages = await hear_all(client)
            assert client.close_code == code
            assert client.close_reason
            if error is not None:
                assert (messages[-1]["type"], messages[-1]["code"]) == ("error", error)
            await until(lambda: running.house.free_slots == 4)
            assert running.engine.free_slots == 4

    asyncio.run(main())


def test_a_vanished_client_frees_its_slot_at_once():
    async def main():
        async with serving(FakeEngine(step_s=0.05)) as running:
            client = await connect(running.url)
            await client.send(speech(*range(1, 31)))
            await until(lambda: running.engine.free_slots == 3)
            client.transport.abort()
            await until(lambda: running.engine.free_slots == 4, timeout_s=0.5)
            await until(lambda: not running.house.connections)

    asyncio.run(main())


async def fast_and_deaf(running: Running, limit_bytes: int) -> int:
    """Sends audio as fast as the socket takes it, reads nothing: how many bytes went out in half a second."""
    client = await connect(running.url, max_queue=1, compression=None)
    client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = 0
    try:
        async with asyncio.timeout(0.5):
            while sent < limit_bytes:
                await client.send(speech(0))
                sent += BLOCK_BYTES
    except TimeoutError:
        pass
    client.transport.abort()
    return sent


def test_audio_faster_than_the_model_is_not_read():
    async def main():
        async with serving(FakeEngine(step_s=0.2), max_backlog_s=1.0) as running:
            sending = asyncio.create_task(fast_and_deaf(running, 10**7))
            backlog_s = 0.0
            while not sending.done():
                backlog_s = max([backlog_s, *(each.backlog_s for each in running.house.connections)])
                status, _ = await running.get("/readyz")  # the server goes on answering
                assert status == 200
            assert 1.0 < backlog_s <= 1.2
            assert await sending < 2 * 10**6

    asyncio.run(main())


def test_a_client_that_never_reads_is_let_go():
    async def main():
        async with serving(max_unsent_events=8) as running:
            client = await connect(running.url + "?words=true", max_queue=1, compression=None)
            client.transport.pause_reading()
            await client.send(speech(1, 2, 3))
            await until(lambda: running.engine.free_slots == 3)
            while running.engine.free_slots == 3:  # every chunk has a partial of more words
                await client.send(speech(1, 2, 3))
                await asyncio.sleep(0)
            client.transport.resume_reading()
            messages = await hear_all(client)
            assert messages[-1]["code"] == "slow_reader"
            assert (client.close_code, client.close_reason[:12]) == (1013, "results were")

    asyncio.run(main())


def test_a_full_house_refuses_before_the_upgrade(caplog):
    async def main():
        async with serving(FakeEngine(slots=1)) as running:
            async with connect(running.url) as client:
                await hear(client, "ready")
                assert (await running.get("/readyz"))[0] == 503
                with pytest.raises(InvalidStatus) as refused:
                    await connect(running.url)
                assert refused.value.response.status_code == 503
                assert refused.value.response.headers["Retry-After"] == "5"
                assert json.loads(refused.value.response.body)["code"] == "full"
            await until(lambda: running.house.free_slots == 1)
            assert (await running.get("/readyz"))[0] == 200

    asyncio.run(main())
    assert "every slot is taken" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_engine_without_a_slot_closes_with_1013():
    async def main():
        engine = FakeEngine(slots=1)
        async with serving(engine) as running, connect(running.url) as client:
            taken = engine.open(SessionOptions())  # by someone who did not come through this door
            await client.send(speech(1))
            assert (await hear(client, "error"))["code"] == "full"
            await hear_all(client)
            assert client.close_code == 1013
            taken.abort()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {}, 401),
        ("?token=wrong", {}, 401),
        ("?token=k%26%2By", {}, None),
        ("", {"Authorization": "Bearer nope"}, 401),
        ("?token=k%26%2By", {"Origin": "https://evil.example"}, 403),
        ("?token=k%26%2By", {"Origin": "https://good.example"}, None),
        ("?token=k%26%2By&language=fr", {}, 400),
    ],
)
def test_keys_origins_and_queries_are_checked_at_the_door(query, headers, status, caplog):
    caplog.set_level(logging.INFO)

    async def main():
        async with serving(api_key="k&+y", origins="https://good.example") as running:
            if status is None:
                async with connect(running.url + query, additional_headers=headers) as client:
                    await hear(client, "ready")
            else:
                with pytest.raises(InvalidStatus) as refused:
                    await connect(running.url + query, additional_headers=headers)
                assert refused.value.response.status_code == status

    asyncio.run(main())


def test_our_own_pages_may_connect():
    async def main():
        async with serving() as running:
            origin = {"Origin": f"http://127.0.0.1:{running.port}"}
            async with connect(running.url, additional_headers=origin) as client:
                await hear(client, "ready")

    asyncio.run(main())


def test_an_idle_client_gets_its_finals_and_a_close():
    async def main():
        async with serving(idle_timeout_s=0.2) as running, connect(running.url) as client:
            await client.send(speech(1, 2))
            for _ in range(3):  # keepalives keep it alive
                await asyncio.sleep(0.12)
                await say(client, type="keepalive")
            assert client.close_code is None
            messages = await hear_all(client)
            assert finals(messages) == ["w1 w2"]
            assert client.close_code == 1000
            assert "idle" in client.close_reason

    asyncio.run(main())


def test_an_idle_client_that_never_said_anything_keeps_no_slot():
    async def main():
        async with serving(FakeEngine(slots=1), idle_timeout_s=0.2) as running:
            async with connect(running.url) as client:
                assert [each["type"] for each in await hear_all(client)] == ["ready", "closed"]
                assert "idle" in client.close_reason
            async with connect(running.url) as next_client:
                await hear(next_client, "ready")

    asyncio.run(main())


def test_draining_finishes_what_was_heard():
    async def main():
        async with serving(FakeEngine(step_s=0.05)) as running, connect(running.url) as client:
            await client.send(speech(1, 2, 3, 4))
            await until(lambda: running.engine.sessions)
            draining = asyncio.create_task(running.house.drain())
            await asyncio.sleep(0)
            assert (await running.get("/readyz"))[0] == 503
            with pytest.raises(InvalidStatus):
                await connect(running.url)
            messages = await hear_all(client)
            assert finals(messages) == ["w1 w2 w3 w4"]
            assert messages[-1]["type"] == "closed"
            assert client.close_code == 1001
            await draining
            assert not running.engine.hurried

    asyncio.run(main())


def test_draining_is_bounded():
    async def main():
        engine = FakeEngine(step_s=1.0)
        async with serving(engine, drain_timeout_s=0.1) as running, connect(running.url) as client:
            await client.send(speech(*range(1, 10)))
            await until(lambda: running.engine.sessions)
            running.server.should_exit = True
            messages = await hear_all(client)
            assert (messages[-1]["code"], client.close_code) == ("draining", 1001)
            assert engine.hurried
            engine.step_s = 0

    asyncio.run(main())


def test_draining_survives_clients_that_vanish():
    """At whatever moment: also while their conversation is being put away, and still counted."""

    async def main():
        async with serving() as running:
            for turns in range(20):  # of the loop, from the cut to the draining
                async with connect(running.url) as client:
                    await client.send(speech(1))
                    await until(lambda: running.engine.sessions)
                    for connection in list(running.server.server_state.connections):
                        connection.transport.abort()
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await running.house.drain()
                assert not running.house.connections
                await until(lambda: running.engine.free_slots == 4)
                running.house.draining = False

    asyncio.run(main())


def test_a_broken_model_is_told_and_survived():
    async def main():
        async with serving() as running:
            async with connect(running.url) as client:
                running.engine.break_next = True
                await client.send(speech(1, 2, 3))
                messages = await hear_all(client)
                assert (messages[-1]["code"], client.close_code) == ("internal", 1011)
            async with connect(running.url) as client:
                await client.send(speech(1, 2, 3))
                await hear(client, "partial")
            assert (await running.get("/healthz"))[0] == 200
            assert 'asr_stream_errors_total{code="internal"} 1.0' in (await running.get("/metrics"))[1]

    asyncio.run(main())


async def scraped(running: Running) -> str:
    status, body = await running.get("/metrics")
    assert status == 200
    return body


def test_metrics_measure_the_conversation():
    async def main():
        async with serving() as running, connect(running.url) as client:
            await client.send(speech(1, 2, 0))
            await hear(client, "final")
            wanted = {
                "asr_stream_sessions 1.0",
                "asr_stream_slots_free 3.0",
                "asr_stream_backlog_seconds 0.0",
                "asr_stream_queue_age_seconds 0.0",
                "asr_stream_chunk_lag_seconds_count 1.0",
                "asr_stream_time_to_final_seconds_count 1.0",
                "asr_stream_batch_rows_sum 1.0",
            }
            # The model's thread counts a step after the step has told the client, so the client may be first.
            async with asyncio.timeout(5.0):
                while missing := wanted - set((await scraped(running)).splitlines()):
                    last_missing.append(missing)

    last_missing: list[set[str]] = []
    try:
        asyncio.run(main())
    except TimeoutError:
        pytest.fail(f"not measured: {last_missing[-1]}")


def test_logs_bear_the_session_and_hold_no_words(caplog):
    caplog.set_level(logging.INFO, "asr_stream")

    async def main() -> str:
        async with serving() as running, connect(running.url) as client:
            session = (await hear(client, "ready"))["session"]
            await client.send(speech(777, 0, 0))
            await hear(client, "final")
            await client.send("oops")
            await hear_all(client)
            return session

    session = asyncio.run(main())
    lines = [record for record in caplog.records if record.name == "asr_stream.session"]
    assert len(lines) == 3  # open, bad_text, gone
    assert {record.session for record in lines} == {session}
    assert "w777" not in caplog.text


def test_a_client_that_waits_for_a_slow_server_is_not_idle():
    async def main():
        engine = FakeEngine(step_s=0.5)
        async with serving(engine, idle_timeout_s=0.1) as running, connect(running.url) as client:
            await client.send(speech(1, 2, 3))
            assert (await hear(client, "partial"))["text"] == "w1 w2 w3"

    asyncio.run(main())
