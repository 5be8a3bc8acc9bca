"""Whether a confidence can be believed: of the words that come with 0.8, four of five should be right.

    asr-stream eval train.jsonl --limit 150 --out runs/fit        # of data that nothing else is measured on
    python -m eval.calibration fit runs/fit                       # constants for asr/timing.py
    python -m eval.calibration measure runs/eval                  # how far off the confidences of a run are

A word is right where the alignment of fewest edits pairs it with an equal word of the reference.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.timing import CALIBRATIONS, RAW, Calibration, log_odds
from eval.report import write_json
from eval.wer import matching_words, normalize, word_key

BINS = 15
FEWEST_WORDS, FEWEST_ERRORS = 300, 10  # to fit two constants to
ROUNDS = 50  # of Newton's method, which needs about six


class CalibrationError(ValueError):
    """A run that cannot be used; the message is one line and says what to do."""


@dataclass(frozen=True)
class Outcome:
    """A word of a final: what was promised, and what was so."""

    confidence: float  # 0..1
    correct: bool


@dataclass(frozen=True)
class Bin:
    """Words of similar confidence."""

    confidence: float  # mean
    accuracy: float
    n: int


def outcomes(reference: str, words: Sequence[tuple[str, float]]) -> list[Outcome]:
    """The outcome of each (text, confidence) but fillers and bare punctuation, which no error rate counts."""
    said = [(text, confidence) for text, confidence in words if word_key(text)]
    right = right_words([word for word in reference.split() if word_key(word)], [text for text, _ in said])
    return [Outcome(confidence, correct) for (_, confidence), correct in zip(said, right, strict=True)]


def right_words(reference: Sequence[str], said: Sequence[str]) -> list[bool]:
    """For each word that was said, whether it was meant.

    Words that match one by one are right, normalized; so are those of a stretch between matches that reads the same
    once it is normalized as a whole ("twenty five", "25").
    """
    right = [False] * len(said)
    pairs = matching_words([word_key(word) for word in reference], [word_key(word) for word in said])
    for (i, j), (next_i, next_j) in pairwise([(-1, -1), *pairs, (len(reference), len(said))]):
        if j >= 0:
            right[j] = True
        meant, heard = reference[i + 1 : next_i], said[j + 1 : next_j]
        if heard and normalize(" ".join(meant)) == normalize(" ".join(heard)):
            right[j + 1 : next_j] = [True] * len(heard)
    return right


def reliability(observed: Sequence[Outcome], n_bins: int = BINS) -> list[Bin]:
    """The words by confidence in bins of equal mass, as far as their number divides; no bin is empty."""
    ordered = sorted(observed, key=lambda one: one.confidence)
    parts = np.array_split(np.arange(len(ordered)), min(n_bins, max(1, len(ordered))))
    return [
        Bin(
            float(np.mean([ordered[i].confidence for i in part])),
            float(np.mean([ordered[i].correct for i in part])),
            len(part),
        )
        for part in parts
        if len(part)
    ]


def expected_calibration_error(observed: Sequence[Outcome], n_bins: int = BINS) -> float:
    """The mean distance of a bin's confidence from its accuracy, by words; 0 is best.

    Bins of equal mass: Nixon et al., "Measuring Calibration in Deep Learning", CVPR Workshops 2019.
    """
    bins = reliability(observed, n_bins)
    return sum(abs(one.confidence - one.accuracy) * one.n for one in bins) / max(1, len(observed))


def summarize(observed: Sequence[Outcome]) -> dict[str, Any] | None:
    """`calibration` of report.json; None of no words."""
    if not observed:
        return None
    return {
        "ece": round(expected_calibration_error(observed), 4),
        "mean_confidence": round(float(np.mean([one.confidence for one in observed])), 4),
        "accuracy": round(float(np.mean([one.correct for one in observed])), 4),
        "words": len(observed),
    }


def fit(observed: Sequence[Outcome], made_with: Calibration = RAW) -> Calibration:
    """The map from the model's probabilities to believable ones, by maximum likelihood.

    Platt, "Probabilistic Outputs for Support Vector Machines", 1999, over log-odds, with his smoothed targets. A map
    of a map is again one: what `made_with` had done to the confidences is taken into the result.
    """
    correct = np.array([one.correct for one in observed])
    n_right, n_wrong = int(correct.sum()), int((~correct).sum())
    if len(observed) < FEWEST_WORDS or min(n_right, n_wrong) < FEWEST_ERRORS:
        raise CalibrationError(
            f"{len(observed)} words, {n_wrong} of them wrong, are too few to fit to: "
            f"{FEWEST_WORDS} words and {FEWEST_ERRORS} errors are needed; recognise more clips"
        )
    target = np.where(correct, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    x = np.array([[log_odds(one.confidence), 1.0] for one in observed])
    beta: NDArray[np.float64] = np.array([1.0, 0.0])
    for _ in range(ROUNDS):
        predicted = 1 / (1 + np.exp(-x @ beta))
        slopes = predicted * (1 - predicted)
        hessian = (x * slopes[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (target - predicted))
        beta = beta + step * min(
            1.0, 1 / float(np.abs(step).max())
        )  # far from the best a full step overshoots
        if np.abs(step).max() < 1e-8:
            break
    slope, offset = map(float, beta)
    return Calibration(round(slope * made_with.slope, 4), round(slope * made_with.offset + offset, 4))


def undone(observed: Iterable[Outcome], made_with: Calibration) -> list[Outcome]:
    """The outcomes with the model's own probabilities, before `made_with`."""
    back = Calibration(1 / made_with.slope, -made_with.offset / made_with.slope)
    return [Outcome(back(one.confidence), one.correct) for one in observed]


