"""Pictures of runs: PNG bytes, each drawn from the same list of entries in the same colours."""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from eval.jobs import STREAMING
from eval.report import Report
from eval.sweep import Condition

mpl.use("Agg")

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#db2777", "#0891b2", "#64748b")
INK, FAINT = "#334155", "#e2e8f0"
FEW = 3  # as many histograms can be told apart in one picture


@dataclass(frozen=True)
class Entry:
    """One line of a report: a system at a setting, and what was measured of it."""

    label: str
    condition: Condition
    report: Report
    colour: str

    @property
    def summary(self) -> dict[str, Any]:
        return self.report.summary

    @property
    def streams(self) -> bool:
        """Whether words come while they are spoken."""
        return self.condition.system != "offline"


def entries(reports: dict[Condition, Report]) -> list[Entry]:
    """In the order of `reports`, named by what distinguishes them; settings of one line have one colour."""
    colours: dict[tuple[Any, ...], str] = {}
    for condition in reports:
        colours.setdefault(_line(condition), COLOURS[len(colours) % len(COLOURS)])
    return [
        Entry(label_of(condition, list(reports)), condition, report, colours[_line(condition)])
        for condition, report in reports.items()
    ]


def _line(condition: Condition) -> tuple[Any, ...]:
    """What conditions have in common that differ in their chunks only."""
    return (condition.system, *(condition.chosen.values() if condition.system == STREAMING else ()))


def label_of(condition: Condition, among: Sequence[Condition]) -> str:
    streaming = [one for one in among if one.system == STREAMING]
    own = condition.system == STREAMING
    parts = [] if own else [{"local-agreement": "LocalAgreement-2"}.get(condition.system, condition.system)]
    if condition.system != "offline" and (own or len({one.options.chunk_ms for one in streaming}) > 1):
        parts.append(f"{condition.options.chunk_ms} ms")
    if own:
        names = (("beam", "beam {}"), ("delay_ms", "delay {} ms"), ("pause_ms", "pause {} ms"))
        for key, name in names:
            if len({one.chosen.get(key) for one in streaming}) > 1:
                parts.append(name.format(condition.chosen.get(key)))
    return ", ".join(["asr-stream", *parts] if own and len(streaming) == 1 else parts)


def error_against_delay(some: Sequence[Entry]) -> bytes | None:
    """WER over the median delay of a word; None where neither is known of two systems."""
    points = [entry for entry in some if entry.streams and "wer" in entry.summary and _delay(entry)]
    if len(some) < 2 or not points:
        return None
    figure, axes = blank_canvas(6.0, 4.2)
    lines: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in points:
        lines[_line(entry.condition)].append(entry)
    noted: set[str] = set()
    for line in lines.values():
        line.sort(key=lambda entry: entry.condition.options.chunk_ms)
        system, colour = line[0].condition.system, line[0].colour
        x, y = [_delay(entry) or 0.0 for entry in line], [entry.summary["wer"] * 100 for entry in line]
        style = "o-" if system == STREAMING else "s--"
        axes.plot(x, y, style, color=colour, label=_line_label(line[0], points), zorder=3)
        bounds = [entry.summary.get("wer_ci") for entry in line]
        if all(bounds) and len(points) <= 2 * FEW:
            spread = np.abs(np.array(bounds).T * 100 - np.array(y))
            axes.errorbar(x, y, spread, fmt="none", ecolor=colour, alpha=0.35, capsize=2)
        if system not in noted:  # one line of a system tells the chunks of them all
            noted.add(system)
            for entry, at in zip(line, zip(x, y, strict=True), strict=True):
                note = f"{entry.condition.options.chunk_ms} ms"
                axes.annotate(note, at, (6, 4), textcoords="offset points", fontsize=7, color=INK)
    for entry in some:
        if not entry.streams and "wer" in entry.summary:
            rate = entry.summary["wer"] * 100
            axes.axhline(rate, color=entry.colour, linestyle=":", label="offline, whole clip")
    axes.set_xlim(left=min(0, *axes.get_xlim()))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)  # room for the notes
    axes.set_xlabel(f"median delay of a word after its end, ms{_with_compute(points)}")
    axes.set_ylabel("word error rate, %")
    legend_above(axes)
    return as_png(figure)


def delays(some: Sequence[Entry]) -> bytes | None:
    """How long after its end a word was shown for good; None where no word times are known."""
    aware = not _unmeasured(some)

    def values(entry: Entry) -> list[float]:
        moments = [moment for one in entry.report.measured for moment in one.emission]
        return [moment.clock_ms if aware else moment.audio_ms for moment in moments]

    unit = "ms from a word's end until it is shown for good" + (", with compute" if aware else "")
    return _spread([entry for entry in some if entry.streams], values, unit, "words, %")


