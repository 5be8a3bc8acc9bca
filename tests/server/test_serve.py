"""`serve` as a process: what it prints, how it ends, and that its end costs nobody a word."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from server.app import serve
from server.client import StreamClient
from server.config import Settings
from streaming.events import Event, Final
from tests.server.fakes import FakeEngine, speech, text
from tests.server.running import serving, until

PROGRAM = """
import sys
from server.app import serve
from server.config import Settings
from tests.server.fakes import FakeEngine
serve(Settings(), lambda: FakeEngine(step_s=float(sys.argv[1])))
"""
PATIENCE_S = 60


Server = subprocess.Popen[str]
Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers with settings; those that a failed test leaves are killed."""
    servers: list[Server] = []

    def start_one(step_s: float = 0.0, **settings: str) -> Server:
        environment = os.environ | {f"ASR_STREAM_{name.upper()}": value for name, value in settings.items()}
        command = [sys.executable, "-c", PROGRAM, str(step_s)]
        pipe = subprocess.PIPE
        servers.append(subprocess.Popen(command, env=environment, stderr=pipe, stdout=pipe, text=True))
        return servers[-1]

    yield start_one
    for server in servers:
        if server.poll() is None:
            server.kill()
            server.communicate()


def listening(server: Server) -> str:
    """The address that it tells, once it can be used."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"listening on (ws://[\d.]+:\d+/v1/stream)", line):
            return found[1]
    raise AssertionError("it ended")


def status(url: str, path: str) -> int:
    """Of a plain HTTP request to the server of a WebSocket's `url`."""
    try:
        with urllib.request.urlopen(url.replace("ws:", "http:").replace("/v1/stream", path)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


async def all_of(client: ClientConnection) -> AsyncIterator[str | bytes]:
    """Everything until the socket closes, well or not."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await client.recv()


def finals(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final))


def test_a_terminated_server_finishes_its_conversations_and_takes_no_one_in(start: Start):
    async def converse(url: str) -> tuple[list[str], str, int | None, str]:
        async with connect(url, additional_headers={"Authorization": "Bearer key"}) as client:
            await client.send(speech(*range(1, 31)))  # ten chunks of 0.2 s each
            while json.loads(await client.recv())["type"] != "partial":
                pass
            server.send_signal(signal.SIGTERM)
            while await asyncio.to_thread(status, url, "/readyz") == 200:
                pass
            assert await asyncio.to_thread(status, url, "/healthz") == 200
            with pytest.raises(InvalidStatus) as refused:
                await connect(url + "?token=key")
            assert refused.value.response.status_code == 503
            assert json.loads(refused.value.response.body)["code"] == "draining"
            messages = [json.loads(message) async for message in all_of(client)]
            said = " ".join(each["text"] for each in messages if each["type"] == "final")
            return [messages[-1]["type"]], said, client.close_code, client.close_reason

    server = start(step_s=0.2, port="0", api_key="old,key", log_format="json", log_level="debug")
    kinds, said, code, reason = asyncio.run(converse(listening(server)))
    assert (kinds, said, code) == (["closed"], text(*range(1, 31)), 1001)
    assert "reconnect and resume" in reason
    out, err = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    told = [line["message"] for line in lines]
    assert {"open", "draining 1 conversations", "gone", "ended"} <= set(told)
    assert told[-1] == "ended"
    (gone,) = (line for line in lines if line["message"] == "gone")
    (opened,) = (line for line in lines if line["message"] == "open")
    assert (opened["path"], opened["client"]) == ("/v1/stream", "127.0.0.1")
    assert (gone["close"], gone["by"], gone["finals"], gone["audio_s"]) == (1001, "server", 1, 3.0)
    assert gone["session"] == opened["session"]
    assert "key" not in err
    assert "w1" not in err


def test_a_restart_costs_no_word(start: Start):
    """One server ends, another one comes at the same address: the client hears everything, once."""

    async def converse() -> tuple[str, Server]:
        first = start(step_s=0.05, port="0")
        url = listening(first)
        async with StreamClient(url, retries=100) as client:
            await client.send(speech(*range(1, 8)))
            events = [await anext(client)]  # the server has heard us
            first.send_signal(signal.SIGTERM)
            await client.send(speech(*range(8, 15)))
            _, err = await asyncio.to_thread(first.communicate, timeout=PATIENCE_S)
            assert first.returncode == 0, err
            second = start(port=url.split(":")[2].split("/")[0])
            assert await asyncio.to_thread(listening, second) == url
            await client.send(speech(*range(15, 21)))
            await client.close()
            events += [event async for event in client]
        return finals(events), second

    said, second = asyncio.run(converse())
    assert said == text(*range(1, 21))
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0


def test_a_second_signal_ends_the_server_at_once():
    async def main():
        engine = FakeEngine(step_s=0.5)
        async with serving(engine, drain_timeout_s=600) as running, connect(running.url) as client:
            await client.send(speech(*range(1, 31)))
            await until(lambda: engine.sessions)
            running.server.handle_exit(signal.SIGTERM, None)
            assert (await running.get("/readyz"))[0] == 503  # at once: before the server has begun to drain
            running.server.handle_exit(signal.SIGTERM, None)
            async for _ in all_of(client):
                pass
            await until(running.task.done)
            engine.step_s = 0

    asyncio.run(main())


def test_a_taken_port_is_one_line_and_exit_code_2_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        serve(Settings(port=taken.getsockname()[1]), build=lambda: pytest.fail("the model was loaded"))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("cannot listen on 127.0.0.1:")
    assert err.count("\n") == 1


def test_a_host_of_another_machine_is_one_line_that_does_not_blame_the_port(capsys):
    with pytest.raises(SystemExit) as ended:
        serve(Settings(host="192.0.2.1", port=0), build=lambda: pytest.fail("the model was loaded"))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("cannot listen on 192.0.2.1:0: ")
    assert "--host" in err
    assert "--port" not in err


def test_an_exposed_server_and_a_misspelt_variable_are_told(start: Start):
    server = start(port="0", host="0.0.0.0", slot="4")
    assert listening(server).startswith("ws://0.0.0.0:")
    server.send_signal(signal.SIGINT)
    assert server.stderr is not None
    err = server.stderr.read()  # not communicate, which does not see what was read ahead
    server.communicate(timeout=PATIENCE_S)
    assert err.startswith("a page to try it: http://0.0.0.0:")
    assert "ASR_STREAM_SLOT is in the environment, and is no setting" in err
    assert "ANYONE" in err
    assert server.returncode == 0


def test_a_certificate_makes_it_wss(tmp_path: Path):
    ca = trustme.CA()
    pem = tmp_path / "both.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)

    async def main():
        async with serving(tls_cert=pem, tls_key=pem) as running:
            async with connect(running.url.replace("ws:", "wss:"), ssl=trusting) as client:
                assert json.loads(await client.recv())["type"] == "ready"
            with pytest.raises(InvalidMessage):
                await connect(running.url)

    asyncio.run(main())
