"""Work shared out to processes, each with models of its own."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from asr.audio import SAMPLE_RATE, Samples
from asr.checkpoint import load
from asr.offline import OfflineDecoder
from asr.precision import for_serving
from eval.baselines import KINDS, BaselineEngine
from eval.run import EvaluationError, Recogniser, recognise
from streaming.session import SessionOptions

STREAMING = "streaming"  # the system that is evaluated; the others are baselines
WARM_UP_S = 3

Result = TypeVar("Result", covariant=True)
T = TypeVar("T")


@dataclass
class Workshop:
    """The recognisers of one process, built when they are first needed.

    Args:
        build: makes the engine that is evaluated, with its second pass inside `step`.
        model: name of what is evaluated.
        base: name of its base model, which the baselines use unmodified.
        threads: of each model; None leaves it to torch.
        device: where the baselines compute.
    """

    build: Callable[[], Recogniser]
    model: str
    base: str
    threads: int | None = None
    device: str = "cpu"
    _recognisers: dict[str, Recogniser] = field(default_factory=dict)

    @cached_property
    def decoder(self) -> OfflineDecoder:
        return OfflineDecoder(for_serving(load(self.base, device=self.device)))

    def recogniser(self, system: str, samples: Samples, options: SessionOptions) -> Recogniser:
        """The recogniser called `system`; a fresh one hears the beginning of `samples` unmeasured.

        The first steps of a process allocate and compile, and silence would not reach the model.
        """
        if system not in self._recognisers:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            engine = self.build() if system == STREAMING else self._baseline(system)
            recognise(engine, "warm-up", samples[: WARM_UP_S * SAMPLE_RATE], options)
            self._recognisers[system] = engine
        return self._recognisers[system]

    def _baseline(self, system: str) -> Recogniser:
        return BaselineEngine(self.base, self.decoder, KINDS[system])


class Task(Protocol[Result]):
    """Something to be done in a workshop; it and its result travel between processes."""

    def __call__(self, workshop: Workshop) -> Result: ...


def work(tasks: Sequence[Task[T]], workshop: Workshop, jobs: int, done: Callable[[Task[T], T], None]) -> None:
    """Does all tasks, here if `jobs` is 1, else in that many processes; tells `done` of each in this one.

    Raises:
        EvaluationError: a process died. Else what a task or `done` raises; no further task is begun then.
    """
    if jobs == 1:
        for task in tasks:
            done(task, task(workshop))
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _move_in, (workshop,))
    try:
        with _interruption_held():
            futures = {pool.submit(_do, task): task for task in tasks}
        for future in as_completed(futures):
            done(futures[future], future.result())
    except BrokenProcessPool as error:
        raise EvaluationError(
            "a process ended unexpectedly (out of memory?): run the same command again to go on, with fewer --jobs"
        ) from error
    except BaseException:  # nobody waits for what is still being recognised
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interruption_held() -> Iterator[None]:
    """Processes that are started here are deaf until they have moved in: Ctrl-C, which goes to all of a terminal's,
    would end them with tracebacks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_workshop: Workshop  # of this process, if it is one of `work`'s


def _move_in(workshop: Workshop) -> None:
    global _workshop
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a word
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _workshop = workshop


def _do(task: Task[T]) -> T:
    return task(_workshop)
