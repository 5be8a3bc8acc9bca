"""Learning curves: a power law is found again, and drawn only through heads that differ in their hours alone."""

from pathlib import Path

import pytest

from eval.lookahead import Row
from eval.lookahead_hours import curves, error_against_hours
from eval.lookahead_page import page

N_WORDS = 1000  # of a clip


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
