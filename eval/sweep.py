"""Systems x settings x utterances: what is missing is recognised, and every report is made of the traces alone.

Models are loaded once for all settings, a reference is aligned once, and a baseline runs once for each chunk size.
What happened to each utterance is written down at once, so that an interrupted run goes on where it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from asr.audio import read_audio
from asr.device import described
from eval.alignment import align
from eval.baselines import KINDS
from eval.datasets import TimedWord, Utterance
from eval.jobs import STREAMING, Workshop, work
from eval.log import Log, Run, fingerprint
from eval.report import Report, describe_machine, kept_entries, report, write_json
from eval.run import recognise, recognise_together
from eval.trace import Trace
from streaming.session import DEFAULT_DELAY_MS, DEFAULT_PAUSE_MS, SessionOptions

ALIGNMENT = "alignment.jsonl"  # also a file for --words


@dataclass(frozen=True)
class Condition:
    """One system at one setting."""

    system: str  # STREAMING or one of KINDS
    options: SessionOptions

    @property
    def name(self) -> str:
        """What its folder is called."""
        parts = [] if self.system == STREAMING else [self.system]
        if self.system != "offline":
            parts.append(f"chunk{self.options.chunk_ms}")
        if self.system == STREAMING:
            parts += [f"beam{self.options.beam}", f"delay{self.options.delay_ms}"]
            if self.options.pause_ms != DEFAULT_PAUSE_MS:
                parts.append(f"pause{self.options.pause_ms}")
        return "-".join(parts)

    @property
    def chosen(self) -> dict[str, int]:
        """What else than the chunk differs."""
        options = self.options
        return {"beam": options.beam, "delay_ms": options.delay_ms, "pause_ms": options.pause_ms}

    def settings(self, model: str, policy: str | None) -> dict[str, Any]:
        """The head of its report.json."""
        if self.system == STREAMING:
            own = {"policy": policy, **self.chosen, "final_pass": self.options.final_pass}
        else:
            own = {"policy": self.system, "final_pass": "none"}
        chunk = {} if self.system == "offline" else {"chunk_ms": self.options.chunk_ms}
        return {"model": model, **chunk, **own}


def conditions(
    *,
    chunk_ms: Sequence[int] = (300,),
    beam: Sequence[int] = (1,),
    delay_ms: Sequence[int] = (DEFAULT_DELAY_MS,),
    pause_ms: Sequence[int] = (DEFAULT_PAUSE_MS,),
    final_pass: str = "full",
    baselines: Sequence[str] = (),
) -> list[Condition]:
    """All combinations, baselines last.

    ValueError where a value is none that a session takes, or a baseline is unknown.
    """
    if unknown := sorted(set(baselines) - KINDS.keys()):
        raise ValueError(f"no baseline is called {unknown[0]!r}: there are {', '.join(KINDS)}")
    streaming = [
        Condition(
            STREAMING,
            SessionOptions(chunk_ms=chunk, final_pass=final_pass, beam=width, delay_ms=delay, pause_ms=pause),
        )
        for chunk, width, delay, pause in product(*map(dict.fromkeys, (chunk_ms, beam, delay_ms, pause_ms)))
    ]
    others = [
        Condition(system, SessionOptions(chunk_ms=chunk, final_pass="none"))
        for system in dict.fromkeys(baselines)
        for chunk in (sorted(set(chunk_ms))[:1] if system == "offline" else dict.fromkeys(chunk_ms))
    ]
    return [*streaming, *others]


@dataclass(frozen=True)
class Alignment:
    """The task of finding out when the words of a reference were spoken."""

    utterance: Utterance

    def __call__(self, workshop: Workshop) -> tuple[TimedWord, ...]:
        return align(workshop.decoder, read_audio(self.utterance.audio), self.utterance.text or "")


@dataclass(frozen=True)
class Recognition:
    """The task of recognising some utterances: one after the other, or together without measuring compute."""

    condition: Condition
    utterances: tuple[Utterance, ...]
    together: bool = False
    realtime: bool = False

    def __call__(self, workshop: Workshop) -> list[Trace]:
        clips = [(utterance.id, read_audio(utterance.audio)) for utterance in self.utterances]
        options = self.condition.options
        engine = workshop.recogniser(self.condition.system, clips[0][1], options)
        if self.together:
            return recognise_together(engine, clips, options)
        return [recognise(engine, *clip, options, realtime=self.realtime) for clip in clips]


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how.

    Args:
        policy: a name for how the engine decides, for the report.
        jobs: processes; with more than one, compute is measured while the others compute too.
        batch: clips at once in one engine; with more than one, compute is not measured.
        resume: go on with the runs that `out` holds; otherwise they are forgotten.
    """

    utterances: Sequence[Utterance]
    conditions: Sequence[Condition]
    out: Path
    policy: str | None = None
    jobs: int = 1
    batch: int = 1
    realtime: bool = False
    resume: bool = True

    def folder(self, condition: Condition) -> Path:
        """Of the only streaming setting `out` itself, of others one within."""
        alone = sum(one.system == STREAMING for one in self.conditions) == 1
        return self.out if alone and condition.system == STREAMING else self.out / condition.name


