"""How many conversations at once, and what each of them takes: load on a real server over real sockets."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from server.child import ChildServer
from server.dial import ServerError
from server.load import PATIENCE_S, LoadReport, run_load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WARM_UP_S = 3.0
LATE_S = 15.0  # no longer need a trial wait for the last answers; finals of many streams come in turn
LOOK_S = 0.25  # between two looks at a server's memory


@dataclass(frozen=True)
class BenchReport:
    """What the clients saw, and what the server took for it; None where the system does not tell."""

    load: LoadReport
    chunk_ms: int
    cpu_cores: float | None  # that it kept busy, on average
    cpus: int  # of the machine
    memory_mb: float | None  # behind the last chunk: what conversations took is not given back
    second_passes: dict[str, int]  # how many finals: heard, skipped since too many waited, failed

    @property
    def in_time(self) -> bool:
        """Whether every chunk was answered, and 95 % of them within the time of one chunk."""
        load = self.load
        return not load.errors and load.answered == load.chunks and load.lag_p95_ms < self.chunk_ms

    def as_json(self) -> dict[str, object]:
        values = asdict(self) | asdict(self.load)
        del values["load"]
        return {key: _rounded(value) for key, value in values.items()}

    def table(self) -> Table:
        """The numbers for people."""
        load = self.load
        table = Table(
            title=f"{load.streams} streams of {load.seconds:g} s, chunks of {self.chunk_ms} ms", min_width=40
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_row("lag, median", f"{load.lag_p50_ms:.0f} ms")
        table.add_row("lag, 95 %", f"{load.lag_p95_ms:.0f} ms")
        table.add_row("lag, longest", f"{load.lag_max_ms:.0f} ms")
        table.add_row("pings answered within, 95 %", f"{load.pong_p95_ms:.0f} ms")
        table.add_row("pings answered within, longest", f"{load.pong_max_ms:.0f} ms")
        table.add_row("chunks answered", f"{load.answered} of {load.chunks}")
        table.add_row("messages", str(load.messages))
        table.add_row("errors", _errors(load))
        if any(self.second_passes.values()):
            table.add_row("finals without their second pass", unheard(self.second_passes))
        if self.cpu_cores is not None:
            table.add_row("CPU of the server", f"{self.cpu_cores:.2f} of {self.cpus} cores")
        if self.memory_mb is not None:
            table.add_row("memory of the server", f"{self.memory_mb:.0f} MB")
        return table


def measure(
    server: ChildServer,
    recordings: Sequence[np.ndarray],
    streams: int,
    seconds: float,
    chunk_ms: int,
    *,
    patience_s: float = PATIENCE_S,
) -> BenchReport:
    """Loads `server` as `run_load` does, after a short conversation that is not measured."""
    asyncio.run(run_load(server.url, recordings[:1], 1, WARM_UP_S, chunk_ms))
    passes_before = server.second_passes()
    started, cpu_before = time.monotonic(), server.cpu_seconds()
    load = asyncio.run(run_load(server.url, recordings, streams, seconds, chunk_ms, patience_s=patience_s))
    wall_s, cpu_after = time.monotonic() - started, server.cpu_seconds()
    return BenchReport(
        load,
        chunk_ms,
        cpu_cores=None if cpu_before is None or cpu_after is None else (cpu_after - cpu_before) / wall_s,
        cpus=os.cpu_count() or 1,
        memory_mb=server.memory_mb(),
        second_passes={name: n - passes_before.get(name, 0) for name, n in server.second_passes().items()},
    )


@dataclass(frozen=True)
class CapacityReport:
    """Trials with ever more streams, in the order in which they were made; `most`: no more were tried."""

    trials: tuple[BenchReport, ...]
    most: int

    @property
    def capacity(self) -> int:
        """The largest number of streams that was served in time; 0 where one was too many."""
        return max((trial.load.streams for trial in self.trials if trial.in_time), default=0)

    def as_json(self) -> dict[str, object]:
        return {
            "capacity_streams": self.capacity,
            "at_least": self.capacity == self.most,  # more may do: they were not tried
            "curve": [_of_curve(trial) for trial in self._by_streams()],
        }

    def table(self) -> Table:
        """The curve for people."""
        chunk_ms = self.trials[0].chunk_ms
        more = " or more" if self.capacity == self.most else ""
        table = Table(title=f"{self.capacity} streams{more} in time, chunks of {chunk_ms} ms")
        lags, rest = ("lag, median", "95 %", "longest"), ("longest ping", "answered", "CPU, cores", "errors")
        for heading in ("streams", *lags, *rest, "no second pass"):
            table.add_column(heading, justify="right")
        for trial in self._by_streams():
            load = trial.load
            table.add_row(
                str(load.streams),
                *(
                    f"{ms:.0f} ms"
                    for ms in (load.lag_p50_ms, load.lag_p95_ms, load.lag_max_ms, load.pong_max_ms)
                ),
                f"{load.answered} of {load.chunks}",
                "" if trial.cpu_cores is None else f"{trial.cpu_cores:.2f} of {trial.cpus}",
                _errors(load),
                unheard(trial.second_passes),
                style=None if trial.in_time else "dim",
            )
        return table

    def plot(self, path: Path) -> None:
        """Lag against streams, with the chunk that it must stay below, as PNG."""
        from matplotlib.figure import Figure

        trials = [trial for trial in self._by_streams() if trial.load.answered]
        streams = [trial.load.streams for trial in trials]
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        panel = figure.subplots()
        panel.plot(streams, [trial.load.lag_p50_ms for trial in trials], "o-", label="lag, median")
        panel.plot(streams, [trial.load.lag_p95_ms for trial in trials], "o-", label="lag, 95 %")
        panel.axhline(self.trials[0].chunk_ms, color="grey", linestyle="--", label="one chunk")
        panel.axvline(self.capacity, color="grey", linestyle=":", label=f"{self.capacity} streams in time")
        panel.set(xlabel="concurrent streams in real time", ylabel="ms", yscale="log")
        panel.legend()
        save_figure(figure, path)

    def _by_streams(self) -> list[BenchReport]:
        return sorted(self.trials, key=lambda trial: trial.load.streams)


def _of_curve(trial: BenchReport) -> dict[str, object]:
    """Without memory: the server may have taken it in a trial before, with more streams."""
    values = {key: value for key, value in trial.as_json().items() if key != "memory_mb"}
    return values | {"in_time": trial.in_time}


def find_capacity(trial: Callable[[int], BenchReport], most: int) -> Iterator[CapacityReport]:
    """The largest number of streams up to `most` that are served in time: by doubling, then by bisection.

    trial: measures so many streams.

    Yields what is known after each trial; the last one tells the capacity.
    """
    trials: list[BenchReport] = []
    kept, failed = 0, most + 1
    streams = 1
    while kept + 1 < failed:
        trials.append(trial(streams))
        yield CapacityReport(tuple(trials), most)
        if trials[-1].in_time:
            kept = streams
        else:
            failed = streams
        streams = min(2 * kept, most) if failed > most else (kept + failed) // 2


@dataclass(frozen=True)
class MemoryPoint:
    """The most that a server had resident while so many streams spoke."""

    load: LoadReport
    resident_mb: float


@dataclass(frozen=True)
class MemoryReport:
    """Servers' memory against the streams that each is made for, all of them speaking, and the line through it."""

    points: tuple[MemoryPoint, ...]

    @property
    def line(self) -> tuple[float, float] | None:
        """MB of the server itself, and of each stream, by least squares; None of fewer than two points."""
        if len(self.points) < 2:
            return None
        slope, intercept = np.polyfit(self._streams, [point.resident_mb for point in self.points], 1)
        return float(intercept), float(slope)

    def as_json(self) -> dict[str, object]:
        found = self.line
        line = {} if found is None else {"server_mb": round(found[0], 2), "stream_mb": round(found[1], 3)}
        points = [
            {
                "streams": point.load.streams,
                "resident_mb": round(point.resident_mb, 2),
                "errors": point.load.errors,
            }
            for point in self.points
        ]
        return line | {"seconds": self.points[0].load.seconds, "points": points}

    def table(self) -> Table:
        """The numbers for people."""
        table = Table(title="Memory of a server", min_width=40)
        for heading in ("streams", "resident memory", "errors"):
            table.add_column(heading, justify="right")
        for point in self.points:
            table.add_row(str(point.load.streams), f"{point.resident_mb:.0f} MB", _errors(point.load))
        if (found := self.line) is not None:
            table.add_section()
            table.add_row("the server itself", f"{found[0]:.0f} MB")
            table.add_row("each stream", f"{found[1]:.1f} MB")
        return table

    def plot(self, path: Path) -> None:
        """Memory against streams, and the line, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        panel = figure.subplots()
        panel.plot(self._streams, [point.resident_mb for point in self.points], "o")
        if (found := self.line) is not None:
            line = [found[0] + found[1] * streams for streams in self._streams]
            panel.plot(self._streams, line, label=f"{found[1]:.1f} MB per stream")
            panel.legend()
        panel.set(xlabel="streams that speak", ylabel="resident memory of the server, MB", ylim=(0, None))
        save_figure(figure, path)

    @property
    def _streams(self) -> list[int]:
        return [point.load.streams for point in self.points]


def measure_memory(
    serve: Callable[[int], AbstractContextManager[ChildServer]],
    recordings: Sequence[np.ndarray],
    most: int,
    seconds: float,
    chunk_ms: int,
) -> Iterator[MemoryReport]:
    """The server's memory while 1, 2, 4, ... and `most` streams speak, each for `seconds`.

    serve: starts a server with so many slots. Each number of streams has a server of its own with no slot to
    spare, since what slots hold is taken when the server starts.

    Yields what is known after each number of streams. Raises ServerError where the system does not tell.
    """
    points: list[MemoryPoint] = []
    for streams in sorted({*(2**i for i in range(most.bit_length())), most}):
        with serve(streams) as server:
            points.append(asyncio.run(_watched(server, recordings, streams, seconds, chunk_ms)))
        yield MemoryReport(tuple(points))


async def _watched(
    server: ChildServer, recordings: Sequence[np.ndarray], streams: int, seconds: float, chunk_ms: int
) -> MemoryPoint:
    load = asyncio.create_task(run_load(server.url, recordings, streams, seconds, chunk_ms))
    resident_mb = 0.0
    while not load.done():
        await asyncio.wait({load}, timeout=LOOK_S)
        if (now_mb := server.memory_mb()) is None:
            load.cancel()
            raise ServerError(
                "unknown_memory", "this system does not tell how much memory a process has: use Linux"
            )
        resident_mb = max(resident_mb, now_mb)
    return MemoryPoint(await load, resident_mb)


def save_figure(figure: "Figure", path: Path) -> None:
    """As PNG, whole or not at all."""
    draft = path.with_name(f"{path.name}.part")
    figure.savefig(draft, format="png", dpi=110)
    draft.replace(path)


def unheard(second_passes: Mapping[str, int]) -> str:
    """`3 of 12` finals had no second pass, which saves a server much; nothing where none was wanted."""
    wanted = sum(second_passes.values())
    return f"{wanted - second_passes['heard']} of {wanted}" if wanted else ""


def _errors(load: LoadReport) -> str:
    return ", ".join(f"{code}: {n}" for code, n in load.errors.items()) or "none"


def _rounded(value: object) -> object:
    """JSON has no NaN: what was not answered has no lag."""
    if isinstance(value, float):
        return round(value, 3) if isfinite(value) else None
    return value
