"""What the system tells of processes, by their numbers: Linux does, in /proc; elsewhere nobody."""

import os
import re
from pathlib import Path


def memory_mb(*pids: int) -> float | None:
    """What these have resident together: memory of their own, and of files as much as the one that has the most.

    Files are libraries, which they share with each other and with strangers. "Proportional" sizes (Pss) divide pages
    by all who share them: they tell how many strangers there are, too, and change by a hundred MB when one of them,
    another program with torch, comes or goes.

    Returns:
        None where nobody tells, or none of them lives.
    """
    told = [sizes for pid in pids if (sizes := _resident(pid))]
    return sum(own for own, _ in told) + max(files for _, files in told) if told else None


def _resident(pid: int) -> tuple[float, float] | None:
    """MB of its own, and of files; None where nobody tells."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = {name: int(kb) / 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return (sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]) if sizes else None


def cpu_seconds(pid: int) -> float | None:
    """CPU time that it took so far; None where nobody tells."""
    stat = _stat(pid)
    return sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK") if stat else None


def children(pid: int) -> list[int]:
    """Those that it has started, and that live."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return [number for number, stat in stats.items() if stat and int(stat[1]) == pid]


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat says behind the name; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