def evaluate(
    plan: Plan, workshop: Workshop, progress: Callable[[int, int, str], None] = lambda *_: None
) -> dict[Condition, Report]:
    """Recognises what is missing, and writes report.json and utterances.jsonl of each condition.

    progress: told (done, of how many, doing what) at the start and after each task, over all conditions.
    Raises EvaluationError where a folder holds other settings or an engine fails, AudioError where a file cannot
    be read.
    """
    audio = {one.id: fingerprint(one.audio) for one in plan.utterances}
    runs = {
        condition: Run(
            plan.folder(condition),
            condition.settings(
                workshop.model if condition.system == STREAMING else workshop.base, plan.policy
            )
            | ({"batch": plan.batch} if plan.batch > 1 else {}),
            audio,
            resume=plan.resume,
        )
        for condition in plan.conditions
    }
    log = Log(plan.out / ALIGNMENT)
    timed = _known_times(plan, log, workshop.base, audio)
    machine = _machine(plan, workshop)
    alignments = [
        Alignment(one) for one in plan.utterances if one.words is None and one.text and one.id not in timed
    ]
    recognitions = [task for condition, run in runs.items() for task in _missing(plan, condition, run)]
    total = len(alignments) + len(plan.utterances) * len(runs)
    n_done = total - len(alignments) - sum(len(task.utterances) for task in recognitions)

    def done(task: Any, result: Any) -> None:
        nonlocal n_done
        if isinstance(task, Alignment):
            one = task.utterance
            timed[one.id] = result
            words = [[word.word, word.start_s, word.end_s] for word in result]
            known = {"id": one.id, "model": workshop.base, "audio": audio[one.id], "text": one.text}
            log.append(known | {"words": words})
            n_done += 1
            progress(n_done, total, "aligning")
            return
        for trace in result:
            runs[task.condition].add(trace, machine)
        n_done += len(result)
        progress(n_done, total, task.condition.name)

    progress(n_done, total, "")
    work([*alignments, *recognitions], workshop, plan.jobs, done)
    return _report(plan, runs, timed, workshop)


def _machine(plan: Plan, workshop: Workshop) -> dict[str, Any]:
    """What is measured on from now on."""
    threads = {} if workshop.threads is None else {"threads": workshop.threads}
    return describe_machine(described(workshop.device)) | threads | {"jobs": plan.jobs}


def _known_times(plan: Plan, log: Log, model: str, audio: dict[str, str]) -> dict[str, tuple[TimedWord, ...]]:
    """The alignments by utterance that are there already, of these references to this audio by this model."""
    if not plan.resume:
        log.path.unlink(missing_ok=True)
    wanted = {one.id: (model, audio[one.id], one.text) for one in plan.utterances}
    return {
        row["id"]: tuple(TimedWord(*word) for word in row["words"])
        for row in log.rows()
        if wanted.get(row.get("id", "")) == (row.get("model"), row.get("audio"), row.get("text"))
    }


