"""What the system tells of processes, by their numbers: Linux does, in /proc; elsewhere nobody."""

import os
import re
from pathlib import Path


def memory_mb(pid: int) -> float | None:
    """What it has resident, each page that it shares divided by those who share it; None where nobody tells."""
    try:
        memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Pss:\s+(\d+) kB", memory, re.MULTILINE)
    return int(found[1]) / 1024 if found else None


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
