"""Whatever breaks under a conversation, a client that resumes ends with exactly the words of an undisturbed run.

Every state of the protocol with the model that hears numbers; where a new start might cost real words, tiny.en with
the shipped samples. All audio is sent faster than it was spoken.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.asyncio.client import connect

import asr_stream
from asr.audio import SAMPLE_RATE, read_audio
from server import client as client_module
from server import dial as dial_module
from server.child import ChildServer, child_server
from server.client import StreamClient
from server.dial import ServerError
from server.processes import children, memory_mb
from streaming import final_pass
from streaming.engine import Engine
from streaming.events import Closed, Endpoint, Event, Final, Partial
from tests.server.cutting import Cut, CuttingProxy
from tests.server.fakes import BLOCK_BYTES, FakeEngine, speech, text
from tests.server.running import Running, serving, start, until
from tests.server.test_client import assert_one_story

SAMPLES = Path(__file__).parents[2] / "samples"
PATIENCE_S = 1200  # of a test beside others on the same cores

SPEAKING = Cut("partial", 2)
RESUMING = Cut("final")
FAULTS: dict[str, tuple[Cut, ...]] = {
    "accepted, not yet ready": (Cut("ready", arrives=False),),
    "ready, and nothing said": (Cut("ready"),),
    "in the first chunk": (Cut("audio", 2),),
    "the first chunk is said, its answer lost": (Cut("progress", arrives=False),),
    "a partial is shown": (SPEAKING,),
    "the newest partial is lost": (Cut("partial", 3, arrives=False),),
    "the endpoint is lost": (Cut("endpoint", arrives=False),),
    "the endpoint is told, its final pending": (Cut("endpoint"),),
    "the final is lost": (Cut("final", arrives=False),),
    "the final is told, and nothing after it": (Cut("final"),),
    "finalize is lost": (Cut("finalize", arrives=False),),
    "finalize is said, its final pending": (Cut("finalize"),),
    "finalize has its endpoint, its final pending": (Cut("endpoint", 2),),
    "the final of finalize is lost": (Cut("final", 2, arrives=False),),
    "close is lost": (Cut("close", arrives=False),),
    "close is said, its finals pending": (Cut("close"),),
    "close has its endpoint, its final pending": (Cut("endpoint", 3),),
    "the last final is lost": (Cut("final", 3, arrives=False),),
    "closed is lost": (Cut("closed", arrives=False),),
    "closed is told, the close frame lost": (Cut("goodbye", arrives=False),),
    "resuming: the upgrade is lost": (RESUMING, Cut("upgrade", arrives=False)),
    "resuming: the upgrade is not answered": (RESUMING, Cut("upgrade")),
    "resuming: the answer to the upgrade is lost": (RESUMING, Cut("accepted", arrives=False)),
    "resuming: accepted, not yet ready": (RESUMING, Cut("ready", arrives=False)),
    "resuming: resume is lost": (RESUMING, Cut("resume", arrives=False)),
    "resuming: resume is said": (RESUMING, Cut("resume")),
    "resuming: the first audio is said again": (RESUMING, Cut("audio")),
    "resuming: words are said again": (RESUMING, Cut("partial")),
    "resuming: an endpoint is told again": (Cut("endpoint"), Cut("endpoint", arrives=False)),
    "again and again in speech": (Cut("partial"),) * 5,
    "at every final": (Cut("final"),) * 3,
    "the network falls silent": (Cut("partial", 2, silent=True),),
}
WITH_WORDS = (
    "a partial is shown",
    "the endpoint is told, its final pending",
    "finalize is said, its final pending",
    "resuming: words are said again",
    "at every final",
    "the network falls silent",
)


@pytest.fixture(scope="module")
def script() -> list[np.ndarray | str]:
    """Three utterances: one ends by a pause, one by finalize, one by close."""
    jfk = read_audio(SAMPLES / "jfk.wav")
    pause = np.zeros(SAMPLE_RATE, np.float32)
    return [
        np.concatenate([read_audio(SAMPLES / "austen-0880.flac"), pause]),
        jfk[: round(2.25 * SAMPLE_RATE)],
        "finalize",
        jfk[round(3.2 * SAMPLE_RATE) : round(5.6 * SAMPLE_RATE)],
    ]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_pass, "MOST_PENDING", 1000)  # else streaming text may become the final under load
        engine = asr_stream.build_engine("tiny.en", slots=len(WITH_WORDS) + 2, threads=1)
        yield engine
        engine.close()


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "FIRST_DELAY_S", 0.01)
        patch.setattr(client_module, "LONGEST_DELAY_S", 0.2)
        yield


@contextlib.asynccontextmanager
async def serving_for_long(engine: Engine) -> AsyncIterator[Running]:
    """A server whose engine outlives it."""
    close, engine.close = engine.close, lambda: None  # type: ignore[method-assign]
    running = await start(engine, max_backlog_s=60)  # it reads on, so that pings are answered at once
    try:
        yield running
    finally:
        await running.stop()
        engine.close = close  # type: ignore[method-assign]


async def speak(client: StreamClient, script: Sequence[np.ndarray | bytes | str]) -> None:
    """In blocks of 100 ms."""
    for part in script:
        if isinstance(part, str):
            await client.finalize()
            continue
        block = BLOCK_BYTES if isinstance(part, bytes) else BLOCK_BYTES // 2
        for first in range(0, len(part), block):
            await client.send(part[first : first + block])


async def converse(url: str, script: Sequence[np.ndarray | bytes | str]) -> list[Event]:
    """The whole script; all events."""
    async with asyncio.timeout(PATIENCE_S), StreamClient(url, retries=10_000) as client:
        await speak(client, script)
        await client.close()
        return [event async for event in client]


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final)]


def assert_same_story(events: list[Event], undisturbed: list[Event]) -> None:
    """The same words, numbered through, each utterance ended once; partials go forward, Closed is last."""
    assert texts(events) == texts(undisturbed)
    assert_one_story(events)
    assert isinstance(events[-1], Closed)
    assert events[-1].words == sum(len(event.words) for event in events if isinstance(event, Final))


@pytest.fixture(scope="module")
def undisturbed(engine, script) -> list[Event]:
    async def main() -> list[Event]:
        async with serving_for_long(engine) as running:
            return await converse(running.url, script)

    events = asyncio.run(main())
    assert len(texts(events)) == 3
    assert all("".join(texts(events)))
    return events


@pytest.fixture(scope="module")
def disturbed(engine, script, undisturbed) -> dict[str, tuple[list[Event], int]]:
    """Of each fault: what its client heard, and how many cuts there were. All happen at the same time."""

    suspicious: list[str] = []  # servers whose silence is noticed in seconds

    def connect_quickly(url: str, **options: object) -> object:
        quickly = {"ping_interval": 5, "ping_timeout": 5} if url.partition("?")[0] in suspicious else {}
        return connect(url, **options, **quickly)

    async def one(port: int, cuts: tuple[Cut, ...]) -> tuple[list[Event], int]:
        async with CuttingProxy(port, cuts) as proxy:
            if any(cut.silent for cut in cuts):
                suspicious.append(proxy.url)
            events = await converse(proxy.url, script)
            return events, proxy.done

    async def main() -> list[tuple[list[Event], int]]:
        async with serving_for_long(engine) as running:
            heard = await asyncio.gather(*(one(running.port, FAULTS[fault]) for fault in WITH_WORDS))
            async with asyncio.timeout(PATIENCE_S):
                while running.house.connections:
                    await asyncio.sleep(0.05)
            assert running.house.free_slots == engine.slots
            return heard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dial_module, "connect", connect_quickly)
        return dict(zip(WITH_WORDS, asyncio.run(main()), strict=True))


@pytest.mark.parametrize("fault", WITH_WORDS)
def test_real_words_are_neither_lost_nor_repeated(fault, disturbed, undisturbed):
    events, cuts = disturbed[fault]
    assert cuts == len(FAULTS[fault])  # it happened
    assert_same_story(events, undisturbed)


NUMBERS = [speech(0, 0, 0, *range(1, 11), 0, 0), speech(*range(11, 20)), "finalize", speech(*range(20, 30))]


@pytest.mark.parametrize("fault", [fault for fault, cuts in FAULTS.items() if not cuts[0].silent])
def test_a_client_that_is_cut_off_loses_and_repeats_nothing(fault):
    async def main() -> None:
        async with serving(FakeEngine(step_s=0.005)) as running:
            undisturbed = await converse(running.url, NUMBERS)
            async with CuttingProxy(running.port, FAULTS[fault]) as proxy:
                events = await converse(proxy.url, NUMBERS)
                assert proxy.done == len(FAULTS[fault])
            await until(lambda: not running.house.connections)
            assert running.house.free_slots == running.engine.slots
        assert_same_story(events, undisturbed)
        assert texts(events) == [text(*range(1, 11)), text(*range(11, 20)), text(*range(20, 30))]

    asyncio.run(main())


def test_an_answer_that_is_lost_at_the_very_start_is_an_error_at_once():
    """Nothing has been said that could be lost, and the address may be wrong."""

    async def main() -> None:
        async with serving() as running:
            for cut in (Cut("upgrade", arrives=False), Cut("upgrade"), Cut("accepted", arrives=False)):
                async with CuttingProxy(running.port, [cut]) as proxy:
                    with pytest.raises(ServerError, match="is it running") as error:
                        await converse(proxy.url, NUMBERS)
                    assert error.value.transient

    asyncio.run(main())


def test_the_faults_are_counted(capsys):
    cuts = sum(map(len, FAULTS.values()))
    with capsys.disabled():
        sys.stdout.write(f" [{len(FAULTS)} faults, {cuts} cuts] ")
    assert (len(FAULTS), cuts) == (32, 47)


def test_an_engine_that_raises_in_the_midst_of_a_step_is_survived(engine, script, undisturbed, monkeypatch):
    """Whoever speaks is cut off, every time: in the first chunk, in speech, at the end of an utterance."""
    broken = []

    def breaks(part: str, method: str, calls: set[int]) -> None:
        stage, count = getattr(engine, part), itertools.count(1)
        works = getattr(stage, method)

        def step(*arguments: object, **named: object) -> object:
            if (call := next(count)) in calls:
                broken.append((method, call))
                raise RuntimeError("broken, as it was told to")
            return works(*arguments, **named)

        monkeypatch.setattr(stage, method, step)

    breaks("_voice", "step", {1, 9})
    breaks("_recognizer", "step", {3})
    breaks("_recognizer", "flush", {2})

    async def main() -> list[list[Event]]:
        async with serving_for_long(engine) as running:
            return await asyncio.gather(*(converse(running.url, script) for _ in range(2)))

    for events in asyncio.run(main()):
        assert_same_story(events, undisturbed)
    assert len(broken) == 4


async def through(
    url: str, script: Sequence[np.ndarray | str], disaster: contextlib.AbstractContextManager[object]
) -> tuple[list[Event], list[Event]]:
    """What two clients hear: disaster comes over one in speech, and over one whose final is pending."""
    spoken: list[Event] = []
    ended: list[Event] = []
    in_speech, at_end = (StreamClient(url, retries=10_000) for _ in range(2))

    async def listen(client: StreamClient, events: list[Event]) -> None:
        async for event in client:
            events.append(event)

    async with asyncio.timeout(PATIENCE_S), in_speech, at_end, asyncio.TaskGroup() as tasks:
        tasks.create_task(listen(in_speech, spoken))
        tasks.create_task(listen(at_end, ended))
        await speak(in_speech, script[:1])
        await in_speech.send(script[1][: len(script[1]) // 2])
        await speak(at_end, script[:3])
        await until(
            lambda: any(isinstance(one, Partial) and one.utterance == 1 for one in spoken), PATIENCE_S
        )
        await until(
            lambda: any(isinstance(one, Endpoint) and one.utterance == 1 for one in ended), PATIENCE_S
        )
        with disaster:
            await in_speech.send(script[1][len(script[1]) // 2 :])
            await speak(in_speech, script[2:])
            await speak(at_end, script[3:])
            await in_speech.close()
            await at_end.close()
            await until(lambda: all(isinstance(events[-1], Closed) for events in (spoken, ended)), PATIENCE_S)
    assert in_speech.reconnections > 0
    assert at_end.reconnections > 0
    return spoken, ended


def test_a_server_that_is_killed_and_started_again_is_survived(script, undisturbed):
    """The new server knows nothing of its clients."""
    command = asr_stream.serve_command("tiny.en", None, slots=2, engines=1)

    @contextlib.contextmanager
    def killed(server: ChildServer) -> Iterator[None]:
        os.kill(server.pid, signal.SIGKILL)
        again = [word.replace("--port=0", f"--port={urlsplit(server.url).port}") for word in command]
        with child_server(again):
            yield

    with child_server(command) as server:
        both = asyncio.run(through(server.url, script, killed(server)))
    for events in both:
        assert_same_story(events, undisturbed)


def test_an_engine_whose_process_is_killed_is_survived(script, undisturbed):
    """The server stays, and has a new engine in seconds; until then nobody is let in."""

    @contextlib.contextmanager
    def bereft(server: ChildServer) -> Iterator[None]:
        engine = max(children(server.pid), key=memory_mb)  # multiprocessing has a small one of its own
        os.kill(engine, signal.SIGKILL)
        yield
        assert engine not in children(server.pid)

    with child_server(asr_stream.serve_command("tiny.en", None, slots=2, engines=1)) as server:
        both = asyncio.run(through(server.url, script, bereft(server)))
    for events in both:
        assert_same_story(events, undisturbed)
