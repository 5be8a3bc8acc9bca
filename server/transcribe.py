"""A recording written down: finals as they come, or a whole transcript in one of the formats."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from asr.audio import SAMPLE_RATE, Samples
from server.terminal import Interruption, progress, write_line
from streaming.events import Final
from streaming.listen import listen
from streaming.session import SessionOptions
from streaming.transcript import FORMATS

if TYPE_CHECKING:
    from streaming.engine import Engine


@dataclass(frozen=True)
class Transcription:
    """What came of a recording."""

    finals: list[Final]
    audio_s: float  # that was heard
    interrupted: bool  # by Ctrl-C: there was more


def transcribe(
    engine: "Engine",
    audio: Iterable[Samples],
    options: SessionOptions,
    *,
    length_s: float | None,
    form: str,
    target: TextIO | None,
) -> Transcription:
    """Writes what is said to `target` at the end, or to stdout, as text utterance by utterance."""
    finals: list[Final] = []
    n_samples = 0
    as_it_comes = target is None and form == "text"
    with Interruption() as interruption, progress("transcribing") as show:

        def heard() -> Iterator[Samples]:
            nonlocal n_samples
            for samples in interruption.ends(audio):
                yield samples
                n_samples += len(samples)
                show(n_samples / SAMPLE_RATE, length_s)

        for event in listen(engine, heard(), options):
            if isinstance(event, Final):
                finals.append(event)
                if as_it_comes:
                    write_line(event.text)
    if not as_it_comes:
        file = target or sys.stdout
        file.write(FORMATS[form](finals))
        file.flush()
    return Transcription(finals, n_samples / SAMPLE_RATE, interruption.asked)
