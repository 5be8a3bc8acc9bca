"""The same ASGI app on many devices: Ray Serve runs replicas of it behind one address, counts and replaces them.

A WebSocket is one of Ray's requests, so requests under way are slots taken. Ray is an extra: it is imported late.
"""

import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.app import LAST_FRAMES_S, create_app, warn
from server.config import Settings
from server.log import configure_logging
from server.read_ahead import ReadAhead
from server.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streaming.pool import EnginePool

NAME = "asr-stream"  # of the application and of its deployment
SPARE_REQUESTS = 16  # besides those in slots: health, metrics, the page, refusals; what is beyond waits
KEPT_FREE = 0.25  # share of the slots: when fewer are free, another replica starts
UNREAD_FRAMES = 16  # of the greatest size, that a client may be ahead of the model
OBJECT_STORE_BYTES = 2**28  # of a Ray that we start: frames pass through it, weights do not
CONSTRUCTOR_TRIES = 2
RAY_ENVIRONMENT = {  # unless it says otherwise; of a Ray that we start
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports home unless it is told not to
    "RAY_worker_niceness": "0",  # 15 otherwise: the second pass, which gives way to partials, needs room above
    "RAY_DEDUP_LOGS": "0",
}
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5, 30
METRICS_S = 5.0  # Prometheus gives up after 10 s unless it is told otherwise

log = logging.getLogger("asr_stream.server")


class RayError(RuntimeError):
    """Ray cannot do what is asked; one line that says what to do."""


@dataclass(frozen=True)
class Replicas:
    """How many there are at least and at most."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2` or `1:4`. Raises ValueError."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(f"replicas must be a number, or least:most as in 1:4, not {text!r}")
        return cls(least, most)


def deployment_options(settings: Settings, replicas: Replicas, *, gpu: bool) -> dict[str, Any]:
    """What Ray is told of a replica: one GPU each if there are any, and a CPU core for each engine."""
    if replicas.least == replicas.most:
        how_many: dict[str, Any] = {"num_replicas": replicas.least}
    else:
        scaling = {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": max(1.0, settings.slots * (1 - KEPT_FREE)),
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,  # a conversation is cut when its replica goes: seldom
            "look_back_period_s": 15,
        }
        how_many = {"autoscaling_config": scaling}
    return how_many | {
        "name": NAME,
        "ray_actor_options": {"num_cpus": settings.engines or 1, "num_gpus": int(gpu)},
        "max_ongoing_requests": settings.slots + SPARE_REQUESTS,
        "request_router_config": {
            "request_router_class": "server.ray_router.MostRoom",
            "request_router_kwargs": {"slots": settings.slots},
        },
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + LAST_FRAMES_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


def portable(settings: Settings) -> Settings:
    """The settings of a replica, which runs where our files may not be: keys by value, TLS left to Ray's proxy."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    there = Settings.model_construct(**values | {"api_key_file": None, "tls_cert": None, "tls_key": None})
    there._keys = settings.keys
    return there


def merge_metrics(pages: Mapping[str, str]) -> bytes:
    """Pages of Prometheus' text format as one, in which every sample bears its replica as a label."""
    families: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.samples.append(sample._replace(labels={"replica": replica, **sample.labels}))

    class Merged(CollectorRegistry):
        def collect(self) -> "Iterator[Metric]":
            yield from families.values()

    return generate_latest(Merged())


def answers_in_time(asked: Any) -> dict[str, str]:
    """The pages of those replicas that answer a broadcast within METRICS_S, by their names: one that hangs must not
    hide the others from who looks after them."""
    try:
        answers = asked.results(timeout_s=METRICS_S, return_exceptions=True)
    except TimeoutError:  # it was not even asked
        answers = []
    pages: dict[str, str] = dict(answer for answer in answers if isinstance(answer, tuple))
    if missing := len(answers) - len(pages):
        log.warning("%d of %d replicas did not tell their metrics in time", missing, len(answers))
    return pages


