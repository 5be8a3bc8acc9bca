"""A real server in a child process on loopback, and what it costs."""

import os
import re
import subprocess
import threading
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from server.dial import ServerError
from server.processes import children, cpu_seconds, memory_mb

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
        return _sum(cpu_seconds(pid) for pid in self._processes())

    def memory_mb(self) -> float | None:
        """The memory that it and its processes have resident now (`processes.memory_mb`); None where the system does
        not tell."""
        return memory_mb(*self._processes())

    def _processes(self) -> list[int]:
        """Its own number, and those of its engines."""
        return [self.pid, *children(self.pid)]

    def model_seconds(self) -> float:
        """Time that the streaming model has computed so far, second passes not included."""
        return sum(seconds for _, seconds in self._read(r"asr_stream_step_seconds_sum()"))

    def second_passes(self) -> dict[str, int]:
        """What has become of those of all utterances so far: heard, skipped, failed."""
        told = self._read(r'asr_stream_second_passes_total\{outcome="(\w+)"\}')
        return {outcome: int(n) for outcome, n in told}

    def _read(self, series: str) -> list[tuple[str, float]]:
        """Of its metrics: what the group of each that matches has matched, and its value."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            text = response.read().decode()
        found = re.findall(rf"^{series} (\S+)$", text, re.MULTILINE)
        return [(label, float(value)) for label, value in found]


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


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
