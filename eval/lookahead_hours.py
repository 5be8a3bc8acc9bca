"""What more training is worth: error rates of like heads over hours of speech, with the power law through them, and
a run's losses over the speech that it has heard, with what of their fall was learnt by heart:

    python -m eval.lookahead_hours RUN/trunk/log.jsonl --out learning-curve.png
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from eval.lookahead import SHUFFLED, Row
from eval.plots import COLOURS, FAINT, INK, as_png, blank_canvas, legend_above
from eval.report import write_atomically

FEWEST = 3  # amounts of speech through which a line is drawn
FURTHER = 10  # times the most hours, to which it is drawn on
RESAMPLES = 2_000
LEAST = 1e-4  # error rate that a logarithm is taken of
LOSSES = {"ctc": "CTC", "rnnt": "RNN-T"}  # as `train ancat` logs them, in nats per piece
MEANS = 40  # points of a curve, each the mean of as many steps

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


@dataclass(frozen=True)
class Training:
    """One stage of `asr-stream train ancat`, step by step."""

    hours: Floats  # (n,) of speech heard so far
    passes: NDArray[np.int64]  # (n,) through the data, from 0
    losses: dict[str, Floats]  # (n,) nats per piece

    @classmethod
    def read(cls, log: Path) -> Self:
        """Of its `log.jsonl`.

        Raises:
            OSError, ValueError: there is none, or not as that writes it, or hardly begun.
        """
        steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if len(steps) < 2 * MEANS:
            raise ValueError(f"{log} has {len(steps)} steps: a curve needs {2 * MEANS}")
        try:
            hours = np.cumsum([step["seconds"] for step in steps]) / 3600
            passes = np.array([step["epoch"] for step in steps])
            losses = {label: np.array([step[key] for step in steps], float) for key, label in LOSSES.items()}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{log} is no log of a transducer's training: {error}") from error
        return cls(hours, passes, losses)

    @property
    def begun(self) -> NDArray[np.int64]:
        """The first step of each pass but the first."""
        return np.flatnonzero(np.diff(self.passes)) + 1

    def jumps(self, label: str) -> tuple[float, float]:
        """By how much a loss jumped where passes begin, all jumps together, and half of the 95 % interval.

        Least squares of a straight line over hours that may jump there. Within a pass every clip comes once, and
        what was learnt of the others has to serve; when the next one begins, what was learnt by heart comes back.
        """
        at_once = (np.arange(len(self.hours)) >= self.begun[:, None]).T
        design = np.column_stack([np.ones_like(self.hours), self.hours, at_once])
        fitted, *_ = np.linalg.lstsq(design, self.losses[label])
        noise = (self.losses[label] - design @ fitted).var()
        spread = np.linalg.inv(design.T @ design)[2:, 2:].sum() * noise
        return float(fitted[2:].sum()), float(1.96 * spread**0.5)

    def __str__(self) -> str:
        said = []
        for label, values in self.losses.items():
            tenths = [part.mean() for part in np.array_split(values, 10)]
            jumps, spread = self.jumps(label)
            said.append(
                f"{label}: {tenths[0]:.2f} nats a piece in the first tenth, {tenths[-1]:.2f} in the last. "
                f"Jumps where passes begin, learnt by heart, are {jumps:+.2f} of it ({jumps - spread:+.2f} to "
                f"{jumps + spread:+.2f}, 95 %)."
            )
        return "\n".join(said)


def losses_against_hours(training: Training) -> bytes:
    """Losses in training over hours of speech heard, PNG: means of a fortieth of the run, 95 % of such means, and a
    line where a new pass through the data begins."""
    figure, axes = blank_canvas(6.0, 3.4)
    at = [part.mean() for part in np.array_split(training.hours, MEANS)]
    for (label, values), colour in zip(training.losses.items(), COLOURS, strict=False):
        parts = np.array_split(values, MEANS)
        mean = np.array([part.mean() for part in parts])
        spread = np.array([1.96 * part.std(ddof=1) / len(part) ** 0.5 for part in parts])
        axes.plot(at, mean, color=colour, label=label, zorder=3)
        axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    for number, hours in enumerate(training.hours[training.begun], 2):
        axes.axvline(hours, color=INK, linewidth=0.8, linestyle=":", zorder=2)
        axes.annotate(f"pass {number}", (hours, 1), (3, -9), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=7, color=INK, backgroundcolor=FAINT)  # fmt: skip
    axes.set_xlim(0, training.hours[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hours of speech heard in this stage")
    axes.set_ylabel("loss in training, nats per piece")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.lookahead_hours`; the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.lookahead_hours",
        description="Losses over the speech that a training run has heard.",
    )
    parser.add_argument("log", type=Path, help="log.jsonl of a stage of `asr-stream train ancat`")
    parser.add_argument("--out", type=Path, required=True, help="the picture, PNG")
    given = parser.parse_args(arguments)
    try:
        training = Training.read(given.log)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_atomically(given.out, losses_against_hours(training))
    print(training)
    return 0


if __name__ == "__main__":
    sys.exit(main())
