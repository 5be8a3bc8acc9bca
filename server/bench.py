"""How many conversations at once: load on a real server, its answers' lag and its cost."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np
from rich.table import Table

from server.child import ChildServer
from server.load import LoadReport, run_load

WARM_UP_S = 3.0


@dataclass(frozen=True)
class BenchReport:
    """What the clients saw, and what the server took for it; None where the system does not tell."""

    load: LoadReport
    chunk_ms: int
    cpu_cores: float | None  # that it kept busy, on average
    cpus: int  # of the machine
    peak_memory_mb: float | None

    def as_json(self) -> dict[str, object]:
        values = asdict(self) | asdict(self.load)
        del values["load"]
        return {key: _rounded(value) for key, value in values.items()}

    def as_table(self) -> Table:
        load = self.load
        table = Table(
            title=f"{load.streams} streams of {load.seconds:g} s, chunks of {self.chunk_ms} ms", min_width=40
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_row("lag, median", f"{load.lag_p50_ms:.0f} ms")
        table.add_row("lag, 95 %", f"{load.lag_p95_ms:.0f} ms")
        table.add_row("lag, longest", f"{load.lag_max_ms:.0f} ms")
        table.add_row("chunks answered", f"{load.answered} of {load.chunks}")
        table.add_row("messages", str(load.messages))
        table.add_row("errors", ", ".join(f"{code}: {n}" for code, n in load.errors.items()) or "none")
        if self.cpu_cores is not None:
            table.add_row("CPU of the server", f"{self.cpu_cores:.2f} of {self.cpus} cores")
        if self.peak_memory_mb is not None:
            table.add_row("memory of the server", f"{self.peak_memory_mb:.0f} MB")
        return table


def measure(
    server: ChildServer, recordings: Sequence[np.ndarray], streams: int, seconds: float, chunk_ms: int
) -> BenchReport:
    """Loads `server` as `run_load` does, after a short conversation that is not measured."""
    asyncio.run(run_load(server.url, recordings[:1], 1, WARM_UP_S, chunk_ms))
    started, cpu_before = time.monotonic(), server.cpu_seconds()
    load = asyncio.run(run_load(server.url, recordings, streams, seconds, chunk_ms))
    wall_s, cpu_after = time.monotonic() - started, server.cpu_seconds()
    return BenchReport(
        load,
        chunk_ms,
        cpu_cores=None if cpu_before is None or cpu_after is None else (cpu_after - cpu_before) / wall_s,
        cpus=os.cpu_count() or 1,
        peak_memory_mb=server.peak_memory_mb(),
    )


def _rounded(value: object) -> object:
    """JSON has no NaN: what was not answered has no lag."""
    if isinstance(value, float):
        return round(value, 3) if isfinite(value) else None
    return value
