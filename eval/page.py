"""What the reports for people say: the few numbers of a decision first, then pictures, then everything."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval import plots
from eval.document import Heading, Page, Part, Picture, Table, Text
from eval.jobs import STREAMING
from eval.plots import Entry
from eval.report import value_at

WORST = 8  # utterances are shown
DEFINITIONS = (
    ("WER", "edits per reference word, pooled, after Whisper's English normalizer; interval by utterance, 95 %."),
    ("Streaming text", "the words as they came, without second pass; of a baseline, all that it has."),
    ("Finals", "the words of the second pass, where there is one."),
    ("Shown after", "from a word's end until it was shown and did not change any more; matching words only."),
    ("Settled after", "the same until it was promised not to change."),
    ("With compute", "the time that the answer took is added, queues included."),
    ("RWER, ARWER", "errors at every chunk end against the words begun by then, and by the end of its compute."),
    ("Schedule", "from a frame's end until all that it waits for has come, front end included; all frames."),
    ("Withdrawn", "words taken back from the screen per word kept."),
    ("Compute / audio", "seconds of compute per second of audio, one stream, second pass included."),
)  # fmt: skip


def headline(entries: Sequence[Entry]) -> Table:
    """The few numbers that a decision is made on, a line for each system."""
    head = ("", "WER, streaming text", "WER, finals", "shown after, median / 95 %", "with compute", "settled after",
            "schedule, mean / 90 %", "withdrawn", "compute / audio")  # fmt: skip
    return _without_empty_columns(Table(head, tuple(_headline_row(entry) for entry in entries)))


def page(entries: Sequence[Entry]) -> Page:
    """The report on one setting or on a sweep, baselines among the entries."""
    first = entries[0].summary
    own = [entry for entry in entries if entry.condition.system == STREAMING]
    chunk = f", chunks of {first['chunk_ms']} ms" if len(own) == 1 else f", {len(own)} settings"
    parts: list[Part] = [Text(_circumstances(first)), headline(entries)]
    ratios = [
        f"{name} took {ratio:.1f} times the CPU time of {entry.label}"
        for entry in own
        for name, ratio in entry.summary.get("compute_ratio", {}).items()
    ]
    if ratios:
        parts.append(Text("; ".join(ratios) + "."))
    parts += _pictures(entries)
    parts += _details(entries, own)
    return Page(f"{first['model']}{chunk}", tuple(parts))


def _circumstances(summary: Mapping[str, Any]) -> str:
    machine = summary["machine"]
    said = (
        f"{summary['utterances']} utterances, {summary['audio_seconds'] / 60:.1f} minutes; "
        f"{machine['cpu']}, {machine['device']}, {_n(machine['threads'], 'thread')}."
    )
    if "rtf" not in summary:
        return f"{said} Several clips went through one engine at once: compute was not measured."
    if machine.get("jobs", 1) > 1:
        said += (
            f" {machine['jobs']} processes computed at the same time: times of compute are upper bounds "
            "(--jobs 1 measures them alone)."
        )
    return said


def _headline_row(entry: Entry) -> tuple[str, ...]:
    summary, aware = entry.summary, entry.summary.get("computation_aware", {})
    compute = f"{summary['rtf']:.3f}" if "rtf" in summary else ""
    withdrawn = f"{summary['revision_rate']:.1%}" if "revision_rate" in summary and entry.streams else ""
    return (
        entry.label,
        _rate(summary, "wer"),
        _rate(summary, "final_wer"),
        _two(summary.get("emission_delay_ms")),
        _two(aware.get("emission_delay_ms")),
        _two(summary.get("final_delay_ms")),
        _schedule(value_at(summary, ("schedule_latency_ms", "frames"))),
        withdrawn,
        compute,
    )


def _pictures(entries: Sequence[Entry]) -> Iterator[Part]:
    drawn = (
        ("wer_against_delay.png", "Errors against delay", plots.error_against_delay),
        ("delays.png", "When words are shown", plots.delays),
        ("compute.png", "Compute per chunk", plots.compute),
        ("withdrawn.png", "Words taken back", plots.withdrawn),
    )
    for name, caption, draw in drawn:
        if png := draw(entries):
            yield Picture(name, caption, png)


def _details(entries: Sequence[Entry], own: Sequence[Entry]) -> Iterator[Part]:
    yield Heading("Details")
    yield _without_empty_rows(_measures(entries))
    if len(own) == 1:
        yield from _groups(own[0])
        yield from _worst(own[0])
    yield Heading("What the numbers mean")
    yield Table(("measure", "definition"), DEFINITIONS)
    summary = entries[0].summary
    if clock := summary.get("word_times"):
        yield Text(f"A word's end is taken from {clock}.")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    yield Text(f"Model: {summary['model']}, {summary.get('policy', 'no name')}. Versions: {versions}.")


def _measures(entries: Sequence[Entry]) -> Table:
    """Every measure, a column for each system."""

    def edits(key: str) -> tuple[str, ...]:
        return tuple(_edits(entry.summary.get(key)) for entry in entries)

    def points(*path: str) -> tuple[str, ...]:
        return tuple(_points(value_at(entry.summary, path)) for entry in entries)

    def percent(key: str) -> tuple[str, ...]:
        return tuple(f"{entry.summary[key]:.2%}" if key in entry.summary else "" for entry in entries)

    def number(key: str) -> tuple[str, ...]:
        return tuple(f"{entry.summary[key]:.3f}" if key in entry.summary else "" for entry in entries)

    rows = (
        ("WER, streaming text", *percent("wer")),
        ("edits, streaming text", *edits("edits")),
        ("WER, finals", *percent("final_wer")),
        ("edits, finals", *edits("final_edits")),
        ("RWER", *percent("rwer")),
        ("ARWER", *percent("arwer")),
        ("shown after, ms", *points("emission_delay_ms")),
        ("with compute", *points("computation_aware", "emission_delay_ms")),
        ("settled after, ms", *points("final_delay_ms")),
        ("with compute", *points("computation_aware", "final_delay_ms")),
        ("first word after, ms", *points("first_word_ms")),
        ("with compute", *points("computation_aware", "first_word_ms")),
        ("schedule, all frames, ms", *points("schedule_latency_ms", "frames")),
        ("frames that said something", *points("schedule_latency_ms", "emitting")),
        ("withdrawn", *percent("revision_rate")),
        ("compute per chunk, ms", *points("chunk_compute_ms")),
        ("compute per end of utterance, ms", *points("finish_compute_ms")),
        ("compute / audio", *number("rtf")),
        ("CPU time / audio", *number("cpu_per_audio_second")),
        (
            "start of words, mean error, ms",
            *(_ms(value_at(e.summary, ("timestamps", "start_mae_ms"))) for e in entries),
        ),
        (
            "end of words, mean error, ms",
            *(_ms(value_at(e.summary, ("timestamps", "end_mae_ms"))) for e in entries),
        ),
    )
    return Table(("measure", *(entry.label for entry in entries)), rows)


def _groups(entry: Entry) -> Iterator[Part]:
    for kind, groups in entry.summary.get("groups", {}).items():
        rows = tuple(
            (name, str(group["utterances"]), str(group["reference_words"]), _percent(group.get("wer")),
             _percent(group.get("final_wer")))
            for name, group in sorted(groups.items(), key=lambda item: -(item[1].get("wer") or 0))
        )  # fmt: skip
        if len(rows) > 1:
            yield Heading(f"By {kind}")
            head = (kind, "utterances", "words", "WER, streaming text", "WER, finals")
            yield _without_empty_columns(Table(head, rows))


def _worst(entry: Entry) -> Iterator[Part]:
    """The utterances that cost most errors: what a person would look at next."""
    known = [one for one in entry.report.measured if one.edits is not None and one.edits.errors]
    known.sort(key=lambda one: -(one.edits.errors if one.edits else 0))
    if known:
        yield Heading("Where most errors are")
        yield Table(
            ("id", "errors", "said", "heard"),
            tuple(
                (
                    one.utterance.id,
                    str(one.edits.errors if one.edits else 0),
                    one.utterance.text or "",
                    one.trace.streaming_text,
                )
                for one in known[:WORST]
            ),
        )


def _rate(summary: Mapping[str, Any], key: str) -> str:
    if key not in summary:
        return ""
    low, high = summary.get(f"{key}_ci", (None, None))
    interval = f" ({low * 100:.1f} to {high * 100:.1f})" if low is not None else ""
    return f"{summary[key]:.1%}{interval}"


def _two(values: Mapping[str, float] | None) -> str:
    return f"{values['p50']:.0f} / {values['p95']:.0f} ms" if values else ""


def _schedule(values: Mapping[str, float] | None) -> str:
    return f"{values['mean']:.0f} / {values['p90']:.0f} ms" if values else ""


def _points(values: Mapping[str, float] | None) -> str:
    names = {"mean": "mean", "p50": "median", "p90": "90 %", "p95": "95 %", "max": "max"}
    return ", ".join(f"{names[point]} {value:.0f}" for point, value in values.items()) if values else ""


def _edits(edits: Mapping[str, int] | None) -> str:
    if edits is None:
        return ""
    return (
        f"{edits['substitutions']} substituted, {edits['deletions']} missing, {edits['insertions']} added "
        f"of {edits['reference_words']}"
    )


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _n(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _without_empty_columns(table: Table) -> Table:
    keep = [i for i in range(len(table.head)) if i == 0 or any(row[i] for row in table.rows)]
    return Table(tuple(table.head[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in table.rows))


def _without_empty_rows(table: Table) -> Table:
    return Table(table.head, tuple(row for row in table.rows if any(row[1:])))
