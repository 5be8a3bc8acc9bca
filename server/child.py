"""A real server in a child process on loopback, and what it costs."""

import os
import re
import subprocess
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.dial import ServerError

LISTENING = re.compile(r"listening on (ws://\S+)")
ENDING_S = 20.0  # for it to drain and end; then it is killed
OWN_SETTINGS = "ASR_STREAM_"  # the environment may describe another server
KEPT_SETTINGS = {"ASR_STREAM_CACHE"}


class ChildServer:
    """A server that runs; `url` is its native protocol's."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self._metrics = url.replace("ws://", "http://").replace("/v1/stream", "/metrics")

    def cpu_seconds(self) -> float | None:
        """CPU time that it and its processes took so far; None where the system does not tell."""
        ticks = [sum(map(int, stat[11:13])) for stat in map(_stat, self._processes()) if stat]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None

    def memory_mb(self) -> float | None:
        """The memory that it and its processes have resident now, each page counted once; None where the system
        does not tell."""
        shares = [mb for pid in self._processes() if (mb := process_memory_mb(pid)) is not None]
        return sum(shares) if shares else None

    def _processes(self) -> list[int]:
        """Its own number, and those of its engines."""
        stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
        return [self.pid, *(pid for pid, stat in stats.items() if stat and int(stat[1]) == self.pid)]

    def model_seconds(self) -> float:
        """Time that the streaming model has computed so far, second passes not included."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            text = response.read().decode()
        found = re.search(r"^asr_stream_step_seconds_sum (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def process_memory_mb(pid: int) -> float | None:
    """A process's resident memory, its share of what it has in common with others; None where nobody tells."""
    try:
        memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Pss:\s+(\d+) kB", memory, re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat says behind the name; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def child_server(command: Sequence[str]) -> Iterator[ChildServer]:
    """Runs `command`, which must end up in server.app.serve, until the block is left.

    Raises:
        ServerError: it did not come up; the message is its last words.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OWN_SETTINGS) or name in KEPT_SETTINGS
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us: we end the child in our own time
    )
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=20)
    reader = None
    try:
        for line in process.stderr:
            said.append(line.strip())
            if found := LISTENING.search(line):
                break
        else:
            reason = said[-1] if said else f"exit code {process.wait()}"
            raise ServerError("no_start", reason.removeprefix("asr-stream: "))
        reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        reader.start()  # a pipe that nobody reads would stop the server
        yield ChildServer(found[1], process.pid)
    finally:
        process.terminate()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()