def _missing(plan: Plan, condition: Condition, run: Run) -> list[Recognition]:
    todo = [one for one in plan.utterances if one.id not in run.traces]
    if plan.batch > 1:  # the longest go first, so that those of a batch end together
        todo.sort(key=lambda one: -one.audio.stat().st_size)
    groups = [todo[i : i + plan.batch] for i in range(0, len(todo), plan.batch)]
    return [Recognition(condition, tuple(group), plan.batch > 1, plan.realtime) for group in groups]


def _report(
    plan: Plan, runs: dict[Condition, Run], timed: dict[str, tuple[TimedWord, ...]], workshop: Workshop
) -> dict[Condition, Report]:
    utterances = [
        replace(one, words=timed.get(one.id)) if one.words is None else one for one in plan.utterances
    ]
    reports: dict[Condition, Report] = {}
    for condition in sorted(runs, key=lambda one: one.system == STREAMING):  # baselines first: the yardstick
        run = runs[condition]
        recognised = [(one, run.traces[one.id]) for one in utterances]
        kept = {} if run.grew else kept_entries(run.folder)  # they are about the traces that were there
        extra = {"word_times": _clock(plan.utterances, timed, workshop.base), **kept}
        made = report(run.settings, recognised, run.machine, extra)
        made.summary.update(_compute_ratios(condition, made, reports))
        reports[condition] = made
    for condition, made in reports.items():
        made.write(runs[condition].folder)
    return {condition: reports[condition] for condition in plan.conditions}


def _clock(
    utterances: Sequence[Utterance], timed: dict[str, tuple[TimedWord, ...]], model: str
) -> str | None:
    """Whose word times delays are measured from."""
    given = sum(one.words is not None for one in utterances)
    found = sum(one.words is None and one.id in timed for one in utterances)
    clocks = [f"the data ({given})"] if given else []
    clocks += [f"the reference aligned by {model} ({found})"] if found else []
    return " and ".join(clocks) or None


def _compute_ratios(condition: Condition, made: Report, before: dict[Condition, Report]) -> dict[str, Any]:
    """How many times as much CPU time each baseline took."""
    own = made.summary.get("cpu_per_audio_second")
    if condition.system != STREAMING or not own:
        return {}
    ratios = {
        other.system: round(theirs / own, 3)
        for other, theirs_made in before.items()
        if other.system != STREAMING
        and (other.system == "offline" or other.options.chunk_ms == condition.options.chunk_ms)
        and (theirs := theirs_made.summary.get("cpu_per_audio_second"))
    }
    return {"compute_ratio": ratios} if ratios else {}


def write_overview(out: Path, reports: dict[Condition, Report]) -> None:
    """The report.json of the whole folder: the only setting with its baselines, or every setting of a sweep."""
    streaming = {one: made for one, made in reports.items() if one.system == STREAMING}
    others = {one.name: _short(made) for one, made in reports.items() if one.system != STREAMING}
    first = next(iter(streaming.values())).summary
    if len(streaming) == 1:
        overview = first | ({"baselines": others} if others else {})
    else:
        points = {one.name: _short(made) for one, made in streaming.items()}
        common = ("model", "policy", "utterances", "audio_seconds", "word_times")
        overview = {key: first[key] for key in common if key in first}
        overview |= {"sweep": points} | ({"baselines": others} if others else {})
        overview |= {key: first[key] for key in ("machine", "versions")}
    write_json(out / "report.json", overview)


def _short(made: Report) -> dict[str, Any]:
    """Without what all reports of a folder share."""
    return {key: value for key, value in made.summary.items() if key not in ("groups", "machine", "versions")}