def compute(some: Sequence[Entry]) -> bytes | None:
    """How long a chunk took; None where compute was not measured."""

    def values(entry: Entry) -> list[float]:
        return [ms for one in entry.report.measured for ms in one.chunk_compute_ms if not np.isnan(ms)]

    return _spread(
        [entry for entry in some if entry.streams], values, "ms of compute per chunk", "chunks, %", log=True
    )


def withdrawn(some: Sequence[Entry]) -> bytes | None:
    """How many words were taken back for each that stayed."""
    rates = [
        (entry, entry.summary["revision_rate"] * 100) for entry in some if "revision_rate" in entry.summary
    ]
    rates = [(entry, rate) for entry, rate in rates if entry.streams]
    if not rates:
        return None
    figure, axes = blank_canvas(6.0, 0.9 + 0.34 * len(rates))
    places = range(len(rates))
    axes.barh(
        places, [rate for _, rate in rates], color=[entry.colour for entry, _ in rates], height=0.6, zorder=3
    )
    for place, (_, rate) in zip(places, rates, strict=True):
        axes.annotate(
            f"{rate:.1f} %", (rate, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    _name_rows(axes, [entry for entry, _ in rates])
    axes.set_xlim(0, max(1.0, 1.15 * max(rate for _, rate in rates)))
    axes.set_xlabel("words withdrawn per 100 words kept")
    return as_png(figure)


def _spread(
    some: Sequence[Entry],
    values_of: Callable[[Entry], list[float]],
    unit: str,
    share: str,
    *,
    log: bool = False,
) -> bytes | None:
    """Histograms of a few entries; of many, a bar from the 5th to the 95th percentile with the median."""
    known = [(entry, values) for entry in some if (values := values_of(entry))]
    if not known:
        return None
    pooled = np.concatenate([values for _, values in known])
    if log:
        pooled = pooled.clip(min=0.1)
    if len({entry.colour for entry, _ in known}) < len(known) or len(known) > FEW:
        figure, axes = blank_canvas(6.0, 0.9 + 0.34 * len(known))
        for place, (entry, values) in enumerate(known):
            low, middle, high = np.percentile(values, (5, 50, 95))
            axes.barh(place, high - low, left=low, height=0.5, color=entry.colour, alpha=0.35, zorder=3)
            axes.plot([middle], [place], "o", color=entry.colour, zorder=4)
            axes.annotate(
                f"{middle:.0f}", (middle, place), (0, 6), textcoords="offset points", ha="center", fontsize=7
            )
        _name_rows(axes, [entry for entry, _ in known])
        axes.set_xlabel(f"{unit}\n(bar: 5 % to 95 %, dot: median)")
        if not log:
            axes.set_xlim(left=min(0, *axes.get_xlim()))
    else:
        figure, axes = blank_canvas(6.0, 3.4)
        low, high = np.percentile(pooled, (0.5, 99.5))
        bins = np.geomspace(low / 1.1, high * 1.1, 48) if log else np.linspace(low - 1, high + 1, 48)
        for entry, values in known:
            weights = np.full(len(values), 100 / len(values))
            middle = float(np.median(values))
            clipped = np.clip(values, bins[0], bins[-1])
            axes.hist(clipped, bins=bins.tolist(), weights=weights, color=entry.colour, alpha=0.45, zorder=3,
                      label=f"{entry.label}: median {middle:.0f} ms")  # fmt: skip
            axes.axvline(middle, color=entry.colour, linewidth=1.2, zorder=4)
        axes.set_xlabel(unit)
        axes.set_ylabel(share)
        legend_above(axes)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    return as_png(figure)


def _delay(entry: Entry) -> float | None:
    """Median in ms, with compute where it was measured."""
    for source in (entry.summary.get("computation_aware", {}), entry.summary):
        if values := source.get("emission_delay_ms"):
            return float(values["p50"])
    return None


def _line_label(entry: Entry, among: Sequence[Entry]) -> str:
    if entry.condition.system != STREAMING:
        return "LocalAgreement-2"
    label = label_of(entry.condition, [one.condition for one in among])
    own = (
        label.removeprefix("asr-stream, ").removeprefix(f"{entry.condition.options.chunk_ms} ms").strip(", ")
    )
    return f"asr-stream, {own}" if own else "asr-stream"


def legend_above(axes: Axes) -> None:
    """Above the picture, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _with_compute(some: Sequence[Entry]) -> str:
    return "" if _unmeasured(some) else ", compute included"


def _unmeasured(some: Sequence[Entry]) -> bool:
    """Whether compute was not measured."""
    return all("rtf" not in entry.summary for entry in some)


def _name_rows(axes: Axes, some: Sequence[Entry]) -> None:
    axes.set_yticks(range(len(some)), [entry.label for entry in some])
    axes.set_ylim(len(some) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def blank_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of so many inches, in the style of all."""
    figure = Figure((width, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.grid(color=FAINT, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    return figure, axes


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
