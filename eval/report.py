"""The numbers of one run: `report.json` (stable keys), `utterances.jsonl`, `report.md`.

A key that is absent was not measured; it is never 0 instead.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from eval import latency
from eval.datasets import Utterance
from eval.latency import Moment, Revisions, ShownWord
from eval.trace import Step, Trace
from eval.wer import Edits, bootstrap_interval, count_edits, grouped, pooled

_PACKAGES = ("asr-stream", "torch", "numpy", "openai-whisper", "jiwer")


@dataclass(frozen=True)
class Report:
    """The numbers of a run, and of each utterance in it."""

    summary: dict[str, Any]  # report.json
    utterances: list[dict[str, Any]]  # utterances.jsonl

    def write(self, folder: Path) -> None:
        """Puts the three files into `folder`, each whole or not at all."""
        write_atomically(folder / "utterances.jsonl", "".join(json_line(row) for row in self.utterances))
        write_atomically(folder / "report.md", as_markdown(self.summary))
        write_atomically(
            folder / "report.json", json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n"
        )


@dataclass(frozen=True)
class _Measured:
    """One utterance with its numbers; None where there is no transcript or alignment."""

    utterance: Utterance
    trace: Trace
    edits: Edits | None
    final_edits: Edits | None
    shown: list[ShownWord]
    ends_ms: list[float | None]
    first_word: Moment | None
    revisions: Revisions


def summarize(
    settings: Mapping[str, Any], recognised: Sequence[tuple[Utterance, Trace]], machine: Mapping[str, Any]
) -> Report:
    """The report on utterances and what happened to each. `settings` go in as they are, in front."""
    second_pass = settings.get("final_pass") != "none"
    measured = [_measure(utterance, trace, second_pass) for utterance, trace in recognised]
    audio_s = sum(trace.audio_s for _, trace in recognised)
    compute_s = sum(trace.compute_s for _, trace in recognised)
    steps = [step for _, trace in recognised for step in trace.steps]
    summary = {
        **settings,
        "utterances": len(measured),
        "audio_seconds": round(audio_s, 3),
        **_accuracy(measured),
        "rtf": _ratio(compute_s, audio_s),
        "chunk_compute_ms": _compute_ms(step for step in steps if not step.finishes),
        "finish_compute_ms": _compute_ms(step for step in steps if step.finishes),
        **_delays(measured, lambda moment: moment.audio_ms),
        "computation_aware": _delays(measured, lambda moment: moment.clock_ms),
        "revision_rate": _ratio(
            sum(one.revisions.withdrawn for one in measured), sum(one.revisions.kept for one in measured)
        ),
        "groups": {"corpus": _groups(measured, "corpus"), "speaker": _groups(measured, "speaker")},
        "machine": dict(machine),
        "versions": _versions(),
    }
    return Report(_without_absent(summary), [_row(one) for one in measured])


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What the compute times depend on."""
    return {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "device": device}


