"""What a person at a terminal sees: words while they change, finals as lines, progress of long work."""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from streaming.events import Event, Final, Partial

PATIENCE_S = 1.0  # shorter work needs no bar
UNFOLDED = 1_000  # characters: more than any table has
T = TypeVar("T")


class Screen(Protocol):
    """Where the events of a conversation are shown."""

    def show(self, event: Event) -> None: ...


class LiveScreen:
    """For a terminal: the partial is rewritten in place, its stable part bright; finals scroll up as lines."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, event: Event) -> None:
        if isinstance(event, Partial):
            self._live.update(as_styled(event), refresh=True)
        elif isinstance(event, Final):
            self._live.update(Text(), refresh=True)
            self._live.console.print(Text(event.text, "bold"))


class TimedLines:
    """For a file or a pipe: a line per event, in front of it the seconds since the start; `|` ends what is stable."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def show(self, event: Event) -> None:
        seconds = time.monotonic() - self._started
        if isinstance(event, Partial):
            write_line(
                f"{seconds:7.2f} s  partial  {event.text[: event.stable]}|{event.text[event.stable :]}"
            )
        elif isinstance(event, Final):
            write_line(f"{seconds:7.2f} s  final    {event.text}")


class FinalLines:
    """For another program: the text of each final, a line each."""

    def show(self, event: Event) -> None:
        if isinstance(event, Final):
            write_line(event.text)


@contextmanager
def screen(otherwise: Callable[[], Screen]) -> Iterator[Screen]:
    """A live screen where stdout is a terminal, else what `otherwise` makes."""
    console = Console()
    if not console.is_terminal:
        yield otherwise()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveScreen(live)


def as_styled(partial: Partial) -> Text:
    """Bright as far as it is stable, dim beyond."""
    return Text.assemble((partial.text[: partial.stable], "bold"), (partial.text[partial.stable :], "dim"))


def write_line(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_result(*parts: RenderableType) -> None:
    """To stdout: tables and lines, folded to a terminal's width; a file or a pipe has none."""
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(*parts)


def tell(text: str) -> None:
    """To stderr: what is said beside the result."""
    sys.stderr.write(f"{text}\n")


class Show(Protocol):
    """Shows how much is done, and of how much if that is known."""

    def __call__(self, done: float, total: float | None, note: str = "") -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Show]:
    """A bar on stderr, if that is a terminal and the work takes longer than a second."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns,
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # only then are they on the same screen
    )
    task = bar.add_task(what, total=None, note="")
    due = time.monotonic() + PATIENCE_S

    def show(done: float, total: float | None, note: str = "") -> None:
        bar.update(task, completed=done, total=total, note=note)
        if console.is_terminal and time.monotonic() > due:
            bar.start()

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class Interruption:
    """Ctrl-C while it is installed: it is noted, and a wait for input ends; work at hand is not torn apart.

    The second Ctrl-C raises KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False

    def __enter__(self) -> "Interruption":
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def ends(self, items: Iterable[T]) -> Iterator[T]:
        """The items up to the interruption."""
        source = iter(items)
        try:
            while not self.asked:
                self._waiting = True
                item = next(source)
                self._waiting = False
                yield item
        except StopIteration:
            pass
        except KeyboardInterrupt:
            if not self._waiting:
                raise
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._waiting:
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True
