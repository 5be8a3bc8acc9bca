"""An hour in one session: clips joined by pauses, against the same clips one by one, and what drifts on the way.

Audio arrives in simulated real time, as in eval/run.py: nothing sleeps, compute is measured at its side.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from asr.audio import SAMPLE_RATE, Samples, read_audio
from eval import latency
from eval.datasets import DatasetError, TimedWord, Utterance
from eval.run import Conversation, EvaluationError, Recogniser, recognise
from eval.trace import Step, Trace
from eval.wer import count_edits
from streaming.events import Closed, Fault, Partial
from streaming.session import SessionOptions

PAUSES_S = (0.2, 1.2)  # shortest and longest between two clips
ROOM_NOISE = 10 ** (-60 / 20)  # root mean square of what is heard in a pause; full scale is 1
TENTHS = 10
_TEXTS = {"wer": "streaming_text", "final_wer": "final_text"}  # measure: the trace's text


@dataclass(frozen=True)
class LongForm:
    """What one long session made of clips that were joined, and what sessions of their own made of them."""

    options: SessionOptions
    said: list[Utterance] = field(default_factory=list)  # in order; a clip may come more than once
    steps: list[Step] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)  # (audio heard, s; resident then)
    alone: dict[str, Trace] | None = None  # by the clip's id; None: not measured

    @property
    def trace(self) -> Trace:
        """Of the long session."""
        return Trace("joined", self.steps[-1].audio_ms / 1_000 if self.steps else 0.0, tuple(self.steps))

    def as_json(self) -> dict[str, Any]:
        """A JSON object; what was not measured is absent: of a session that was ended at once, everything."""
        tenths, joined, alone = self.tenths(), self._joined_rates(), self._alone_rates()
        values = {
            "minutes": round(self.trace.audio_s / 60, 3),
            "clips": len(self.said),
            "joined": joined,
            "alone": alone,
            "difference_points": {key: round(100 * (joined[key] - alone[key]), 3) for key in alone},
            "drift": _drift(tenths),
            "tenths": tenths,
        }
        return {key: value for key, value in values.items() if value}

    def tenths(self) -> list[dict[str, Any]]:
        """The numbers of each tenth of the audio, the first one first; memory is that at its end.

        Emission delays are computation-unaware, against the words of the session's own finals: what is asked
        here is whether they grow.
        """
        trace = self.trace
        if not trace.audio_s:
            return []
        delays = _delays(trace)
        span_s = trace.audio_s / TENTHS
        rows = []
        for number in range(TENTHS):
            start_s, end_s = number * span_s, (number + 1) * span_s
            steps = [step for step in trace.steps if start_s < step.audio_ms / 1_000 <= end_s + 1e-6]
            chunks = [1_000 * step.compute_s for step in steps if not step.finishes]
            heard = [delay for at_s, delay in delays if start_s < at_s <= end_s]
            memory = [mb for at_s, mb in self.memory_mb if at_s <= end_s + 1e-6]
            row = {
                "end_s": round(end_s, 3),
                "words": len(heard),
                "emission_delay_ms": latency.percentiles(heard, (50, 95)),
                "chunk_compute_ms": latency.percentiles(chunks, (50, 95)),
                "rtf": round(sum(step.compute_s for step in steps) / span_s, 6),
                "memory_mb": round(memory[-1], 1) if memory else None,
            }
            rows.append({key: value for key, value in row.items() if value is not None})
        return rows

    def table(self) -> Table:
        """The numbers for people."""
        values = self.as_json()
        joined, alone = values.get("joined", {}), values.get("alone", {})
        difference = values.get("difference_points", {})
        title = f"{len(self.said)} clips joined, {self.trace.audio_s / 60:.1f} minutes"
        table = Table("measure", title=title)
        for heading in ("joined", "one by one", "difference"):
            table.add_column(heading, justify="right")
        for key, name in (("wer", "WER, streaming text"), ("final_wer", "WER, finals")):
            if key in joined:
                table.add_row(
                    name,
                    f"{joined[key]:.2%}",
                    f"{alone[key]:.2%}" if key in alone else "",
                    f"{difference[key]:+.2f} points" if key in difference else "",
                )
        table.add_section()
        table.add_row("", "first tenth", "last tenth", "", style="bold")
        for _, name, unit, first, last in _ends(values.get("tenths", [])):
            table.add_row(name, f"{first:.0f} {unit}", f"{last:.0f} {unit}", f"{last - first:+.0f} {unit}")
        return table

    def plot(self, path: Path) -> None:
        """Delay, compute and memory over the session, as PNG."""
        from matplotlib.figure import Figure

        tenths = self.tenths()
        figure = Figure(figsize=(7, 7), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        for panel, key, label in (
            (panels[0], "emission_delay_ms", "emission delay, ms"),
            (panels[1], "chunk_compute_ms", "compute per chunk, ms"),
        ):
            for point in ("p50", "p95"):
                known = [row for row in tenths if key in row]
                panel.plot([row["end_s"] / 60 for row in known], [row[key][point] for row in known], "o-")
            panel.set(ylabel=label, ylim=(0, None))
            panel.legend(["median", "95 %"], loc="lower right")
        panels[2].plot([at_s / 60 for at_s, _ in self.memory_mb], [mb for _, mb in self.memory_mb])
        panels[2].set(xlabel="minutes of the session", ylabel="resident memory, MB", ylim=(0, None))
        draft = path.with_name(f"{path.name}.part")
        figure.savefig(draft, format="png", dpi=110)
        draft.replace(path)

    def _joined_rates(self) -> dict[str, float]:
        trace = self.trace
        return self._rates({key: getattr(trace, text) for key, text in _TEXTS.items()})

    def _alone_rates(self) -> dict[str, float]:
        if self.alone is None:
            return {}
        traces = [self.alone[one.id] for one in self.said]
        return self._rates({key: " ".join(getattr(t, text) for t in traces) for key, text in _TEXTS.items()})

    def _rates(self, hypotheses: dict[str, str]) -> dict[str, float]:
        """Both sides as one long text: in one session nobody can say which words are which clip's."""
        reference = " ".join(one.text or "" for one in self.said)
        rates = {key: count_edits(reference, text).rate for key, text in hypotheses.items()}
        if self.options.final_pass == "none":
            del rates["final_wer"]
        return {key: round(rate, 6) for key, rate in rates.items() if rate is not None}


