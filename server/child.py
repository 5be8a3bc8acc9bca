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
from typing import Literal

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
        """CPU time of all its threads so far; None where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float | None:
        """The memory that it has resident now; None where the system does not tell."""
        return process_memory_mb(self.pid)

    def peak_memory_mb(self) -> float | None:
        """The most memory that it had resident; None where the system does not tell."""
        return process_memory_mb(self.pid, "VmHWM")

    def model_seconds(self) -> float:
        """Time that the streaming model has computed so far, second passes not included."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            text = response.read().decode()
        found = re.search(r"^asr_stream_step_seconds_sum (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def process_memory_mb(pid: int, what: Literal["VmRSS", "VmHWM"] = "VmRSS") -> float | None:
    """A process's resident memory, now (VmRSS) or at its most (VmHWM); None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else None


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
