"""A conversation with an engine of this process."""

import asyncio

import numpy as np
import pytest

from server.local import LocalClient, converse
from streaming.events import Closed, Final
from streaming.listen import RecognitionError
from streaming.session import SessionOptions
from tests.server.fakes import FakeEngine, FakeSession


class SampleSession(FakeSession):
    """Takes the fake's audio as samples, too."""

    def receive_samples(self, samples: np.ndarray) -> None:
        self.receive((samples * 32768).astype("<i2").tobytes())


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    monkeypatch.setattr("tests.server.fakes.FakeSession", SampleSession)
    return FakeEngine()


async def spoken(*words: int):
    for word in words:
        yield np.full(1600, word / 32768, np.float32)


async def hear(engine: FakeEngine, *words: int) -> list:
    events: list = []
    async with LocalClient(engine, SessionOptions(chunk_ms=100)) as client:
        await converse(client, spoken(*words), events.append)
    return events


def test_all_is_heard_and_the_engine_closed(engine):
    events = asyncio.run(hear(engine, 1, 2, 0, 3))
    assert [event.text for event in events if isinstance(event, Final)] == ["w1 w2", "w3"]
    assert events[-1] == Closed(400, 2, 3)
    assert engine.closed


def test_a_failing_model_is_an_error_and_nothing_hangs(engine):
    engine.break_next = True
    with pytest.raises(RecognitionError, match="the fake model failed"):
        asyncio.run(hear(engine, 1, 2, 3))
    assert engine.free_slots == engine.slots


def test_a_source_that_fails_ends_the_conversation(engine):
    async def unplugged():
        yield np.zeros(1600, np.float32)
        raise OSError("unplugged")

    async def main() -> None:
        async with LocalClient(engine, SessionOptions(chunk_ms=100)) as client:
            await converse(client, unplugged(), print)

    with pytest.raises(OSError, match="unplugged"):
        asyncio.run(main())
    assert engine.free_slots == engine.slots
