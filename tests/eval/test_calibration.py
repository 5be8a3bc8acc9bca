"""Whether confidences can be believed, and the constants that make them so."""

import json
from pathlib import Path

import numpy as np
import pytest

from asr.timing import RAW, Calibration
from eval import calibration
from eval.calibration import (
    CalibrationError,
    Outcome,
    expected_calibration_error,
    fit,
    fit_run,
    main,
    mapped,
    measure_run,
    outcomes,
    reliability,
    right_words,
    summarize,
    undone,
)


def observed(n: int, truth: Calibration, seed: int = 0) -> list[Outcome]:
    """Words of a model whose probabilities `truth` would make right."""
    generator = np.random.default_rng(seed)
    said = generator.beta(3, 1, n).clip(0.001, 0.999)
    return [Outcome(float(p), bool(generator.random() < truth(float(p)))) for p in said]


def test_words_are_right_where_the_alignment_pairs_them() -> None:
    assert right_words(["a", "b", "c"], ["a", "x", "c"]) == [True, False, True]
    assert right_words(["a", "b"], ["a", "a", "b"]).count(True) == 2
    assert right_words(["a", "b"], []) == []
    assert right_words([], ["a"]) == [False]


def test_spelling_and_punctuation_make_no_word_wrong() -> None:
    said = [("Twenty-five", 0.9), ("men,", 0.8), ("uh,", 0.1), ("Mr.", 0.7), ("Grey's", 0.6), ("...", 0.1)]
    found = outcomes("TWENTY FIVE MEN MISTER GRAY'S", said)
    assert found == [Outcome(p, True) for p in (0.9, 0.8, 0.7, 0.6)]
    assert outcomes("IT WAS FOUR", [("It", 0.9), ("wars", 0.4), ("4", 0.8)]) == [
        Outcome(0.9, True), Outcome(0.4, False), Outcome(0.8, True),
    ]  # fmt: skip


def test_bins_are_of_equal_mass_and_in_order() -> None:
    bins = reliability([Outcome(i / 100, i >= 50) for i in range(100)], n_bins=4)
    assert [one.n for one in bins] == [25] * 4
    assert [one.confidence for one in bins] == pytest.approx([0.12, 0.37, 0.62, 0.87])
    assert [one.accuracy for one in bins] == [0, 0, 1, 1]
    assert [one.n for one in reliability([Outcome(0.5, True)] * 2)] == [1, 1]


def test_the_error_is_how_far_confidence_is_from_accuracy() -> None:
    sure_and_right = [Outcome(1.0, True)] * 30
    assert expected_calibration_error(sure_and_right) == 0
    half_right = [Outcome(0.9, i % 2 == 0) for i in range(30)]
    assert expected_calibration_error(half_right) == pytest.approx(0.4)
    assert expected_calibration_error([*sure_and_right, *half_right], n_bins=2) == pytest.approx(0.2)
    found = summarize(half_right)
    assert found == {"ece": 0.4, "mean_confidence": 0.9, "accuracy": 0.5, "words": 30}
    assert summarize([]) is None


@pytest.mark.parametrize("truth", [RAW, Calibration(0.5, -0.5), Calibration(1.5, 0.8)])
def test_fitting_finds_the_constants(truth: Calibration) -> None:
    found = fit(observed(20_000, truth))
    assert (found.slope, found.offset) == pytest.approx((truth.slope, truth.offset), abs=0.1)
    held_out = observed(20_000, truth, seed=1)
    assert expected_calibration_error(mapped(held_out, found)) < 0.015
    if truth is not RAW:
        assert expected_calibration_error(held_out) > 0.04


def test_a_map_of_a_map_is_a_map_of_the_models_own() -> None:
    raw, first = observed(20_000, Calibration(0.5, -0.5)), Calibration(0.8, 0.3)
    direct, through = fit(raw), fit(mapped(raw, first), made_with=first)
    assert (through.slope, through.offset) == pytest.approx((direct.slope, direct.offset), abs=0.01)
    back = undone(mapped(raw, first), first)
    assert [one.confidence for one in back] == pytest.approx([one.confidence for one in raw])


def test_too_little_is_not_fitted_to() -> None:
    with pytest.raises(CalibrationError, match="299 words"):
        fit([Outcome(0.5, i % 2 == 0) for i in range(299)])
    with pytest.raises(CalibrationError, match="3 of them wrong"):
        fit([Outcome(0.9, i > 2) for i in range(500)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a model that is more sure of itself than it may be."""
    folder = tmp_path / "run"
    folder.mkdir()
    rows: list[dict[str, object]] = [{"id": "unknown", "words": [{"text": "eh", "confidence": 0.5}]}]
    many = observed(2_000, Calibration(0.5, -0.5))
    for i in range(0, len(many), 20):
        some = many[i : i + 20]
        reference = " ".join("right" if one.correct else "other" for one in some)
        words = [{"text": "Right,", "confidence": round(one.confidence, 4)} for one in some]
        rows.append({"id": str(i), "reference": reference, "words": words})
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": "tiny.en", "final_pass": "none", "wer": 0.3}
    (folder / "report.json").write_text(json.dumps(settings))
    return folder


def test_a_run_is_fitted(run: Path) -> None:
    found = fit_run(run)
    assert found["raw"]["words"] == 2_000
    assert found["fitted"]["slope"] == pytest.approx(0.5, abs=0.15)
    assert found["calibrated"]["ece"] < found["raw"]["ece"] / 2
    assert json.loads((run / "calibration.json").read_text()) == found
    assert (run / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_knows_what_it_was_made_with(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Putting in the constants that a run was fitted to, and fitting to it again, changes nothing."""
    before = fit_run(run)
    monkeypatch.setattr(calibration, "CALIBRATIONS", {("tiny.en", "none"): Calibration(**before["fitted"])})
    assert fit_run(run) == before
    (run / "calibration.json").unlink()
    assert fit_run(run)["fitted"] != before["fitted"]  # the run is taken to be made with the new constants


def test_the_error_goes_into_the_report(run: Path) -> None:
    measured = measure_run(run)
    report = json.loads((run / "report.json").read_text())
    assert report["wer"] == 0.3
    assert {"model": "tiny.en", "final_pass": "none", **report["calibration"]} == measured
    assert report["calibration"]["ece"] == pytest.approx(fit_run(run)["raw"]["ece"], abs=1e-3)


def test_the_command_says_what_to_put_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(run)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].strip()
    fitted = json.loads((run / "calibration.json").read_text())["fitted"]
    assert eval(f"{{{line}}}", {"Calibration": Calibration}) == {("tiny.en", "none"): Calibration(**fitted)}
    assert main(["measure", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == 2_000


@pytest.mark.parametrize("missing", ["report.json", "utterances.jsonl"])
def test_no_run_is_said_in_a_line(run: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / missing).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["measure", str(run)])
    assert stopped.value.code == 2
    assert "not a finished run" in capsys.readouterr().err.splitlines()[-1]