def application(settings: Settings, build: Callable[[], "EnginePool"], options: Mapping[str, Any]) -> Any:
    """The Ray Serve application: `build` is called once in every replica."""
    from ray import serve as ray_serve

    def app() -> Starlette:
        configure_logging(settings.log_level, settings.log_format)
        made = create_app(build(), settings)
        made.add_middleware(ReadAhead, limit=UNREAD_FRAMES * settings.max_frame_bytes)
        made.router.routes.insert(0, Route("/metrics", show_metrics))
        return made

    async def show_metrics(_: Request) -> Response:
        """Of all replicas: whoever asks reaches any one of them."""
        asked = ray_serve.get_deployment_handle(NAME, NAME).broadcast("metrics")
        pages = await asyncio.to_thread(answers_in_time, asked)  # asyncio's own waits for all or for none
        return Response(merge_metrics(pages), media_type=CONTENT_TYPE_LATEST)

    class Replica:
        """One engine and the app around it."""

        app: Starlette

        def check_health(self) -> None:
            """Raises RuntimeError when Ray must replace this replica."""
            if not self.app.state.house.worker.alive:
                raise RuntimeError("the model's thread has ended")

        def metrics(self) -> tuple[str, str]:
            name = ray_serve.get_replica_context().replica_id.unique_id
            return name, self.app.state.house.metrics.render().decode()

        async def drain(self) -> None:
            """Takes no one in, and lets every conversation finish."""
            await self.app.state.house.drain()

    return ray_serve.deployment(**options)(ray_serve.ingress(app)(Replica)).bind()


def serve(settings: Settings, build: Callable[[], "EnginePool"], replicas: Replicas) -> None:
    """Serves on the Ray cluster of RAY_ADDRESS, or on one of our own, until SIGTERM or SIGINT; drains, and returns.

    Raises:
        RayError: Ray is not installed, or the replicas cannot start.
        ValueError: a setting cannot be followed under Ray.
    """
    if not settings.port:
        raise ValueError("under Ray the port must be chosen: all machines of a cluster listen on the same")
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve as ray_serve
    except ImportError:
        raise RayError(
            "--ray needs Ray Serve: pip install --editable '.[ray]' in the project's folder"
        ) from None
    configure_logging(settings.log_level, settings.log_format)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if settings.log_format == "json":
        sys.stderr = cast(TextIO, Unprefixed(sys.stderr))  # through which Ray hands on what replicas say
    _connect()
    try:
        gpu = settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        options = deployment_options(settings, replicas, gpu=gpu)
        _announce(settings, f"starting {replicas.least} replicas, each with {options['ray_actor_options']}")
        http = {
            "host": settings.host,
            "port": settings.port,
            "ssl_certfile": settings.tls_cert and str(settings.tls_cert),
            "ssl_keyfile": settings.tls_key and str(settings.tls_key),
        }
        try:
            ray_serve.start(http_options=http, logging_config=options["logging_config"])
            handle = ray_serve.run(application(portable(settings), build, options), name=NAME)
        except Exception as error:  # of many kinds: a taken port, a replica that could not build its engine
            raise RayError(
                f"the replicas did not start, for what Ray says above: {_last_line(error)}"
            ) from error
        scheme = "wss" if settings.tls_cert else "ws"
        with _told_to_end() as ending:
            _announce(settings, f"listening on {scheme}://{settings.host}:{settings.port}/v1/stream")
            warn(settings)
            ending.wait()
        _announce(settings, "draining: once more to end at once")
        patience_s = settings.drain_timeout_s + 2 * LAST_FRAMES_S
        handle.broadcast("drain").results(timeout_s=patience_s, return_exceptions=True)
    finally:
        ray_serve.delete(NAME)
        if not ray_serve.status().applications:
            ray_serve.shutdown()  # on a cluster that goes on its proxies would keep the port
        ray.shutdown()


class Unprefixed:
    """A stream for replicas' lines, from Ray: JSON objects lose its `(replica pid=7) `, for machines to read."""

    PREFIX = re.compile(r"^(?:\x1b\[\d*m)*\(.*? pid=\d+.*?\)(?:\x1b\[\d*m)* (?=\{)")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(self.PREFIX.sub("", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _announce(settings: Settings, line: str) -> None:
    """For whoever has started us; among JSON lines, one of them."""
    if settings.log_format == "json":
        log.info("%s", line)
    else:
        tell(line)


def _connect() -> None:
    """To the cluster that is there, or to one that we start here and that ends with us."""
    import ray

    quiet = {"logging_level": logging.WARNING, "configure_logging": True}
    try:
        try:
            ray.init("auto", **quiet)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except Exception as error:  # of many kinds, and some are plain
        raise RayError(f"Ray cannot be reached or started: {_last_line(error)}") from error


@contextmanager
def _told_to_end() -> "Iterator[threading.Event]":
    """Set by SIGTERM and SIGINT; outside of the block they do what they did before."""
    ending = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ending.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    """What a replica said before it failed, without the way there."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
    )
