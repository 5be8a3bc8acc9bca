"""Two reports against each other."""

import json
from pathlib import Path

import pytest

from eval.compare import compare
from eval.datasets import DatasetError


def write(folder: Path, errors: dict[str, int], **summary: object) -> Path:
    """A report of utterances of ten words with so many errors each."""
    folder.mkdir()
    report = folder / "report.json"
    report.write_text(json.dumps({"model": folder.name, "utterances": len(errors), **summary}))
    rows = [
        {
            "id": key,
            "reference": "x",
            "edits": {"hits": 10 - n, "substitutions": n, "deletions": 0, "insertions": 0},
        }
        for key, n in errors.items()
    ]
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return report


def test_the_better_one_is_told_with_its_probability(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a",
        {"1": 3, "2": 2, "3": 4, "only a": 9},
        emission_delay_ms={"p50": 400},
        schedule_latency_ms={"frames": {"mean": 81.4}},
    )
    b = write(
        tmp_path / "b",
        {"3": 2, "2": 1, "1": 1},
        emission_delay_ms={"p50": 350.4},
        schedule_latency_ms={"frames": {"mean": 69}},
    )
    table = compare(a, b)
    assert "3 common utterances; 1 more in A, 0 in B." in table
    # 9 errors in 30 words against 4; the differences are 2, 1 and 2 words of ten: 10 to 20 points
    assert "| WER, streaming text | 30.00% | 13.33% | -16.67 points | -20.00 to -10.00 | 100.0% |" in table
    assert "| Word shown after its end, median | 400 ms | 350 ms | -50 ms | | |" in table
    assert "| Latency of the schedule, mean of frames | 81 ms | 69 ms | -12 ms | | |" in table
    assert "finals" not in table


def test_a_report_against_itself_is_a_tie(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"1": 3, "2": 2})
    assert "| +0.00 points | +0.00 to +0.00 | 50.0% |" in compare(a, a)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {"1": 3}), write(tmp_path / "b", {"2": 3})
    with pytest.raises(DatasetError, match="no utterance in common"):
        compare(a, b)
    with pytest.raises(DatasetError, match="no report that can be read"):
        compare(a, tmp_path / "c" / "report.json")
    a.write_text(json.dumps({"utterances": 1, "sweep": {}}))
    with pytest.raises(DatasetError, match="no report of one setting"):
        compare(b, a)
    (tmp_path / "b" / "utterances.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"no utterances.jsonl beside it"):
        compare(b, b)
