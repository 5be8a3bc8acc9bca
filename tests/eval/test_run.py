"""A run from audio files to a report with a scripted engine, interrupted and resumed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.datasets import TimedWord, Utterance
from eval.run import EvaluationError, evaluate
from streaming.events import Fault

WARM_UP = 1  # session


@pytest.fixture
def utterances(tmp_path: Path, record: Callable[[Path, list[int]], Path]) -> list[Utterance]:
    """WORDS are one, small, step, for, man; 0 is 300 ms of silence."""
    small = record(tmp_path / "small.flac", [1, 2, 3])
    man = record(tmp_path / "man.flac", [0, 4, 5])
    quiet = record(tmp_path / "quiet.flac", [0, 0])
    return [
        Utterance("small", small, "one small step", words=(TimedWord("one", None, 0.25),)),
        Utterance("man", man, "for a man"),
        Utterance("quiet", quiet, ""),
    ]


def test_one_pass_gives_both_texts(engine: Callable, utterances: list[Utterance], tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    scripted = engine()
    report = evaluate(scripted, utterances, out=tmp_path / "out", progress=lambda n, of: done.append((n, of)))
    assert scripted.opened == WARM_UP + len(utterances)
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [row["hypothesis"] for row in report.utterances] == ["one small step", "for man", ""]
    assert [row["final"] for row in report.utterances] == ["one small step", "for a man", ""]
    assert (report.summary["wer"], report.summary["final_wer"]) == (pytest.approx(1 / 6, abs=1e-6), 0)
    assert (
        report.summary["emission_delay_ms"]["p50"] == 50
    )  # "one" ends at 250, is shown with the chunk to 300
    assert report.summary["final_delay_ms"]["p50"] == 350  # and promised with the next one
    assert report.summary["audio_seconds"] == 2.4
    assert json.loads((tmp_path / "out/report.json").read_text()) == report.summary


def test_without_a_second_pass_its_error_rate_is_absent(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    report = evaluate(engine(), utterances, out=tmp_path / "out", final_pass="none")
    assert "final_wer" not in report.summary  # there was none: absent means not measured


def test_audio_arrives_in_chunks_and_ends_with_what_is_left(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    evaluate(engine(), utterances[:1], out=tmp_path / "out", chunk_ms=400)
    trace = json.loads((tmp_path / "out/traces.jsonl").read_text())
    assert [step["audio_ms"] for step in trace["steps"]] == [400, 800, 900, 900]


def test_an_interrupted_run_goes_on_where_it_stopped(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    breaks = engine(fails_at=WARM_UP + 3, fault=Fault("internal", "out of memory", True))
    with pytest.raises(EvaluationError, match="out of memory"):
        evaluate(breaks, utterances, out=out)
    assert not (out / "report.json").exists()
    with (out / "traces.jsonl").open("a") as log:
        log.write('{"id": "quiet", "aud')  # cut short by the interruption

    resumed = engine()
    report = evaluate(resumed, utterances, out=out)
    assert resumed.opened == WARM_UP + 1
    assert [row["id"] for row in report.utterances] == ["small", "man", "quiet"]
    expected = evaluate(engine(), utterances, out=whole)
    assert report.summary["edits"] == expected.summary["edits"]
    assert report.summary["emission_delay_ms"] == expected.summary["emission_delay_ms"]
    assert len((out / "traces.jsonl").read_text().splitlines()) == 3

    finished = engine()
    assert evaluate(finished, utterances, out=out) == report
    assert finished.opened == 0


def test_a_folder_with_another_run_is_refused_or_forgotten(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(engine(), utterances, out=out, chunk_ms=300)
    with pytest.raises(EvaluationError, match="chunk_ms 300 and not 600"):
        evaluate(engine(), utterances, out=out, chunk_ms=600)
    report = evaluate(engine(), utterances, out=out, chunk_ms=600, resume=False)
    assert report.summary["chunk_ms"] == 600
    assert len((out / "traces.jsonl").read_text().splitlines()) == 3


def test_traces_that_are_none_are_one_clear_line(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(engine(), utterances, out=out)
    (out / "traces.jsonl").write_text('{"id": "small"}\n')
    with pytest.raises(EvaluationError, match="not the traces of an evaluation"):
        evaluate(engine(), utterances, out=out)
