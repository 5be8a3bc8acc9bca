"""Half an hour of bad manners: clients come, go, vanish, pause, stall and freeze; and what that leaves of a server.

Every clip is first heard alone and quietly. Then each client says clips in real time, ends each by `finalize`, after
which the server begins afresh, and what it heard of a clip must be what was heard of it in quiet.
"""

import asyncio
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from server.child import ChildServer
from server.client import StreamClient
from server.dial import ServerError
from server.load import SAMPLE_RATE
from server.soak_report import SoakReport, compare
from server.terminal import Show
from streaming.events import Final

BLOCK = SAMPLE_RATE // 10  # samples of one message
LOOK_S = 1.0  # between two looks at the server's memory
RETRIES = 20  # of a client whose connection was lost
SETTLE_S = 20.0  # for the last slots to come back


class Manner(StrEnum):
    VANISH = "vanished"  # its TCP connection is gone; it comes back and resumes
    PAUSE = "paused"  # says nothing, not even silence
    STALL = "stalled"  # speaks, and does not read
    FREEZE = "froze"  # does nothing at all until the server takes it for dead; it comes back and resumes


#: At least and at most, in seconds.
WAIT_S, SILENCE_S = (0.0, 3.0), (0.2, 4.0)
SPANS_S = {
    Manner.VANISH: (0.0, 0.0),
    Manner.PAUSE: (1.0, 15.0),
    Manner.STALL: (2.0, 20.0),
    Manner.FREEZE: (10.5, 15.0),  # a server's idle_timeout_s is 10
}


@dataclass(frozen=True)
class Incident:
    """What a client does `at_s` into a clip."""

    at_s: float
    manner: Manner
    seconds: float


@dataclass(frozen=True)
class Turn:
    """One clip, after some silence."""

    clip: str
    silence_s: float
    incidents: tuple[Incident, ...]


@dataclass(frozen=True)
class Visit:
    """One conversation; a client that does not close it is gone without a word."""

    wait_s: float  # before it comes
    turns: tuple[Turn, ...]
    closes: bool


def visits(seed: int, stream: int, lengths_s: Mapping[str, float]) -> Iterator[Visit]:
    """What one client does, one visit after another, without end: the same for the same seed."""
    draw = random.Random(f"{seed} {stream}")

    def turn() -> Turn:
        clip = draw.choice(sorted(lengths_s))
        incidents = []
        for manner in draw.choices(list(Manner), k=draw.choice((0, 0, 1, 1, 2))):
            at_s = draw.uniform(0.0, lengths_s[clip])
            incidents.append(Incident(at_s, manner, draw.uniform(*SPANS_S[manner])))
        silence_s = draw.choice((0.0, draw.uniform(*SILENCE_S)))
        return Turn(clip, silence_s, tuple(sorted(incidents, key=lambda each: each.at_s)))

    while True:
        turns = tuple(turn() for _ in range(draw.randint(1, 4)))
        yield Visit(draw.uniform(*WAIT_S), turns, closes=draw.random() < 0.8)


def soak(
    server: ChildServer,
    clips: Mapping[str, np.ndarray],
    streams: int,
    seconds: float,
    seed: int,
    *,
    stop: Callable[[], bool],
    progress: Show,
) -> SoakReport:
    """Disturbs `server`, which must have `streams` slots, for `seconds`, or until `stop`.

    clips: by name, float32 mono 16 kHz, (n,) each.
    """
    run = _Soak(server, clips, SoakReport(streams, seed, seconds), stop, progress)
    asyncio.run(run.run())
    return run.report


