"""What the measurement of lookahead says to people: the table, whether shuffling hurts, and one picture."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.document import Heading, Page, Part, Picture, Table, Text
from eval.lookahead import ADAPTIVE, SHUFFLED, Row
from eval.lookahead_hours import curves, error_against_hours
from eval.plots import COLOURS, INK, as_png, blank_canvas, legend_above
from eval.wer import Edits, paired_bootstrap

KINDS = {  # of policies: colour and marker
    ADAPTIVE: (COLOURS[0], "o"),
    SHUFFLED: (COLOURS[1], "X"),
    "chunked": (COLOURS[2], "s"),
    "layerwise": (COLOURS[3], "D"),
    "causal": (COLOURS[7], "^"),
}
FEW = 8  # points whose intervals can be told apart


def page(report: Row) -> Page:
    """Of a report of eval/lookahead.py, see there."""
    rows = sorted(report["rows"], key=lambda row: row["latency_ms"]["mean"])
    parts: list[Part] = [
        Text(
            f"{report['clips']} clips, {report['audio_seconds'] / 60:.1f} minutes, greedy search. Latency is from a "
            "frame's end until all that it waits for has come, without compute; emitting frames are those at which a "
            "piece was said."
        ),
        Text(
            "A policy says how many frames of 40 ms each layer waits for. adaptive: as many as the head's schedulers "
            "ask for, frame by frame. shuffled: as many, but at random times, which shows whether it matters when. "
            "causal: none. layerwise: so many in each layer. chunked: to the end of a chunk of so many."
        ),
    ]
    if report["left_out"]:
        parts.append(Text(f"{report['left_out']} clips were too long for the trunk and were left out."))
    parts += [_table(rows), *(Text(verdict) for verdict in verdicts(rows))]
    parts.append(
        Picture("lookahead.png", "Word error rate against mean latency", error_against_latency(rows))
    )
    if learning := curves(rows):
        parts += [Heading("What more speech is worth"), *(Text(str(curve)) for curve in learning)]
        picture = error_against_hours(learning)
        parts.append(Picture("hours.png", "Word error rate against hours of training speech", picture))
    return Page("What waiting is worth", tuple(parts))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Of each head that was measured both ways: what its schedule is worth over the same spans elsewhere."""
    by_head: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_head[row["model"]][row["policy"]] = row
    said = []
    for model, of in by_head.items():
        if ADAPTIVE not in of or SHUFFLED not in of:
            continue
        difference = paired_bootstrap(_edits(of[ADAPTIVE]), _edits(of[SHUFFLED]))
        if difference is None:
            continue
        low, high = (100 * bound for bound in difference.interval)
        told = "so when it waits matters" if low > 0 else "so that when it waits matters is not shown"
        before, after = (of[policy]["latency_ms"]["mean"] for policy in (ADAPTIVE, SHUFFLED))
        said.append(
            f"{_name(model)}: the same spans shuffled in time change WER by {100 * difference.rate:+.1f} points "
            f"({low:+.1f} to {high:+.1f}, 95 %), {told}; mean latency goes from {before:.0f} to {after:.0f} ms."
        )
    return said


def error_against_latency(rows: Sequence[Row]) -> bytes:
    """WER over mean latency, PNG: a line for each kind of policy, and from each schedule to itself shuffled."""
    figure, axes = blank_canvas(6.0, 4.2)
    by_kind: dict[str, list[Row]] = defaultdict(list)
    hours_differ = len({row["facts"].get("hours") for row in rows}) > 1
    for row in rows:
        by_kind[row["policy"].partition(":")[0]].append(row)
    for kind, (colour, marker) in KINDS.items():
        line = sorted(by_kind[kind], key=_latency)
        if not line:
            continue
        x, y = [_latency(row) for row in line], [100 * row["wer"] for row in line]
        style = (
            "-" if kind in (ADAPTIVE, "chunked") and len({_name(row["model"]) for row in line}) > 1 else ""
        )
        axes.plot(x, y, marker + style, color=colour, label=kind, zorder=3)
        if len(rows) <= FEW:
            for row, at, rate in zip(line, x, y, strict=True):
                if row["wer_ci"]:
                    low, high = (100 * bound for bound in row["wer_ci"])
                    spread = [[max(0, rate - low)], [max(0, high - rate)]]
                    axes.errorbar([at], [rate], spread, fmt="none", ecolor=colour, alpha=0.35, capsize=2)
        for row, at, rate in zip(line, x, y, strict=True):
            axes.annotate(
                _note(row, hours_differ),
                (at, rate),
                (6, 4),
                textcoords="offset points",
                fontsize=7,
                color=INK,
            )
    for row in by_kind[SHUFFLED]:
        for own in by_kind[ADAPTIVE]:
            if own["model"] == row["model"]:
                x, y = [_latency(own), _latency(row)], [100 * own["wer"], 100 * row["wer"]]
                axes.plot(x, y, ":", color=KINDS[SHUFFLED][0], linewidth=1, zorder=2)
    axes.set_xlim(left=min(0, *axes.get_xlim()))
    axes.set_xlabel("mean latency of a frame, ms")
    axes.set_ylabel("word error rate, %")
    if rows:
        legend_above(axes)
    return as_png(figure)


def _table(rows: Sequence[Row]) -> Table:
    head = ("model", "policy", "target", "hours", "WER", "latency: mean",
            "median / 90 % / longest", "of emitting frames: mean", "median / 90 % / longest",
            "mean frames waited for, by layer")  # fmt: skip
    return Table(head, tuple(_cells(row) for row in rows))


def _cells(row: Row) -> tuple[str, ...]:
    facts = row["facts"]
    error = "" if row["wer"] is None else f"{row['wer']:.1%}"
    if row["wer_ci"]:
        low, high = row["wer_ci"]
        error += f" ({100 * low:.1f} to {100 * high:.1f})"
    return (
        _name(row["model"]),
        row["policy"],
        f"{facts['target_ms']:.0f} ms" if "target_ms" in facts else "",
        f"{facts['hours']:g}" if "hours" in facts else "",
        error,
        *_latencies(row["latency_ms"]),
        *_latencies(row["emitting_latency_ms"]),
        ", ".join(f"{span:.1f}" for span in row["mean_span"]),
    )


def _latencies(of: dict[str, float] | None) -> tuple[str, str]:
    if of is None:
        return "", ""
    return f"{of['mean']:.0f} ms", f"{of['p50']:.0f} / {of['p90']:.0f} / {of['max']:.0f} ms"


def _note(row: Row, hours_differ: bool) -> str:
    """What tells a point from others of its kind."""
    _, _, sizes = row["policy"].partition(":")
    facts: dict[str, Any] = row["facts"]
    parts = [sizes] if sizes else [f"{facts['target_ms']:.0f} ms"] if "target_ms" in facts else []
    return ", ".join([*parts, *([f"{facts['hours']:g} h"] if hours_differ and "hours" in facts else [])])


def _latency(row: Row) -> float:
    return float(row["latency_ms"]["mean"])


def _name(model: str) -> str:
    return Path(model).name


def _edits(row: Row) -> list[Edits]:
    """As many errors and words as each clip had; of which kind does not matter to rates."""
    return [Edits(hits=words, insertions=errors) for errors, words in row["clips"]]
