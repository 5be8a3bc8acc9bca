"""What more training speech is worth: error rates of like heads over their hours, and the power law through them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from eval.lookahead import SHUFFLED, Row
from eval.plots import COLOURS, as_png, blank_canvas, legend_above

FEWEST = 3  # amounts of speech through which a line is drawn
FURTHER = 10  # times the most hours, to which it is drawn on
RESAMPLES = 2_000
LEAST = 1e-4  # error rate that a logarithm is taken of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """WER = exp(offset) * hours ** slope, of heads that differ in their hours."""

    name: str
    hours: tuple[float, ...]
    rates: tuple[float, ...]
    slope: float
    offset: float
    resampled: tuple[Floats, Floats]  # slopes and offsets over clips drawn with replacement

    @property
    def further(self) -> float:
        """Hours to which the curve is drawn on."""
        return FURTHER * max(self.hours)

    def at(self, hours: float) -> float:
        return float(np.exp(self.offset) * hours**self.slope)

    def interval(self, hours: float) -> tuple[float, float]:
        """95 % of what other clips would have said."""
        slopes, offsets = self.resampled
        low, high = np.quantile(np.exp(offsets) * hours**slopes, (0.025, 0.975))
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = (100 * rate for rate in self.interval(self.further))
        return (
            f"{self.name}: WER goes with the hours to the power of {self.slope:.2f}. {self.further:g} h, {FURTHER} "
            f"times the most, would give {100 * self.at(self.further):.1f} % ({low:.1f} to {high:.1f}, 95 % of "
            "samples of the clips) if that went on: a power law knows no floor, and none of the noise of training."
        )


def curves(rows: Sequence[Row]) -> list[Curve]:
    """One for each policy and base of which heads of at least FEWEST amounts of speech were measured."""
    like: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["policy"] != SHUFFLED and row["wer"] and row["facts"].get("hours"):
            like[_name(row)].append(row)
    return [
        _curve(name, some)
        for name, some in like.items()
        if len({row["facts"]["hours"] for row in some}) >= FEWEST
    ]


def error_against_hours(some: Sequence[Curve]) -> bytes:
    """WER over hours, PNG, both axes logarithmic: points, and the lines through and beyond them."""
    figure, axes = blank_canvas(6.0, 4.2)
    for curve, colour in zip(some, COLOURS * len(some), strict=False):
        axes.plot(
            curve.hours, [100 * rate for rate in curve.rates], "o", color=colour, label=curve.name, zorder=3
        )
        hours = np.geomspace(min(curve.hours), curve.further, 50)
        axes.plot(hours, [100 * curve.at(h) for h in hours], "--", color=colour, linewidth=1)
        bounds = 100 * np.array([curve.interval(h) for h in hours])
        axes.fill_between(hours, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("hours of training speech")
    axes.set_ylabel("word error rate, %")
    legend_above(axes)
    return as_png(figure)


def _curve(name: str, rows: Sequence[Row]) -> Curve:
    hours = [float(row["facts"]["hours"]) for row in rows]
    errors, words = np.array([row["clips"] for row in rows], float).transpose(2, 0, 1)  # (heads, clips) each
    n = errors.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    rates = (errors @ weights.T) / (words @ weights.T).clip(min=1)  # (heads, RESAMPLES)
    slope, offset = _line(hours, np.array([[row["wer"]] for row in rows]))
    return Curve(
        name,
        tuple(hours),
        tuple(row["wer"] for row in rows),
        float(slope[0]),
        float(offset[0]),
        _line(hours, rates),
    )


def _line(hours: Sequence[float], rates: Floats) -> tuple[Floats, Floats]:
    """Slopes and offsets of the straight lines through logarithms; rates (heads, n)."""
    slopes, offsets = np.polyfit(np.log(hours), np.log(rates.clip(min=LEAST)), 1)
    return slopes, offsets


def _name(row: Row) -> str:
    facts = row["facts"]
    target = f", {facts['target_ms']:.0f} ms" if "target_ms" in facts else ""
    return f"{facts.get('base', '')} {row['policy']}{target}".strip()
