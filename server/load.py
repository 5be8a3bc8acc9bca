"""A load generator: many clients that speak in real time, and how long each chunk waits for its answer."""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from server.dial import ServerError, dial, encode, json_object, with_query

SAMPLE_RATE = 16_000
PATIENCE_S = 30.0  # for the last answers, after the last chunk was due
PING_EVERY_S = 1.0
ARRIVALS_S = 5.0  # all at once, speakers would also stop all at once, which independent ones do not


@dataclass(frozen=True)
class LoadReport:
    """What `streams` clients saw. A chunk's lag: from its last sample spoken to the answer that covers it."""

    streams: int
    seconds: float  # of audio, each
    chunks: int  # sent
    answered: int  # of them
    lag_p50_ms: float  # NaN when nothing was answered
    lag_p95_ms: float
    lag_max_ms: float
    pong_p95_ms: float  # from a ping to its answer, which no model may delay; NaN where none came
    pong_max_ms: float
    messages: int  # from the server
    errors: dict[str, int]  # how many streams ended by what


@dataclass
class _Stream:
    """One client's tally."""

    chunk_ms: int
    patience_s: float
    spoken: deque[tuple[int, float]] = field(default_factory=deque)  # not yet answered: (end, ms; when, s)
    lags: list[tuple[float, float]] = field(default_factory=list)  # (when the chunk was due, s; lag, ms)
    pongs_ms: list[float] = field(default_factory=list)
    chunks: int = 0
    messages: int = 0
    error: str | None = None

    async def run(
        self, url: str, token: str | None, samples: np.ndarray, seconds: float, delay_s: float
    ) -> None:
        """Never raises for what the server does: it is what is measured."""
        await asyncio.sleep(delay_s)
        query = {
            "chunk_ms": self.chunk_ms,
            "sample_rate": SAMPLE_RATE,
            "encoding": "s16le",
            "progress": "true",
        }
        try:
            socket = await dial(with_query(url, query), token)
        except ServerError as error:
            self.error = error.code
            return
        speaker = asyncio.create_task(self._speak(socket, samples, round(seconds * 1000 / self.chunk_ms)))
        pinger = asyncio.create_task(self._ping(socket))
        try:
            async with asyncio.timeout(seconds + self.patience_s):
                await self._listen(socket)
        except TimeoutError:
            self.error = "no_answer"
        finally:
            speaker.cancel()
            pinger.cancel()
            await asyncio.wait({speaker, pinger})
            await socket.close()

    async def _speak(self, socket: ClientConnection, samples: np.ndarray, chunks: int) -> None:
        """A chunk is sent when its last sample has been spoken.

        Its lag counts from then, even where the server takes it late: what waits in front of a full server
        has been said as well ("coordinated omission").
        """
        chunk_samples = SAMPLE_RATE * self.chunk_ms // 1000
        started = time.monotonic()
        for number in range(1, chunks + 1):
            due = started + number * self.chunk_ms / 1000
            await asyncio.sleep(due - time.monotonic())
            window = np.arange((number - 1) * chunk_samples, number * chunk_samples)
            self.spoken.append((number * self.chunk_ms, due))
            self.chunks += 1
            await socket.send(encode(samples.take(window, mode="wrap"), "s16le"))
        await socket.send(json.dumps({"type": "close"}))

    async def _ping(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                self.pongs_ms.append(1000 * await (await socket.ping()))
                await asyncio.sleep(PING_EVERY_S)

    async def _listen(self, socket: ClientConnection) -> None:
        closed = False
        try:
            async for text in socket:
                now = time.monotonic()
                message = json_object(str(text))
                self.messages += 1
                if message.get("type") == "error":
                    self.error = str(message.get("code"))
                closed = closed or message.get("type") == "closed"
                while self.spoken and self.spoken[0][0] <= message.get("audio_ms", 0):
                    due = self.spoken.popleft()[1]
                    self.lags.append((due, (now - due) * 1000))
        except ConnectionClosed:
            pass  # the server's error, if it told one, is noted
        if not closed and self.error is None:
            self.error = f"closed_{socket.close_code}"


async def run_load(
    url: str,
    samples_list: Sequence[np.ndarray],
    streams: int,
    seconds: float,
    chunk_ms: int,
    *,
    token: str | None = None,
    patience_s: float = PATIENCE_S,
) -> LoadReport:
    """Speaks to the server at `url` with `streams` clients for `seconds`, over and over the given recordings.

    samples_list: float32 mono 16 kHz, (n,) each; stream i speaks recording i mod their number. The clients come
    one after another within a quarter of the time, ARRIVALS_S at most, and go likewise; lags are those of chunks
    that were due while all of them spoke. `patience_s` after its last chunk a client gives up.
    """
    arrivals_s = min(ARRIVALS_S, seconds / 4)
    started = time.monotonic()
    clients = [_Stream(chunk_ms, patience_s) for _ in range(streams)]
    await asyncio.gather(
        *(
            client.run(url, token, samples_list[i % len(samples_list)], seconds, i * arrivals_s / streams)
            for i, client in enumerate(clients)
        )
    )
    answered = [answer for client in clients for answer in client.lags]
    lags_ms = np.array([lag for due, lag in answered if arrivals_s <= due - started <= seconds])
    pongs_ms = np.array([pong for client in clients for pong in client.pongs_ms])
    p50, p95, longest = _quantiles(lags_ms, 0.5, 0.95, 1.0)
    pong_p95, slowest_pong = _quantiles(pongs_ms, 0.95, 1.0)
    return LoadReport(
        streams=streams,
        seconds=seconds,
        chunks=sum(client.chunks for client in clients),
        answered=len(answered),
        lag_p50_ms=p50,
        lag_p95_ms=p95,
        lag_max_ms=longest,
        pong_p95_ms=pong_p95,
        pong_max_ms=slowest_pong,
        messages=sum(client.messages for client in clients),
        errors=dict(Counter(client.error for client in clients if client.error is not None)),
    )


def _quantiles(values: np.ndarray, *at: float) -> list[float]:
    return [float(value) for value in np.quantile(values, at)] if values.size else [np.nan] * len(at)