class _Soak:
    def __init__(
        self,
        server: ChildServer,
        clips: Mapping[str, np.ndarray],
        report: SoakReport,
        stop: Callable[[], bool],
        progress: Show,
    ) -> None:
        self.report = report
        self._server = server
        self._clips = {
            name: clip[: len(clip) // 16 * 16] for name, clip in clips.items()
        }  # whole milliseconds
        self._quiet: dict[str, str] = {}
        self._stop, self._progress = stop, progress
        self._ends_at = float("inf")

    async def run(self) -> None:
        """The quiet run, then the soak: to its end, or as far as it comes."""
        for number, (name, clip) in enumerate(self._clips.items(), 1):
            if self._stop():
                return
            self._quiet[name] = await self._alone(clip)
            self._progress(0, None, f"in quiet: {number} of {len(self._clips)} clips")
        started = time.monotonic()
        self._ends_at = started + self.report.planned_s
        clients = {asyncio.create_task(self._client(number)) for number in range(self.report.streams)}
        while not self._stop() and not all(client.done() for client in clients):
            self.report.seconds = time.monotonic() - started
            if (mb := self._server.memory_mb()) is not None:
                self.report.memory_mb.append((self.report.seconds, mb))
            elif self.report.memory_mb:
                self.report.errors["the server has died"] += 1
                break
            self._tell()
            await asyncio.wait(clients, timeout=LOOK_S)
        for client in clients:
            client.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended  # a mistake of ours
        await self._settle()

    def _tell(self) -> None:
        report, minutes = self.report, self.report.planned_s / 60
        note = (
            f"{report.visits} conversations, {report.reconnections} reconnections, {report.lost} words lost"
        )
        self._progress(min(report.seconds / 60, minutes), minutes, note)

    async def _alone(self, clip: np.ndarray) -> str:
        """What the server hears of a clip when nothing disturbs it, as fast as it takes it."""
        async with StreamClient(self._server.url) as client:
            await client.send(clip)
            await client.finalize()
            await client.close()
            return " ".join([event.text async for event in client if isinstance(event, Final)])

    async def _client(self, number: int) -> None:
        lengths_s = {name: len(clip) / SAMPLE_RATE for name, clip in self._clips.items()}
        for visit in visits(self.report.seed, number, lengths_s):
            await asyncio.sleep(visit.wait_s)
            if time.monotonic() >= self._ends_at:
                return
            try:
                await self._visit(visit)
            except ServerError as error:
                if error.code == "full":
                    self.report.refused += 1
                else:
                    self.report.errors[error.code] += 1
                await asyncio.sleep(1.0)

    async def _visit(self, visit: Visit) -> None:
        """Raises ServerError."""
        async with StreamClient(self._server.url, retries=RETRIES) as client:
            self.report.visits += 1
            talk = _Talk(client)
            listening = asyncio.create_task(talk.finals())
            try:
                await self._speak(talk, visit)
                if visit.closes:
                    await client.close()
                    self._judge(talk, await listening)
                    self.report.closed += 1
                else:
                    client.connection.transport.abort()
                    self.report.left += 1
            finally:
                self.report.reconnections += client.reconnections
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _speak(self, talk: "_Talk", visit: Visit) -> None:
        """Turn by turn; none begins after the end of the soak."""
        end, due = 0, time.monotonic()
        for turn in visit.turns:
            silence = np.zeros(int(turn.silence_s * 10) * BLOCK, np.float32)
            for name, samples, incidents in (
                ("", silence, ()),
                (turn.clip, self._clips[turn.clip], turn.incidents),
            ):
                talk.tell(f"says {name}" if name else "is silent")
                due = await self._say(talk, samples, list(incidents), due)
                await talk.client.finalize()
                end += len(samples)
                talk.said.append((name, end * 1000 // SAMPLE_RATE))
            if time.monotonic() >= self._ends_at:
                return

    async def _say(self, talk: "_Talk", samples: np.ndarray, incidents: list[Incident], due: float) -> float:
        """In real time from `due` on, and when the last of it was due: the client's clock stands while it pauses."""
        for start in range(0, len(samples), BLOCK):
            while incidents and incidents[0].at_s * SAMPLE_RATE <= start:
                due += await self._misbehave(talk, incidents.pop(0))
            block = samples[start : start + BLOCK]
            due += len(block) / SAMPLE_RATE
            await asyncio.sleep(due - time.monotonic())
            await talk.client.send(block)
            self.report.audio_s += len(block) / SAMPLE_RATE
        return due

    async def _misbehave(self, talk: "_Talk", incident: Incident) -> float:
        """How long the client says nothing, in seconds."""
        self.report.incidents[incident.manner.value] += 1
        talk.tell(f"{incident.manner}, {incident.seconds:.1f} s")
        transport = talk.client.connection.transport
        match incident.manner:
            case Manner.VANISH:
                transport.abort()
            case Manner.STALL:
                transport.pause_reading()
                asyncio.get_running_loop().call_later(incident.seconds, transport.resume_reading)
            case Manner.PAUSE | Manner.FREEZE:
                talk.client.keepalives = incident.manner is Manner.PAUSE
                await asyncio.sleep(incident.seconds)
                talk.client.keepalives = True
                return incident.seconds
        return 0.0

    def _judge(self, talk: "_Talk", finals: list[Final]) -> None:
        """Each final belongs to the clip that was said when its audio ended."""
        start_ms = 0
        for clip, end_ms in talk.said:
            heard = " ".join(final.text for final in finals if start_ms < final.audio_ms <= end_ms)
            quiet = self._quiet.get(clip, "")
            if (difference := compare(clip, quiet, heard)) is not None:
                self.report.differences.append(replace(difference, story=tuple(talk.story)))
            self.report.clips += bool(clip)
            self.report.words += len(quiet.split())
            start_ms = end_ms

    async def _settle(self) -> None:
        """Waits until every slot is free, which they should be at once."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            self.report.slots_free = await asyncio.to_thread(free_slots, self._server.url)
            with suppress(OSError):  # it has died
                self.report.second_passes = await asyncio.to_thread(self._server.second_passes)
            if self.report.slots_free == self.report.streams:
                return
            await asyncio.sleep(0.2)


class _Talk:
    """One conversation: what its client has said, and its story, for whoever must explain a difference."""

    def __init__(self, client: StreamClient) -> None:
        self.client = client
        self.said: list[tuple[str, int]] = []  # (clip, or nothing for silence; where it ended, ms)
        self.story: list[str] = []
        self._began = time.monotonic()
        self._losses = 0

    def tell(self, what: str) -> None:
        """Adds a line, behind those of connections that were lost since the last one."""
        losses = self.client.losses[self._losses :]
        self._losses += len(losses)
        at_s = time.monotonic() - self._began
        self.story += [f"{at_s:.1f} s: {line}" for line in (*(f"is back: {loss}" for loss in losses), what)]

    async def finals(self) -> list[Final]:
        """All that the client hears until its conversation is over."""
        finals = []
        async for event in self.client:
            if isinstance(event, Final):
                finals.append(event)
                self.tell(f"hears {event.text!r}, to {event.audio_ms} ms")
        return finals


def free_slots(url: str) -> int | None:
    """What the server at `url` (ws://.../v1/stream) says of its slots; None where it does not answer."""
    ready = url.replace("ws://", "http://").replace("/v1/stream", "/readyz")
    try:
        with urllib.request.urlopen(ready, timeout=10) as response:
            return int(json.load(response)["free_slots"])
    except urllib.error.HTTPError as error:  # 503: none
        return int(json.load(error)["free_slots"])
    except OSError:
        return None
