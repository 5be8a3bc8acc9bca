"""Learning curves: a power law is found again, and drawn only through heads that differ in their hours alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.lookahead import Row
from eval.lookahead_hours import Training, curves, error_against_hours, losses_against_hours, main
from eval.lookahead_page import page

N_WORDS = 1000  # of a clip
N_STEPS = 300


def row_of(hours: float, rate: float, policy: str = "adaptive", **facts: object) -> Row:
    """Two clips, one twice as hard as the other."""
    latency = {"mean": 80.0, "p50": 80.0, "p90": 90.0, "max": 100.0}
    return {
        "model": f"runs/{policy}-{hours}h", "policy": policy, "facts": {"base": "tiny.en", "hours": hours, **facts},
        "wer": rate, "wer_ci": None, "latency_ms": latency, "emitting_latency_ms": None, "mean_span": [1.0],
        "clips": [[2 * rate * N_WORDS * share, N_WORDS] for share in (1 / 3, 2 / 3)],
    }  # fmt: skip


def falling(policy: str = "adaptive", **facts: object) -> list[Row]:
    return [row_of(hours, 0.8 * hours**-0.5, policy, **facts) for hours in (1.0, 4.0, 16.0)]


def test_a_power_law_is_found_and_drawn_on() -> None:
    [curve] = curves(falling(target_ms=320.0))
    assert curve.name == "tiny.en adaptive, 320 ms"
    assert curve.slope == pytest.approx(-0.5)
    assert curve.at(9.0) == pytest.approx(0.8 / 3)
    assert curve.further == 160
    low, high = curve.interval(160.0)
    assert low == pytest.approx(curve.at(160.0) * 2 / 3), "only the easy clip"
    assert high == pytest.approx(curve.at(160.0) * 4 / 3), "only the hard one"
    assert "to the power of -0.50." in str(curve)
    assert "160 h, 10 times the most, would give 6.3 % (4.2 to 8.4" in str(curve)


def test_only_like_heads_make_a_curve() -> None:
    assert curves(falling()[:2]) == []
    assert curves([*falling()[:2], row_of(4.0, 0.3)]) == [], "two amounts"
    assert curves([*falling("causal")[:2], row_of(9.0, 0.3, target_ms=80.0)]) == []
    assert curves(falling("shuffled")) == []
    without = [row | {"facts": {}} for row in falling()]
    assert curves(without) == []
    names = [curve.name for curve in curves([*falling(target_ms=80.0), *falling("causal")])]
    assert names == ["tiny.en adaptive, 80 ms", "tiny.en causal"]


def test_the_page_shows_curves_where_there_are_any(tmp_path: Path) -> None:
    header = {"clips": 2, "audio_seconds": 60.0, "left_out": 0}
    page({**header, "rows": falling()[:2]}).write(tmp_path)
    assert "What more speech is worth" not in (tmp_path / "report.md").read_text()
    page({**header, "rows": falling()}).write(tmp_path)
    said = (tmp_path / "report.md").read_text()
    assert str(curves(falling())[0]) in said
    picture = (tmp_path / "hours.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == error_against_hours(curves(falling()))
    assert picture != error_against_hours(curves([*falling(), *falling("causal")]))


def log_of(folder: Path, *, by_heart: float) -> Path:
    """Steps of half a minute, three passes through the data; what is learnt by heart shows when a pass begins."""
    noise = np.random.default_rng(0).normal(0, 0.02, N_STEPS)
    steps = [
        {"ctc": 2 - i / N_STEPS + one, "rnnt": 2 - by_heart * epoch + one, "seconds": 30.0, "epoch": epoch}
        for i, (epoch, one) in enumerate(zip(np.arange(N_STEPS) * 3 // N_STEPS, noise, strict=True))
    ]
    log = folder / f"{by_heart}.jsonl"
    log.write_text("\n".join(json.dumps(step, default=int) for step in steps))
    return log


def test_what_is_learnt_by_heart_shows_where_passes_begin(tmp_path: Path) -> None:
    training = Training.read(log_of(tmp_path, by_heart=0.25))
    assert training.hours[-1] == pytest.approx(N_STEPS / 120)
    assert training.begun.tolist() == [N_STEPS // 3, 2 * N_STEPS // 3]
    jumps, spread = training.jumps("RNN-T")
    assert jumps == pytest.approx(-0.5, abs=spread)
    jumps, spread = training.jumps("CTC")
    assert abs(jumps) < spread < 0.05, "a straight line has none"
    of_ctc, of_rnnt = str(training).splitlines()
    assert of_ctc.startswith("CTC: 1.95 nats a piece in the first tenth, 1.05 in the last.")
    assert "RNN-T: 2.00 nats" in of_rnnt and "are -0.5" in of_rnnt


def test_one_pass_has_no_jumps(tmp_path: Path) -> None:
    steps = [{"ctc": 2.0, "rnnt": 2.0 - i / 900, "seconds": 30.0, "epoch": 0} for i in range(N_STEPS)]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, steps)))
    assert Training.read(log).jumps("RNN-T") == (0, 0)


def test_losses_are_drawn_over_the_speech_that_was_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = log_of(tmp_path, by_heart=0.25), tmp_path / "learning-curve.png"
    assert main([str(log), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{Training.read(log)}\n"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.read_bytes() == losses_against_hours(Training.read(log))
    assert out.read_bytes() != losses_against_hours(Training.read(log_of(tmp_path, by_heart=0.5)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ('{"step": 1}\n' * 80, "no log of a transducer's training: 'seconds'"),
        ('{"seconds": 1.0, "epoch": 0, "ctc": 1.0, "rnnt": 1.0}', "has 1 steps: a curve needs 80"),
        ("losses", "Expecting value"),
    ],
)
def test_what_is_no_log_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    log = tmp_path / "log.jsonl"
    if content is not None:
        log.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main([str(log), "--out", str(tmp_path / "learning-curve.png")])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "learning-curve.png").exists()
