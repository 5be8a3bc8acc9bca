"""One conversation in the caller's thread: audio in, events out, as fast as the model goes."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from asr.audio import Samples
from streaming.events import Event, Fault
from streaming.session import Session, SessionOptions

if TYPE_CHECKING:
    from streaming.engine import Engine


class RecognitionError(RuntimeError):
    """The recogniser gave up; the message says what to do."""


def raise_fatal(event: Event) -> None:
    """Raises RecognitionError for a fault after which nothing follows."""
    if isinstance(event, Fault) and event.fatal:
        raise RecognitionError(f"{event.message} ({event.code})")


def listen(engine: "Engine", audio: Iterable[Samples], options: SessionOptions) -> Iterator[Event]:
    """The events of all of `audio`, up to Closed.

    Args:
        engine: used by nobody else, with the second pass inside `step` (final_pass_thread=False).
        audio: 16 kHz mono, (n,) each.

    Raises:
        RecognitionError: the engine failed.
    """
    session = engine.open(options)
    try:
        for samples in audio:
            session.receive_samples(samples)
            yield from _answers(engine, session)
        session.finish()
        yield from _answers(engine, session)
    finally:
        if not session.closed:
            session.abort()
            engine.step()  # frees the slot


def _answers(engine: "Engine", session: Session) -> Iterator[Event]:
    while engine.step():
        for event in session.events():
            raise_fatal(event)
            yield event