def mapped(observed: Iterable[Outcome], calibration: Calibration) -> list[Outcome]:
    return [Outcome(calibration(one.confidence), one.correct) for one in observed]


def draw(series: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """The reliability diagram of each named series of outcomes, as a PNG; `path` is whole or not at all."""
    from matplotlib.figure import Figure  # a second of import that only a picture needs

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for name, observed in series.items():
        bins = reliability(observed)
        label = f"{name}: ECE {expected_calibration_error(observed):.3f}, {len(observed)} words"
        axes.plot([one.confidence for one in bins], [one.accuracy for one in bins], marker="o", label=label)
    axes.set(xlabel="confidence", ylabel="part of the words that are right", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    draft = path.with_name(f"{path.name}.part")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)


def outcomes_of_run(run: Path) -> list[Outcome]:
    """The outcomes of all finals with a reference in the folder that `asr-stream eval` wrote.

    Raises CalibrationError where it is no such folder, or without a complete run.
    """
    try:
        lines = (run / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row.get("reference") is not None]
        said = [[(word["text"], float(word["confidence"])) for word in row["words"]] for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{run}: not a finished run of `asr-stream eval`: {error}") from error
    found = [one for row, words in zip(rows, said, strict=True) for one in outcomes(row["reference"], words)]
    if not found:
        raise CalibrationError(f"{run}: no words with a transcript to compare them with")
    return found


def fit_run(run: Path) -> dict[str, Any]:
    """Fits the constants of a run's model and pass; writes calibration.json and reliability.png beside it.

    A run knows the constants that it was made with from its first fit on, so that asr/timing.py may change since.
    """
    report, written = _report(run), run / "calibration.json"
    key = (str(report["model"]), str(report["final_pass"]))
    if written.is_file():
        made_with = Calibration(**json.loads(written.read_text(encoding="utf-8"))["made_with"])
    else:
        made_with = CALIBRATIONS.get(key, RAW)
    observed = outcomes_of_run(run)
    fitted = fit(observed, made_with)
    raw = undone(observed, made_with)
    better = mapped(raw, fitted)
    found = {
        "model": key[0],
        "final_pass": key[1],
        "made_with": asdict(made_with),
        "fitted": asdict(fitted),
        "raw": summarize(raw),
        "calibrated": summarize(better),
    }
    write_json(written, found)
    draw({"the model's own": raw, "calibrated": better}, run / "reliability.png")
    return found


def measure_run(run: Path) -> dict[str, Any]:
    """Puts `calibration` into a run's report.json, and reliability.png beside it."""
    report, observed = _report(run), outcomes_of_run(run)
    report["calibration"] = summarize(observed)
    write_json(run / "report.json", report)
    draw({f"{report['model']}, {report['final_pass']}": observed}, run / "reliability.png")
    return {"model": report["model"], "final_pass": report["final_pass"], **report["calibration"]}


def _report(run: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
        report["model"], report["final_pass"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{run}: not a finished run of `asr-stream eval`: {error}") from error
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.calibration`; the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.calibration", description="Can the confidences of words be believed?"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("fit", "find the constants of asr/timing.py from a run over data that nothing is measured on"),
        ("measure", "put the expected calibration error of a run into its report.json"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("run", type=Path, help="folder that `asr-stream eval` wrote")
    given = parser.parse_args(arguments)
    try:
        found = fit_run(given.run) if given.command == "fit" else measure_run(given.run)
    except CalibrationError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=1))
    if given.command == "fit":
        constants = Calibration(**found["fitted"])
        print("\nin asr/timing.py, CALIBRATIONS:")
        print(f'    ("{found["model"]}", "{found["final_pass"]}"): {constants},')
    return 0


if __name__ == "__main__":
    sys.exit(main())
