"""Two runs against each other, on the utterances that both have: is B better than A, or was it luck?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.datasets import DatasetError, json_lines
from eval.report import value_at
from eval.wer import Difference, Edits, paired_bootstrap, pooled

RATES = {"edits": "WER, streaming text", "final_edits": "WER, finals"}  # by their key in utterances.jsonl
OTHERS = (  # name, path in report.json, factor, unit
    ("Word shown after its end, median", ("emission_delay_ms", "p50"), 1, "ms"),
    ("the same with compute", ("computation_aware", "emission_delay_ms", "p50"), 1, "ms"),
    ("Latency of the schedule, mean of frames", ("schedule_latency_ms", "frames", "mean"), 1, "ms"),
    ("Words withdrawn per word kept", ("revision_rate",), 100, "%"),
    ("Compute / audio", ("rtf",), 1, ""),
)


def compare(a: Path, b: Path) -> str:
    """A table in Markdown: the rates of both over their common utterances, and the other figures as reported.

    a, b: report.json files, with utterances.jsonl beside them.
    Raises DatasetError where they are no reports or have nothing in common.
    """
    reports, rows = zip(*(_read(path) for path in (a, b)), strict=True)
    common = [key for key in rows[0] if key in rows[1]]
    if not common:
        raise DatasetError(f"{a} and {b} have no utterance in common: evaluate the same data")
    different = [key for key in common if rows[0][key].get("reference") != rows[1][key].get("reference")]
    if different:
        raise DatasetError(
            f"{a} and {b} have different references for {different[0]}: evaluate the same data"
        )
    more_a, more_b = (len(one) - len(common) for one in rows)
    lines = [
        f"A: {a} ({_name(reports[0])})",
        f"B: {b} ({_name(reports[1])})",
        "",
        f"{len(common)} common utterances; {more_a} more in A, {more_b} in B."
        + (" Measures without an interval are of all that each has." if more_a or more_b else ""),
        "",
        "| measure | A | B | B - A | 95 % interval | B is better with probability |",
        "|---|---|---|---|---|---|",
    ]
    for key, name in RATES.items():
        pairs = [
            (_edits(rows[0][i][key]), _edits(rows[1][i][key]))
            for i in common
            if key in rows[0][i] and key in rows[1][i]
        ]
        edits = [list(side) for side in zip(*pairs, strict=True)]
        if edits and (pooled(edits[0]).rate is not None):
            lines.append(_rate_line(name, edits[0], edits[1], paired_bootstrap(edits[0], edits[1])))
    for name, path, factor, unit in OTHERS:
        values = [value_at(one, path) for one in reports]
        if values[0] is not None and values[1] is not None:
            x, y = (value * factor for value in values if value is not None)
            digits = 0 if unit == "ms" else 3 if not unit else 1
            cells = (f"{x:.{digits}f} {unit}", f"{y:.{digits}f} {unit}", f"{y - x:+.{digits}f} {unit}")
            lines.append(f"| {name} | {' | '.join(cell.strip() for cell in cells)} | | |")
    return "\n".join(lines)


def _rate_line(name: str, a: list[Edits], b: list[Edits], difference: Difference | None) -> str:
    rate_a, rate_b = pooled(a).rate or 0.0, pooled(b).rate or 0.0
    cells = [f"{rate_a:.2%}", f"{rate_b:.2%}", f"{(rate_b - rate_a) * 100:+.2f} points"]
    if difference is not None:
        low, high = (bound * 100 for bound in difference.interval)
        cells += [f"{low:+.2f} to {high:+.2f}", f"{difference.better_b:.1%}"]
    else:
        cells += ["", ""]
    return f"| {name} | {' | '.join(cells)} |"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: no report that can be read; name two report.json") from error
    if not isinstance(report, dict) or "utterances" not in report or "sweep" in report:
        raise DatasetError(f"{path}: no report of one setting; of a sweep, name a folder's within")
    beside = path.with_name("utterances.jsonl")
    if not beside.is_file():
        raise DatasetError(f"{path}: no utterances.jsonl beside it, which a comparison needs")
    return report, {str(row.get("id")): row for _, row in json_lines(beside)}


def _edits(row: Mapping[str, int]) -> Edits:
    return Edits(row["hits"], row["substitutions"], row["deletions"], row["insertions"])


def _name(report: Mapping[str, Any]) -> str:
    parts = [report.get("model"), report.get("policy")]
    parts += [
        f"{key} {report[key]}"
        for key in ("chunk_ms", "beam", "delay_ms", "pause_ms", "final_pass")
        if key in report
    ]
    return ", ".join(str(part) for part in parts if part is not None)
