"""Two replicas behind one address: they share the load, one is killed in mid-stream, and no word is lost."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from asr.audio import SAMPLE_RATE, read_audio
from server import client as client_module
from server.child import ChildServer, child_server
from server.client import StreamClient
from server.dial import ServerError
from streaming.events import Closed, Event, Final
from tests.conftest import SAMPLES
from tests.server.fakes import speech, text

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SLOTS = 4
FAKE = f"""
import functools, sys
from server.config import Settings
from server.ray_serve import Replicas, serve
from tests.server.fakes import FakeEngine
serve(Settings(port=int(sys.argv[1]), slots={SLOTS}), functools.partial(FakeEngine, {SLOTS}, 0.002), Replicas(2, 2))
"""
REAL = """
import sys
from asr_stream import main
sys.argv[1:] = ["serve", "--ray", "--replicas", "2", "--slots", "4", "--port", sys.argv[1]]
main()
"""
PATIENT = {  # what Ray gives up after, for machines that are busy
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "2",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
}
PATIENCE_S = 300


@contextmanager
def serving(program: str) -> Iterator[ChildServer]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        with child_server([sys.executable, "-c", program, str(port)]) as server:
            yield server


@pytest.fixture(scope="module")
def fake() -> Iterator[ChildServer]:
    with serving(FAKE) as server:
        yield server


def replicas(root: int) -> list[int]:
    """The processes of the replicas that `root` has started."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    children = defaultdict(list)
    for line in listed.splitlines():
        pid, parent, *command = line.split(maxsplit=2)
        children[int(parent)].append((int(pid), "".join(command)))
    found, parents = [], [root]
    while parents:
        for pid, command in children[parents.pop()]:
            parents.append(pid)
            if command.replace("_", "").lower().startswith("ray::servereplica"):
                found.append(pid)
    return found


def get(server: ChildServer, path: str) -> str:
    url = server.url.replace("ws://", "http://").replace("/v1/stream", path)
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return response.read().decode()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.5)


class Speaker:
    """Says the first half of its pieces, waits for the word to go on, and keeps what it hears."""

    def __init__(
        self, server: ChildServer, pieces: Sequence[bytes | np.ndarray], final_pass: str | None = None
    ) -> None:
        self.heard: list[Event] = []
        self.go_on = asyncio.Event()
        self._client = StreamClient(server.url, chunk_ms=200, final_pass=final_pass, retries=100)
        self._pieces = pieces

    async def speak(self) -> str:
        """Everything that was understood."""
        half = len(self._pieces) // 2
        async with asyncio.timeout(PATIENCE_S), self._client as client:
            listening = asyncio.create_task(self._listen(client))
            for number, piece in enumerate(self._pieces):
                if number == half:
                    await self.go_on.wait()
                await client.send(piece)
                await asyncio.sleep(0.02)
            await client.close()
            await listening
        finals = [event for event in self.heard if isinstance(event, Final)]
        assert [final.utterance for final in finals] == list(range(len(finals)))
        assert isinstance(self.heard[-1], Closed)
        return " ".join(final.text for final in finals)

    async def _listen(self, client: StreamClient) -> None:
        async for event in client:
            self.heard.append(event)

    @property
    def finals(self) -> int:
        return sum(isinstance(event, Final) for event in self.heard)


@pytest.fixture
def dials(monkeypatch) -> list[str]:
    """Every connection that clients open."""
    opened = []
    dial = client_module.dial

    async def counting(url: str, token: str | None):
        opened.append(url)
        return await dial(url, token)

    monkeypatch.setattr(client_module, "dial", counting)
    return opened


async def speak_while_one_is_killed(server: ChildServer, speakers: list[Speaker]) -> list[str]:
    """Kills a replica while all go on with the second half, of what they have heard finals and partials."""
    speaking = []
    for speaker in speakers:  # one after another, so that each replica has some
        speaking.append(asyncio.create_task(speaker.speak()))
        await until(lambda: speaker.finals > 0 or speaking[-1].done())  # noqa: B023
    for speaker in speakers:
        speaker.go_on.set()
    os.kill(replicas(server.pid)[0], signal.SIGKILL)
    return await asyncio.gather(*speaking)


def test_a_killed_replica_loses_and_repeats_nothing(fake, dials):
    async def main():
        await until(lambda: len(running(fake)) == 2)
        pieces = [speech(number, 0) if number % 7 == 0 else speech(number) for number in range(1, 121)]
        heard = await speak_while_one_is_killed(fake, [Speaker(fake, pieces) for _ in range(SLOTS)])
        assert heard == [text(*range(1, 121))] * SLOTS
        assert len(dials) > SLOTS, "nobody had to resume"
        await until(lambda: len(running(fake)) == 2)  # a new one has taken its place

    asyncio.run(main())


def test_conversations_fill_both_replicas_and_who_is_too_many_is_refused_in_words(fake):
    async def main():
        await until(lambda: len(running(fake)) == 2)
        clients = [StreamClient(fake.url) for _ in range(2 * SLOTS)]
        for client in clients:
            await client.__aenter__()
            await client.send(speech(1))
        with pytest.raises(ServerError, match="every slot is taken") as refusal:
            await StreamClient(fake.url).__aenter__()
        assert (refusal.value.code, refusal.value.transient) == ("full", True)
        assert sorted(running(fake).values()) == [SLOTS, SLOTS]
        for client in clients:
            await client.__aexit__(None, None, None)

    asyncio.run(main())


def running(server: ChildServer) -> dict[str, float]:
    """Conversations of every replica, as the metrics tell."""
    families = text_string_to_metric_families(get(server, "/metrics"))
    family = next(family for family in families if family.name == "asr_stream_sessions")
    return {sample.labels["replica"]: sample.value for sample in family.samples}


def test_the_page_and_health_are_beside_full_replicas(fake):
    assert json.loads(get(fake, "/healthz"))["status"] == "ok"
    assert "<html" in get(fake, "/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(fake, "/nowhere")


def test_the_real_model_goes_on_where_it_was(dials):
    """Without the second pass, which a busy machine leaves out; case and commas may hang on what was before."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    clips = [read_audio(SAMPLES / f"austen-0{number}.flac") for number in (870, 880, 890)]
    samples = np.concatenate([piece for clip in clips for piece in (clip, pause)])
    pieces = [samples[start : start + 4800] for start in range(0, len(samples), 4800)]

    async def main():
        with serving(REAL) as server:
            await until(lambda: len(running(server)) == 2)
            undisturbed = Speaker(server, pieces, "none")
            undisturbed.go_on.set()
            expected = words(await undisturbed.speak())
            assert len(expected) > 30
            dials.clear()
            heard = await speak_while_one_is_killed(
                server, [Speaker(server, pieces, "none") for _ in range(2)]
            )
            assert [words(line) for line in heard] == [expected] * 2
            assert len(dials) > 2, "nobody had to resume"

    asyncio.run(main())


def words(line: str) -> list[str]:
    return re.findall(r"[a-z']+", line.lower())
