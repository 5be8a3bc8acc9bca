"""The load generator against a server whose speed is known."""

import asyncio
import math

import numpy as np

from server.load import run_load
from tests.server.fakes import FakeEngine
from tests.server.running import serving, start

SILENCE = np.zeros(16_000, dtype=np.float32)


def test_every_chunk_is_answered_and_its_lag_measured():
    async def main():
        async with serving(FakeEngine(slots=4, step_s=0.03)) as running:
            report = await run_load(running.url, [SILENCE], streams=4, seconds=0.6, chunk_ms=100)
        assert (report.streams, report.chunks, report.answered, report.errors) == (4, 24, 24, {})
        assert 30 <= report.lag_p50_ms <= report.lag_p95_ms <= report.lag_max_ms < 500
        assert report.messages >= 24
        assert 0 < report.pong_p95_ms <= report.pong_max_ms < 500

    asyncio.run(main())


def test_streams_that_find_no_slot_are_counted():
    async def main():
        async with serving(FakeEngine(slots=1)) as running:
            report = await run_load(running.url, [SILENCE], streams=3, seconds=0.3, chunk_ms=100)
        assert report.errors == {"full": 2}
        assert report.answered == 3

    asyncio.run(main())


def test_a_server_that_is_not_there_is_reported():
    async def main():
        running = await start(FakeEngine())
        await running.stop()
        report = await run_load(running.url, [SILENCE], streams=2, seconds=0.3, chunk_ms=100)
        assert report.errors == {"unreachable": 2}
        assert math.isnan(report.lag_p50_ms)

    asyncio.run(main())
