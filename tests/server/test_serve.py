"""`serve` as a process: what it prints, and how it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

from server.client import StreamClient
from streaming.events import Final
from tests.server.fakes import speech

PROGRAM = """
from server.app import serve
from server.config import Settings
from tests.server.fakes import FakeEngine
serve(Settings(), FakeEngine())
"""


def start(**settings: str) -> subprocess.Popen[str]:
    environment = os.environ | {f"ASR_STREAM_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_terminated_server_finishes_its_conversations_and_ends_well():
    async def converse(url: str, server: subprocess.Popen[str]) -> str:
        async with StreamClient(url, token="key") as client:
            await client.send(speech(1, 2, 3))
            await anext(client)  # the first partial: the server has heard us
            server.send_signal(signal.SIGTERM)
            async for event in client:
                if isinstance(event, Final):
                    return event.text
        return ""

    server = start(port="0", api_key="key", log_format="json")
    assert server.stderr is not None
    line = server.stderr.readline()
    assert line.startswith("listening on ws://127.0.0.1:")
    assert line.endswith("/v1/stream\n")
    assert asyncio.run(converse(line.split()[-1], server)) == "w1 w2 w3"
    out, err = server.communicate(timeout=10)
    assert server.returncode == 0
    assert out == ""
    assert "draining 1 conversations" in err
    assert "key" not in err
    assert "w1" not in err


def test_a_taken_port_is_one_line_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(port=str(taken.getsockname()[1]))
        _, err = server.communicate(timeout=20)
    assert server.returncode == 2
    assert err.startswith("cannot listen on 127.0.0.1:")
    assert err.count("\n") == 1


def test_an_exposed_server_says_so():
    server = start(port="0", host="0.0.0.0")
    assert server.stderr is not None
    lines = [server.stderr.readline() for _ in range(3)]
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=10)
    assert lines[1].startswith("a page to try it: http://0.0.0.0:")
    assert "ANYONE" in lines[2]
    assert server.returncode == 0
