"""Simulated real time: audio arrives chunk by chunk, compute is measured at its side, nothing sleeps.

One pass over the audio gives both texts: what streamed, and what the second pass made of it. What happened
to each utterance is appended to `traces.jsonl` at once, so that an interrupted run goes on where it stopped;
the report is computed from the traces alone.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asr.audio import SAMPLE_RATE, Samples, read_audio
from eval.datasets import Utterance
from eval.report import Report, describe_machine, json_line, summarize, write_atomically
from eval.trace import Step, Trace
from streaming.events import Closed, Event, Fault
from streaming.session import SessionOptions


class EvaluationError(RuntimeError):
    """A run that cannot go on; the message is one line."""


class Conversation(Protocol):
    """What is needed of a session (streaming/session.py)."""

    def receive_samples(self, samples: Samples) -> None: ...
    def finish(self) -> None: ...
    def events(self) -> list[Event]: ...


class Recogniser(Protocol):
    """What is needed of an engine (streaming/engine.py)."""

    model_name: str

    def open(self, options: SessionOptions) -> Conversation: ...
    def step(self) -> bool: ...


def evaluate(
    engine: Recogniser,
    utterances: Sequence[Utterance],
    *,
    chunk_ms: int = 300,
    final_pass: str = "full",
    out: Path,
    policy: str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Recognises the utterances one after the other and writes the report into the folder `out`.

    engine: one that does its second pass inside `step` (final_pass_thread=False), so that it is measured.
    policy: a name for how the engine decides, for the report.
    resume: go on with the run that `out` holds; otherwise that run is forgotten.
    progress: told (utterances done, of how many) at the start and after each.
    Raises EvaluationError where `out` holds a run with other settings or the engine fails, AudioError where a
    file cannot be read.
    """
    settings = {"model": engine.model_name, "policy": policy, "chunk_ms": chunk_ms, "final_pass": final_pass}
    options = SessionOptions(chunk_ms=chunk_ms, final_pass=final_pass)
    traces = _begin(out, settings, resume)
    missing = [utterance for utterance in utterances if utterance.id not in traces]
    n_done = len(utterances) - len(missing)
    if missing:
        _warm_up(engine, options)
    if progress is not None:
        progress(n_done, len(utterances))
    with (out / "traces.jsonl").open("a", encoding="utf-8") as log:
        for utterance in missing:
            trace = recognise(engine, utterance.id, read_audio(utterance.audio), options)
            log.write(json_line(trace.as_json()))
            log.flush()
            traces[utterance.id] = trace
            n_done += 1
            if progress is not None:
                progress(n_done, len(utterances))
    recognised = [(utterance, traces[utterance.id]) for utterance in utterances]
    report = summarize(settings, recognised, describe_machine())
    report.write(out)
    return report


def recognise(engine: Recogniser, utterance_id: str, samples: Samples, options: SessionOptions) -> Trace:
    """Streams `samples` (n,) float32 of 16 kHz through a session of its own; the last step is the flush."""
    session = engine.open(options)
    n_chunk = options.chunk_ms * SAMPLE_RATE // 1_000
    steps = []
    for start in range(0, len(samples), n_chunk):
        chunk = samples[start : start + n_chunk]
        arrived_ms = (start + len(chunk)) * 1_000 / SAMPLE_RATE
        session.receive_samples(chunk)
        steps.append(_answer(engine, session, arrived_ms))
    session.finish()
    steps.append(_answer(engine, session, len(samples) * 1_000 / SAMPLE_RATE))
    if not any(isinstance(event, Closed) for event in steps[-1].events):
        raise EvaluationError(f"{utterance_id}: the session did not close after its audio ended")
    return Trace(utterance_id, len(samples) / SAMPLE_RATE, tuple(steps))


def _answer(engine: Recogniser, session: Conversation, arrived_ms: float) -> Step:
    started_s = time.perf_counter()
    while engine.step():
        pass
    compute_s = round(time.perf_counter() - started_s, 6)  # a run resumed from its file reports the same
    events = tuple(session.events())
    for event in events:
        if isinstance(event, Fault) and event.fatal:
            raise EvaluationError(f"the engine failed: {event.message} ({event.code})")
    return Step(arrived_ms, compute_s, events)


def _warm_up(engine: Recogniser, options: SessionOptions) -> None:
    """A second of silence, not measured: the first steps of a process allocate and compile."""
    recognise(engine, "warm-up", np.zeros(SAMPLE_RATE, dtype=np.float32), options)


def _begin(out: Path, settings: dict[str, Any], resume: bool) -> dict[str, Trace]:
    """The traces by id that `out` already holds of a run with these settings, which it holds from now on."""
    out.mkdir(parents=True, exist_ok=True)
    run, log = out / "run.json", out / "traces.jsonl"
    if resume and run.is_file():
        _check_same(out, json.loads(run.read_text(encoding="utf-8")), settings)
        return {trace.utterance_id: trace for trace in _complete_traces(log)}
    log.unlink(missing_ok=True)
    write_atomically(run, json.dumps(settings, indent=1) + "\n")
    return {}


def _check_same(out: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [key for key in wanted if held.get(key) != wanted[key]]
    if different:
        values = ", ".join(f"{key} {held.get(key)!r} and not {wanted[key]!r}" for key in different)
        raise EvaluationError(f"{out} holds a run with {values}: choose another folder, or start it afresh")


def _complete_traces(log: Path) -> list[Trace]:
    """The traces in `log`; a last line that an interruption cut short is removed from the file."""
    if not log.is_file():
        return []
    content = log.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        with log.open("r+b") as file:
            file.truncate(len(complete))
    try:
        return [Trace.from_json(json.loads(line)) for line in complete.decode("utf-8").split("\n") if line]
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{log}: not the traces of an evaluation: {error}") from error
