"""A recording written down: finals as they come, or a whole transcript in one of the formats."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, TextIO

import numpy as np

from asr.audio import SAMPLE_RATE, Samples
from server.terminal import Interruption, progress, write_line
from streaming.events import Final
from streaming.listen import listen
from streaming.session import SessionOptions
from streaming.transcript import FORMATS

if TYPE_CHECKING:
    from streaming.engine import Engine

QUIET_DB = -40.0  # of full scale: speech whose peaks are below may be taken for silence


@dataclass(frozen=True)
class Transcription:
    """What came of a recording."""

    finals: list[Final]
    audio_s: float  # that was heard
    peak: float  # 1 is full scale
    interrupted: bool  # by Ctrl-C: there was more

    def why_nothing(self) -> str:
        """What is to be said where no words were found."""
        if not self.peak:
            return "no speech was recognised: there is no sound in it, or its channels cancel each other"
        if (peak_db := 20 * log10(self.peak)) < QUIET_DB:
            return (
                f"no speech was recognised: its loudest sample is {-peak_db:.0f} dB below full scale, perhaps too"
                " quiet to be heard: make it louder"
            )
        return "no speech was recognised"


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
    n_samples, peak = 0, 0.0
    as_it_comes = target is None and form == "text"
    with Interruption() as interruption, progress("transcribing") as show:

        def heard() -> Iterator[Samples]:
            nonlocal n_samples, peak
            for samples in interruption.ends(audio):
                yield samples
                n_samples += len(samples)
                peak = max(peak, float(np.abs(samples).max(initial=0.0)))
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
    return Transcription(finals, n_samples / SAMPLE_RATE, peak, interruption.asked)
