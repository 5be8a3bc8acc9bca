"""The second pass, beside the stream of partials: the unmodified model hears an utterance once more, whole; or, of a
transducer, the hypotheses of its beam are weighed against what it has heard already."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from asr.biasing import UNGUIDED, Guidance
from asr.device import LAST, own_stream
from asr.offline import NO_CONTEXT, Context, OfflineDecoder
from asr.timing import TimedWord

logger = logging.getLogger(__name__)

_NICENESS = 10  # partials go first
MOST_PENDING = 8  # jobs waiting; beyond that the streaming text stands, since late finals help nobody


#: Chooses among the hypotheses of an utterance: its words.
Rescoring = Callable[[], list[TimedWord]]


@dataclass(frozen=True, eq=False)
class FinalJob:
    """An utterance to be decoded again.

    `done` is called once, with the words, or None where the second pass failed, heard nothing, or had no time.
    """

    samples: np.ndarray
    done: Callable[[list[TimedWord] | None], None]
    wanted: Callable[[], bool] = lambda: True  # False once the client is gone
    guidance: Guidance = UNGUIDED
    draft: str = ""  # what the stream was heard to say: the second pass says much of it, too
    context: Callable[[], Context] = lambda: NO_CONTEXT  # asked once the jobs before are done
    rescoring: Rescoring | None = None  # in place of hearing the samples again


class FinalPass:
    """Runs jobs in order: in a thread of low priority with one core, or at once in the caller's."""

    def __init__(self, decoder: OfflineDecoder, *, threaded: bool) -> None:
        self._decoder = decoder
        self._jobs: queue.Queue[FinalJob | None] = queue.Queue()
        self._open: dict[FinalJob, None] = {}  # in the queue or being run, in their order
        self._lock = threading.Lock()
        self.hurried = False  # since when nothing is heard again any more
        self._thread: threading.Thread | None = None
        if threaded:
            threads, started = torch.get_num_threads(), threading.Event()
            self._thread = threading.Thread(
                target=self._serve, args=(started,), name="final-pass", daemon=True
            )
            self._thread.start()
            started.wait()
            torch.set_num_threads(threads)  # what threads that come later begin with: the model's

    @property
    def pending(self) -> int:
        """Jobs not finished yet."""
        return self._jobs.unfinished_tasks

    @property
    def behind(self) -> bool:
        """Whether more waits already than can be done in good time."""
        return self.hurried or self.pending >= MOST_PENDING

    def submit(self, job: FinalJob) -> None:
        with self._lock:
            self._open[job] = None
        if self._thread is None:
            self._run(job)
        else:
            self._jobs.put(job)
            if self.hurried:  # since its session looked
                self._end(job, None)

    def hurry(self) -> None:
        """There is no time any more: every job ends now, the one that is being run, too, and none is worth while."""
        self.hurried = True
        with self._lock:
            given_up = list(self._open)
        for job in given_up:
            self._end(job, None)

    def close(self) -> None:
        """Finishes what was submitted and ends the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _serve(self, started: threading.Event) -> None:
        torch.get_num_threads()  # a thread takes over the process's number at its first question
        torch.set_num_threads(1)
        started.set()
        own_stream(self._decoder.model.device, LAST)
        if hasattr(os, "setpriority"):
            try:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            except OSError:
                logger.debug("the final pass keeps the usual priority", exc_info=True)
        while (job := self._jobs.get()) is not None:
            if job in self._open and job.wanted():
                self._run(job)
            self._open.pop(job, None)
            self._jobs.task_done()
        self._jobs.task_done()

    def _run(self, job: FinalJob) -> None:
        try:
            words = (job.rescoring() if job.rescoring else self._heard_again(job)) or None
        except Exception:  # one utterance's failure must not cost the streaming text, nor the other sessions
            logger.exception("second pass failed; the streaming text stands")
            words = None
        self._end(job, words)

    def _end(self, job: FinalJob, words: list[TimedWord] | None) -> None:
        """What came first counts."""
        with self._lock:
            if job not in self._open:
                return
            del self._open[job]
        job.done(words)

    def _heard_again(self, job: FinalJob) -> list[TimedWord]:
        samples = torch.from_numpy(job.samples)
        return self._decoder.transcribe(samples, job.guidance, job.draft, job.context())
