"""Traces -> numbers, of an utterance and of a run. What was not measured is absent, and never 0 instead."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from eval import latency
from eval.datasets import Utterance
from eval.latency import Moment, Revisions, ShownWord
from eval.trace import Step, Trace
from eval.wer import Edits, bootstrap_interval, count_edits, grouped, pooled


@dataclass(frozen=True)
class Measured:
    """One utterance with its numbers; None where there is no transcript, alignment or second pass."""

    utterance: Utterance
    trace: Trace
    edits: Edits | None
    final_edits: Edits | None
    shown: list[ShownWord]
    ends_ms: list[float | None]
    first_word: Moment | None
    revisions: Revisions
    so_far: tuple[Edits, Edits] | None  # RWER's and ARWER's

    @cached_property
    def emission(self) -> list[Moment]:
        return latency.emission_delays(self.shown, self.ends_ms)

    @cached_property
    def final(self) -> list[Moment]:
        return latency.final_delays(self.shown, self.ends_ms)

    @property
    def chunk_compute_ms(self) -> list[float]:
        return [step.compute_s * 1_000 for step in self.trace.steps if not step.finishes]


def measure(utterance: Utterance, trace: Trace, *, second_pass: bool) -> Measured:
    shown = latency.shown_words(trace)
    words, text = utterance.words or (), utterance.text
    return Measured(
        utterance,
        trace,
        edits=None if text is None else count_edits(text, trace.streaming_text),
        final_edits=None if text is None or not second_pass else count_edits(text, trace.final_text),
        shown=shown,
        ends_ms=latency.spoken_ends_ms(shown, words),
        first_word=latency.first_word_delay(trace, words),
        revisions=latency.revisions(trace),
        so_far=latency.errors_so_far(trace, words) if utterance.words is not None else None,
    )


def summarize(measured: Sequence[Measured]) -> dict[str, Any]:
    """The keys of report.json that are measured."""
    audio_s = sum(one.trace.audio_s for one in measured)
    steps = [step for one in measured for step in one.trace.steps]
    summary = {
        "utterances": len(measured),
        "audio_seconds": round(audio_s, 3),
        **_accuracy(measured),
        "rtf": _ratio(sum(one.trace.compute_s for one in measured), audio_s),
        "cpu_per_audio_second": _ratio(sum(one.trace.cpu_s for one in measured), audio_s),
        "chunk_compute_ms": _compute_ms(step for step in steps if not step.finishes),
        "finish_compute_ms": _compute_ms(step for step in steps if step.finishes),
        **_delays(measured, lambda moment: moment.audio_ms),
        "computation_aware": _delays(measured, lambda moment: moment.clock_ms),
        "schedule_latency_ms": _schedule(measured),
        "revision_rate": _ratio(
            sum(one.revisions.withdrawn for one in measured), sum(one.revisions.kept for one in measured)
        ),
        "groups": {"corpus": _groups(measured, "corpus"), "speaker": _groups(measured, "speaker")},
    }
    return without_absent(summary)


def as_row(one: Measured) -> dict[str, Any]:
    """One line of utterances.jsonl: the text as it streamed, word by word, and the words of the finals."""
    return without_absent(
        {
            "id": one.utterance.id,
            "corpus": one.utterance.corpus,
            "speaker": one.utterance.speaker,
            "audio_s": round(one.trace.audio_s, 3),
            "compute_s": round(one.trace.compute_s, 4),
            "reference": one.utterance.text,
            "hypothesis": one.trace.streaming_text,
            "final": one.trace.final_text,
            "edits": one.edits and _edits_as_json(one.edits),
            "final_edits": one.final_edits and _edits_as_json(one.final_edits),
            "revisions": asdict(one.revisions),
            "shown": [_word(word, end_ms) for word, end_ms in zip(one.shown, one.ends_ms, strict=True)],
            "words": [asdict(word) for final in one.trace.finals for word in final.words],
        }
    )


def without_absent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without None and NaN, in nested objects too; an object left empty goes as well."""
    kept = {
        key: without_absent(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    return {key: value for key, value in kept.items() if not _is_absent(value)}


def _is_absent(value: Any) -> bool:
    return value is None or value == {} or (isinstance(value, float) and math.isnan(value))


def _word(word: ShownWord, end_ms: float | None) -> dict[str, Any]:
    committed = word.committed
    return without_absent(
        {
            "text": word.text,
            "first_shown_ms": word.shown.audio_ms,
            "first_shown_clock_ms": round(word.shown.clock_ms, 3),
            "final_at_ms": committed and committed.audio_ms,
            "final_at_clock_ms": committed and round(committed.clock_ms, 3),
            "spoken_end_ms": end_ms,
        }
    )


def _accuracy(measured: Sequence[Measured]) -> dict[str, Any]:
    streaming = [one.edits for one in measured if one.edits is not None]
    final = [one.final_edits for one in measured if one.final_edits is not None]
    so_far = [one.so_far for one in measured if one.so_far is not None]
    unaware, aware = pooled(pair[0] for pair in so_far), pooled(pair[1] for pair in so_far)
    return {
        **_error_rates("", streaming),
        **_error_rates("final_", final),
        "rwer": _ratio(unaware.errors, unaware.reference_words),
        "arwer": _ratio(aware.errors, aware.reference_words),
    }


def _error_rates(prefix: str, edits: Sequence[Edits]) -> dict[str, Any]:
    if not edits:
        return {}
    total, interval = pooled(edits), bootstrap_interval(edits)
    return {
        f"{prefix}wer": _ratio(total.errors, total.reference_words),
        f"{prefix}wer_ci": interval and [round(bound, 6) for bound in interval],
        f"{prefix}edits": _edits_as_json(total),
    }


def _groups(measured: Sequence[Measured], key: str) -> dict[str, Any]:
    known = [one for one in measured if getattr(one.utterance, key) is not None]

    def by_group(edits_of: Callable[[Measured], Edits | None]) -> dict[str, Edits]:
        pairs = [(edits, getattr(one.utterance, key)) for one in known if (edits := edits_of(one))]
        return grouped([edits for edits, _ in pairs], [name for _, name in pairs])

    keys = [getattr(one.utterance, key) for one in known if one.edits is not None]
    final = by_group(lambda one: one.final_edits)
    return {
        name: {
            "utterances": keys.count(name),
            "reference_words": edits.reference_words,
            "wer": _ratio(edits.errors, edits.reference_words),
            "final_wer": _ratio(final[name].errors, final[name].reference_words) if name in final else None,
        }
        for name, edits in by_group(lambda one: one.edits).items()
    }


def _delays(measured: Sequence[Measured], clock: Callable[[Moment], float]) -> dict[str, Any]:
    emission = [clock(moment) for one in measured for moment in one.emission]
    final = [clock(moment) for one in measured for moment in one.final]
    first = [clock(one.first_word) for one in measured if one.first_word is not None]
    return {
        "emission_delay_ms": latency.percentiles(emission, (50, 90, 95)),
        "final_delay_ms": latency.percentiles(final, (50, 95)),
        "first_word_ms": latency.percentiles(first, (50, 95)),
    }


def _schedule(measured: Sequence[Measured]) -> dict[str, Any]:
    """How late frames are by the schedule that was served, of all clips in which something was said or not at all."""
    traces = [one.trace for one in measured]
    known = [trace.waits for trace in traces if trace.waits is not None]
    if not known or any(trace.waits is None and trace.finals for trace in traces):
        return {}
    total = sum(known[1:], start=known[0])
    return {
        "frames": latency.summary(latency.schedule_latency_ms(total.frames)),
        "emitting": latency.summary(latency.schedule_latency_ms(total.emitting)),
    }


def _edits_as_json(edits: Edits) -> dict[str, int]:
    return asdict(edits) | {"reference_words": edits.reference_words}


def _compute_ms(steps: Iterable[Step]) -> dict[str, float] | None:
    compute_ms = [step.compute_s * 1_000 for step in steps]
    found = latency.percentiles(compute_ms, (50, 95))
    return found and found | {"max": round(max(compute_ms), 3)}


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