def as_markdown(summary: Mapping[str, Any]) -> str:
    """A short table of the summary for people."""
    rows = list(_lines(summary))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    machine = summary["machine"]
    return (
        f"# {summary['model']}, chunks of {summary['chunk_ms']} ms\n\n"
        f"{summary['utterances']} utterances, {summary['audio_seconds'] / 60:.1f} minutes of audio, "
        f"{machine['cpu']} ({machine['device']}, {machine['threads']} threads).\n\n"
        f"| measure | value |\n|---|---|\n{table}\n"
    )


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path`, which a reader finds either as it was or complete."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _measure(utterance: Utterance, trace: Trace, second_pass: bool) -> _Measured:
    shown = latency.shown_words(trace)
    words = utterance.words or ()
    return _Measured(
        utterance,
        trace,
        edits=None if utterance.text is None else count_edits(utterance.text, trace.streaming_text),
        final_edits=None
        if utterance.text is None or not second_pass
        else count_edits(utterance.text, trace.final_text),
        shown=shown,
        ends_ms=latency.spoken_ends_ms(shown, words),
        first_word=latency.first_word_delay(trace, words),
        revisions=latency.revisions(trace),
    )


def _accuracy(measured: Sequence[_Measured]) -> dict[str, Any]:
    streaming = [one.edits for one in measured if one.edits is not None]
    final = [one.final_edits for one in measured if one.final_edits is not None]
    return _error_rates("", streaming) | _error_rates("final_", final)


def _error_rates(prefix: str, edits: Sequence[Edits]) -> dict[str, Any]:
    if not edits:
        return {}
    total = pooled(edits)
    return {
        f"{prefix}wer": _ratio(total.errors, total.reference_words),
        f"{prefix}wer_ci": _rounded(bootstrap_interval(edits)),
        f"{prefix}edits": _edits_as_json(total),
    }


def _groups(measured: Sequence[_Measured], key: str) -> dict[str, Any] | None:
    known = [one for one in measured if one.edits is not None and getattr(one.utterance, key) is not None]
    keys = [getattr(one.utterance, key) for one in known]
    streaming = grouped([one.edits or Edits() for one in known], keys)
    twice = [
        (one.final_edits, key) for one, key in zip(known, keys, strict=True) if one.final_edits is not None
    ]
    final = grouped([edits for edits, _ in twice], [key for _, key in twice])
    return {
        name: {
            "utterances": keys.count(name),
            "reference_words": edits.reference_words,
            "wer": _ratio(edits.errors, edits.reference_words),
        }
        | ({"final_wer": _ratio(final[name].errors, final[name].reference_words)} if name in final else {})
        for name, edits in streaming.items()
    } or None


def _delays(measured: Sequence[_Measured], clock: Callable[[Moment], float]) -> dict[str, Any]:
    emission = [clock(m) for one in measured for m in latency.emission_delays(one.shown, one.ends_ms)]
    final = [clock(m) for one in measured for m in latency.final_delays(one.shown, one.ends_ms)]
    first = [clock(one.first_word) for one in measured if one.first_word is not None]
    return {
        "emission_delay_ms": latency.percentiles(emission, (50, 90, 95)),
        "final_delay_ms": latency.percentiles(final, (50, 95)),
        "first_word_ms": latency.percentiles(first, (50, 95)),
    }


def _row(one: _Measured) -> dict[str, Any]:
    """One line of utterances.jsonl: the text as it streamed, word by word, and the words of the finals."""
    row = {
        "id": one.utterance.id,
        "corpus": one.utterance.corpus,
        "speaker": one.utterance.speaker,
        "audio_s": round(one.trace.audio_s, 3),
        "compute_s": round(one.trace.compute_s, 4),
        "reference": one.utterance.text,
        "hypothesis": one.trace.streaming_text,
        "final": one.trace.final_text,
        "edits": None if one.edits is None else _edits_as_json(one.edits),
        "final_edits": None if one.final_edits is None else _edits_as_json(one.final_edits),
        "revisions": asdict(one.revisions),
        "shown": [
            _without_absent(
                {
                    "text": word.text,
                    "first_shown_ms": word.shown.audio_ms,
                    "first_shown_clock_ms": round(word.shown.clock_ms, 3),
                    "final_at_ms": None if word.committed is None else word.committed.audio_ms,
                    "final_at_clock_ms": None
                    if word.committed is None
                    else round(word.committed.clock_ms, 3),
                    "spoken_end_ms": end_ms,
                }
            )
            for word, end_ms in zip(one.shown, one.ends_ms, strict=True)
        ],
        "words": [asdict(word) for final in one.trace.finals for word in final.words],
    }
    return _without_absent(row)


def _lines(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, key in (("WER, streaming", "wer"), ("WER, finals", "final_wer")):
        if key in summary:
            low, high = summary.get(f"{key}_ci", (None, None))
            interval = f" (95 %: {low:.2%} to {high:.2%})" if low is not None else ""
            yield name, f"{summary[key]:.2%}{interval}"
    for name, key, aware in (
        ("Emission delay", "emission_delay_ms", False),
        ("Emission delay with compute", "emission_delay_ms", True),
        ("Final delay", "final_delay_ms", False),
        ("First word", "first_word_ms", False),
        ("Compute per chunk", "chunk_compute_ms", False),
        ("Compute per end of utterance", "finish_compute_ms", False),
    ):
        values = summary.get("computation_aware", {}).get(key) if aware else summary.get(key)
        if values:
            yield name, ", ".join(f"{point} {value:.0f} ms" for point, value in values.items())
    for name, key in (("Words withdrawn per word kept", "revision_rate"), ("Compute / audio", "rtf")):
        if key in summary:
            yield name, f"{summary[key]:.3f}"


def _edits_as_json(edits: Edits) -> dict[str, int]:
    return asdict(edits) | {"reference_words": edits.reference_words}


def _compute_ms(steps: Iterable[Step]) -> dict[str, float] | None:
    compute_ms = [step.compute_s * 1_000 for step in steps]
    found = latency.percentiles(compute_ms, (50, 95))
    return None if found is None else found | {"max": round(max(compute_ms), 3)}


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(bound, 6) for bound in interval]


def _without_absent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that are None, in nested objects too; an object left empty goes as well."""
    kept = {
        key: _without_absent(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
