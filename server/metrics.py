"""What the server measures of itself, for Prometheus. Every app has its own registry: nothing is global."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.processes import cpu_seconds, memory_mb
from streaming.session import OUTCOMES, SessionOptions

if TYPE_CHECKING:
    from server.engine_process import EngineProcess

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
SAMPLE_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The instruments, each named for what it measures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_*: memory, CPU, open files, when it started
        self._engines = EngineCollector()
        self.registry.register(self._engines)
        gauge, histogram, counter = self._gauge, self._histogram, self._counter
        self.sessions = gauge("sessions", "Conversations that are open.")
        self.slots_free = gauge("slots_free", "Conversations that could still be opened.")
        self.slots = gauge("slots", "Conversations that the server can hold.")
        self.draining = gauge("draining", "1 while the server ends and takes no one in, else 0.")
        self.backlog = gauge(
            "backlog_seconds", "Audio received and not yet decoded, the most of any session."
        )
        self.queue_age = gauge("queue_age_seconds", "How long the oldest undecoded audio has waited.")
        self.batch_rows = histogram("batch_rows", "Sessions that advanced in one step of the model.", ROWS)
        self.step_time = histogram("step_seconds", "Time of one step of the model.", SECONDS)
        self.chunk_lag = histogram(
            "chunk_lag_seconds", "From the last sample of a chunk received to the chunk decoded.", SECONDS
        )
        self.time_to_final = histogram(
            "time_to_final_seconds",
            "From the end of an utterance to its final.",
            SECONDS,
        )
        self.second_passes = counter("second_passes", "Finals that wanted a second pass.", "outcome")
        for outcome in OUTCOMES:
            self.second_passes.labels(outcome)
        self.conversations = counter("conversations", "Conversations that were let in.", "path")
        self.audio = counter("audio_seconds", "Audio decoded.")
        self.errors = counter("errors", "Errors told to clients, refusals among them.", "code")
        self.errors.labels("internal")  # whose increase alerts, which cannot be seen from nothing

    def watch(
        self,
        *,
        sessions: Callable[[], float],
        slots: Callable[[], float],
        slots_free: Callable[[], float],
        draining: Callable[[], float],
        backlog: Callable[[], float],
        queue_age: Callable[[], float],
        engines: "Sequence[EngineProcess]",
    ) -> None:
        """Read these at every scrape; seconds and counts."""
        self.sessions.set_function(sessions)
        self.slots.set_function(slots)
        self.slots_free.set_function(slots_free)
        self.draining.set_function(draining)
        self.backlog.set_function(backlog)
        self.queue_age.set_function(queue_age)
        self._engines.processes = engines

    def stepped(self, seconds: float, rows: int) -> None:
        """The model made a step in which `rows` sessions advanced."""
        self.step_time.observe(seconds)
        self.batch_rows.observe(rows)

    def second_pass_ended(self, outcome: str) -> None:
        """A final was given out, its second pass heard, skipped or failed."""
        self.second_passes.labels(outcome).inc()

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"asr_stream_{name}", help_text, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"asr_stream_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"asr_stream_{name}", help_text, buckets=buckets, registry=self.registry)


class EngineCollector(Collector):
    """What engines in processes of their own cost, which ProcessCollector does not see. Each has its own series: its
    CPU time begins anew when it is replaced, which a sum would hide."""

    processes: "Sequence[EngineProcess]" = ()

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "asr_stream_engine_memory_bytes",
            "Memory of an engine's process, each page that it shares counted in part.",
            labels=["engine"],
        )
        cpu = CounterMetricFamily(
            "asr_stream_engine_cpu_seconds", "CPU time of an engine's process.", labels=["engine"]
        )
        restarts = CounterMetricFamily(
            "asr_stream_engine_restarts", "How often an engine's process was replaced.", labels=["engine"]
        )
        for number, process in enumerate(self.processes):
            engine = [str(number)]
            restarts.add_metric(engine, process.restarts)
            if (mb := memory_mb(process.pid)) is not None:
                memory.add_metric(engine, mb * 2**20)
            if (seconds := cpu_seconds(process.pid)) is not None:
                cpu.add_metric(engine, seconds)
        yield from (memory, cpu, restarts)


class ArrivalTimes:
    """When each stretch of one session's audio came, until it is decoded."""

    def __init__(self, options: SessionOptions) -> None:
        self._bytes_per_ms = options.sample_rate * options.channels * SAMPLE_BYTES[options.encoding] / 1000
        self._marks: deque[tuple[float, float]] = deque()  # (received up to, ms; when, monotonic s)
        self._received_ms = float(options.start_ms)
        self._decoded_ms = options.start_ms

    def received(self, n_bytes: int) -> None:
        """More audio has come now."""
        self._received_ms += n_bytes / self._bytes_per_ms
        self._marks.append((self._received_ms, time.monotonic()))

    def decoded(self, audio_ms: int) -> float | None:
        """Audio up to `audio_ms` is decoded now: seconds since the last of it came, None if not new."""
        if audio_ms <= self._decoded_ms or not self._marks:
            return None
        self._decoded_ms = audio_ms
        arrived = self._marks[0][1]
        while self._marks and self._marks[0][0] <= audio_ms:
            arrived = self._marks.popleft()[1]
        return time.monotonic() - arrived

    def age(self) -> float:
        """Seconds that the oldest undecoded audio has waited; 0 when there is none."""
        return time.monotonic() - self._marks[0][1] if self._marks else 0.0