def measure(
    engine: Recogniser,
    utterances: Sequence[Utterance],
    options: SessionOptions,
    *,
    minutes: float,
    seed: int = 0,
    memory_mb: Callable[[], float | None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[float, float, str], None] = lambda done, total, note: None,
    pauses_s: tuple[float, float] = PAUSES_S,
) -> LongForm:
    """Says the utterances in one session until `minutes` are full, then each in a session of its own.

    engine: one that does its second pass inside `step` (final_pass_thread=False), so that it is measured.
    memory_mb: this process's resident memory; None where the system does not tell.
    stop: asked before each clip; once it is true, what has been said by then is what was measured.
    progress: told (done, total, of what).
    Raises DatasetError where a transcript is missing, EvaluationError where the engine fails, AudioError where
    a file cannot be read.
    """
    for one in utterances:
        if one.text is None:
            raise DatasetError(f"{one.id} has no transcript: a word error rate needs one for every clip")
    recognise(engine, "warm-up", read_audio(utterances[0].audio), options)  # allocates and compiles
    heard = LongForm(options)
    session, n_chunk = engine.open(options), options.chunk_ms * SAMPLE_RATE // 1_000
    rest, n_heard = np.zeros(0, np.float32), 0
    progress(0, 60 * minutes, "joined")
    for utterance, samples in join(utterances, minutes, seed=seed, pauses_s=pauses_s):
        if stop():
            break
        audio = np.concatenate([rest, samples])
        for start in range(0, len(audio) - n_chunk + 1, n_chunk):
            session.receive_samples(audio[start : start + n_chunk])
            n_heard += n_chunk
            heard.steps.append(_answer(engine, session, n_heard))
            if (now_mb := memory_mb()) is not None:
                heard.memory_mb.append((n_heard / SAMPLE_RATE, now_mb))
        rest = audio[len(audio) // n_chunk * n_chunk :]
        heard.said.append(utterance)
        progress(n_heard / SAMPLE_RATE, 60 * minutes, "joined")
    if len(rest):
        session.receive_samples(rest)
    session.finish()
    heard.steps.append(_answer(engine, session, n_heard + len(rest)))
    if not any(isinstance(event, Closed) for event in heard.steps[-1].events):
        raise EvaluationError("the long session did not close after its audio ended")
    return replace(heard, alone=_one_by_one(engine, heard.said, options, stop, progress))


def join(
    utterances: Sequence[Utterance],
    minutes: float,
    *,
    seed: int = 0,
    pauses_s: tuple[float, float] = PAUSES_S,
) -> Iterator[tuple[Utterance, Samples]]:
    """The clips in their order, over and over, each behind a pause of faint room noise; the last one is whole.

    One clip at a time is in memory, so that an hour takes no more than a minute. Raises AudioError.
    """
    generator = np.random.default_rng(seed)
    n_samples = 0
    for utterance in itertools.cycle(utterances):
        if n_samples >= minutes * 60 * SAMPLE_RATE:
            return
        pause = room_noise(round(generator.uniform(*pauses_s) * SAMPLE_RATE), generator)
        samples = np.concatenate([pause, read_audio(utterance.audio)])
        n_samples += len(samples)
        yield utterance, samples


def room_noise(n_samples: int, generator: np.random.Generator) -> Samples:
    """(n,) of noise that is strongest below 1 kHz, as rooms' is."""
    noise = np.convolve(generator.standard_normal(n_samples + 15), np.ones(16) / 4, "valid")  # variance 1
    return (ROOM_NOISE * noise).astype(np.float32)


def _one_by_one(
    engine: Recogniser,
    said: Sequence[Utterance],
    options: SessionOptions,
    stop: Callable[[], bool],
    progress: Callable[[float, float, str], None],
) -> dict[str, Trace] | None:
    """The traces of the clips alone by id; None where it was stopped before all had been heard."""
    distinct = {one.id: one for one in said}
    alone: dict[str, Trace] = {}
    for one in distinct.values():
        if stop():
            return None
        progress(len(alone), len(distinct), "one by one")
        alone[one.id] = recognise(engine, one.id, read_audio(one.audio), options)
    return alone


def _answer(engine: Recogniser, session: Conversation, n_heard: int) -> Step:
    """One step, without the words of partials: they would be most of the memory that is measured here."""
    started_s = time.perf_counter()
    while engine.step():
        pass
    compute_s = time.perf_counter() - started_s
    events = session.events()
    for event in events:
        if isinstance(event, Fault) and event.fatal:
            raise EvaluationError(f"the engine failed: {event.message} ({event.code})")
    kept = tuple(replace(event, words=()) if isinstance(event, Partial) else event for event in events)
    return Step(n_heard * 1_000 / SAMPLE_RATE, compute_s, kept)


def _delays(trace: Trace) -> list[tuple[float, float]]:
    """(when the word ended, s; its emission delay, ms) of each shown word that the finals have, too."""
    spoken = [
        TimedWord(word.text, word.start_ms / 1_000, word.end_ms / 1_000)
        for final in trace.finals
        for word in final.words
    ]
    shown = latency.shown_words(trace)
    ends_ms = latency.spoken_ends_ms(shown, spoken)
    return [
        (end_ms / 1_000, word.shown.since(end_ms).audio_ms)
        for word, end_ms in zip(shown, ends_ms, strict=True)
        if end_ms is not None
    ]


def _ends(tenths: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, float, float]]:
    """(key, name, unit, in the first tenth, in the last) of each measure that both have."""
    if not tenths:
        return
    first, last = tenths[0], tenths[-1]
    for key, name in (
        ("emission_delay_ms", "emission delay, median"),
        ("chunk_compute_ms", "compute per chunk, median"),
    ):
        if key in first and key in last:
            yield key.replace("_ms", "_p50_ms"), name, "ms", first[key]["p50"], last[key]["p50"]
    if "memory_mb" in first and "memory_mb" in last:
        yield "memory_mb", "resident memory", "MB", first["memory_mb"], last["memory_mb"]


def _drift(tenths: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Last tenth minus first."""
    return {key: round(last - first, 3) for key, _, _, first, last in _ends(tenths)}
