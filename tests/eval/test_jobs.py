"""Work in one process and in several."""

import multiprocessing
import signal
from operator import attrgetter

import pytest

from eval.jobs import Workshop, work

MODEL = attrgetter("model")  # a task that any process can import


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_in_a_workshop_and_told_of_here(jobs: int) -> None:
    told: list[tuple[object, str]] = []
    tasks = [MODEL, attrgetter("threads"), MODEL]
    work(
        tasks, Workshop(list, "tiny.en", "tiny.en", 3), jobs, lambda task, result: told.append((task, result))
    )
    assert sorted(str(result) for _, result in told) == ["3", "tiny.en", "tiny.en"]


def test_an_interruption_ends_the_processes_too() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        work([MODEL] * 9, Workshop(list, "tiny.en", "tiny.en"), 2, interrupt)
    assert multiprocessing.active_children() == before


def test_an_interruption_meets_no_process_that_is_still_moving_in() -> None:
    held: list[bool] = []

    class Build:
        """Travels with its workshop when a process is started."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            held.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return list, ()

    work([MODEL, MODEL], Workshop(Build(), "tiny.en", "tiny.en"), 2, lambda *_: None)  # type: ignore[arg-type]
    assert held
    assert all(held)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_a_task_raises_ends_the_work() -> None:
    told: list[object] = []
    tasks = [MODEL, attrgetter("nothing"), MODEL]
    with pytest.raises(AttributeError, match="nothing"):
        work(tasks, Workshop(list, "tiny.en", "tiny.en"), 1, lambda task, _: told.append(task))
    assert told == [MODEL]
