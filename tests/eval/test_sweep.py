"""Runs from audio files to reports with a scripted engine: interrupted, resumed, swept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.datasets import TimedWord, Utterance
from eval.jobs import STREAMING, Workshop
from eval.report import Report, write_json
from eval.run import EvaluationError
from eval.sweep import ALIGNMENT, Condition, Plan, conditions, evaluate, write_overview
from streaming.events import Fault
from streaming.session import SessionOptions

WARM_UP = 1  # session
STREAM = Condition(STREAMING, SessionOptions())
REST = STREAM.name.removeprefix("chunk300-")


@pytest.fixture
def utterances(tmp_path: Path, record: Callable[[Path, list[int]], Path]) -> list[Utterance]:
    """WORDS are one, small, step, for, man; 0 is 300 ms of silence."""
    small = record(tmp_path / "small.flac", [1, 2, 3])
    man = record(tmp_path / "man.flac", [0, 4, 5])
    quiet = record(tmp_path / "quiet.flac", [0, 0])
    return [
        Utterance("small", small, "one small step", words=(TimedWord("one", None, 0.25),)),
        Utterance("man", man, "for a man", words=()),
        Utterance("quiet", quiet, ""),
    ]


def run(
    scripted: Any, some: list[Utterance], out: Path, *, ask: list[Condition] | None = None, **how: Any
) -> Any:
    plan = Plan(some, ask or [STREAM], out, **how)
    return evaluate(plan, Workshop(lambda: scripted, "scripted", "scripted"))


def one(reports: dict[Condition, Report]) -> dict[str, Any]:
    [made] = reports.values()
    return made.summary


def test_from_files_to_numbers(engine: Callable, utterances: list[Utterance], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    scripted, out = engine(), tmp_path / "out"
    plan = Plan(utterances, [STREAM], out, policy="by hand")
    [made] = evaluate(
        plan, Workshop(lambda: scripted, "scripted", "scripted"), lambda n, of, _: told.append((n, of))
    ).values()
    assert scripted.opened == WARM_UP + len(utterances)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [row["hypothesis"] for row in made.utterances] == ["one small step", "for man", ""]
    assert [row["final"] for row in made.utterances] == ["one small step", "for a man", ""]
    summary = made.summary
    assert (summary["wer"], summary["final_wer"]) == (pytest.approx(1 / 6, abs=1e-6), 0)
    assert summary["emission_delay_ms"]["p50"] == 50  # "one" ends at 250, is shown with the chunk to 300
    assert summary["final_delay_ms"]["p50"] == 350  # and promised with the next one
    assert (summary["audio_seconds"], summary["policy"], summary["chunk_ms"]) == (2.4, "by hand", 300)
    assert summary["word_times"] == "the data (2)"
    assert json.loads((out / "report.json").read_text()) == summary


def test_without_a_second_pass_its_error_rate_is_absent(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    ask = conditions(final_pass="none")
    assert "final_wer" not in one(run(engine(), utterances, tmp_path / "out", ask=ask))


def test_an_interrupted_run_goes_on_where_it_stopped(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    breaks = engine(fails_at=WARM_UP + 3, fault=Fault("internal", "out of memory", True))
    with pytest.raises(EvaluationError, match="out of memory"):
        run(breaks, utterances, out)
    assert not (out / "report.json").exists()
    with (out / "traces.jsonl").open("a") as log:
        log.write('{"id": "quiet", "aud')  # cut short by the interruption

    resumed = engine()
    summary = one(run(resumed, utterances, out))
    assert resumed.opened == WARM_UP + 1
    expected = one(run(engine(), utterances, whole))
    assert {key: summary[key] for key in ("edits", "final_edits", "emission_delay_ms", "revision_rate")} == {
        key: expected[key] for key in ("edits", "final_edits", "emission_delay_ms", "revision_rate")
    }
    assert len((out / "traces.jsonl").read_text().splitlines()) == 3

    finished = engine()
    assert one(run(finished, utterances, out)) == summary
    assert finished.opened == 0


def test_a_folder_with_another_run_is_refused_or_forgotten(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out, other = tmp_path / "out", conditions(chunk_ms=[600])
    run(engine(), utterances, out)
    with pytest.raises(EvaluationError, match="chunk_ms 300 and not 600"):
        run(engine(), utterances, out, ask=other)
    with pytest.raises(EvaluationError, match="batch None and not 2"):
        run(engine(), utterances, out, batch=2)
    assert one(run(engine(), utterances, out, ask=other, resume=False))["chunk_ms"] == 600
    assert len((out / "traces.jsonl").read_text().splitlines()) == 3


def test_another_recording_of_the_same_name_is_recognised_anew(
    engine: Callable, utterances: list[Utterance], record: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = run(engine(), utterances, out)[STREAM]
    assert before.utterances[0]["hypothesis"] == "one small step"
    record(utterances[0].audio, [3, 2, 1])
    again = engine()
    after = run(again, utterances, out)[STREAM]
    assert again.opened == WARM_UP + 1
    assert after.utterances[0]["hypothesis"] == "step small one"
    assert after.utterances[1:] == before.utterances[1:]


def test_what_was_added_about_a_run_goes_when_the_run_changes(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out, added = tmp_path / "out", {"timestamps": {"start_mae_ms": 40.0}}
    for how in ({}, {"resume": False}):
        summary = one(run(engine(), utterances[:2], out, **how))
        assert "timestamps" not in summary
        write_json(out / "report.json", summary | added)
        assert one(run(engine(), utterances[:2], out))["timestamps"] == added["timestamps"]
    assert "timestamps" not in one(run(engine(), utterances, out))


def test_a_report_says_what_its_traces_were_measured_on(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    def threads(some: list[Utterance], n: int) -> int:
        plan = Plan(some, [STREAM], tmp_path / "out")
        [made] = evaluate(plan, Workshop(engine, "scripted", "scripted", n)).values()
        return int(made.summary["machine"]["threads"])

    assert threads(utterances[:1], 1) == 1
    assert threads(utterances[:1], 2) == 1  # nothing was left to do
    assert threads(utterances, 2) == 2


def test_traces_that_are_none_are_one_clear_line(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(engine(), utterances, out)
    for wrong in ('{"id": "small"}\n', "[1]\n", "what?\n"):
        (out / "traces.jsonl").write_text(wrong)
        with pytest.raises(
            EvaluationError, match=r"not (the traces of an evaluation|what an evaluation wrote)"
        ):
            run(engine(), utterances, out)
    (out / "run.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"run\.json: not what an evaluation wrote"):
        run(engine(), utterances, out)


def test_a_batch_gives_the_same_words_and_no_compute(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    alone = one(run(engine(), utterances, tmp_path / "alone"))
    batched = one(run(engine(), utterances, tmp_path / "batched", batch=2))
    same = ("edits", "final_edits", "emission_delay_ms", "final_delay_ms", "rwer", "revision_rate")
    assert {key: batched[key] for key in same} == {key: alone[key] for key in same}
    assert not batched.keys() & {
        "rtf",
        "cpu_per_audio_second",
        "chunk_compute_ms",
        "computation_aware",
        "arwer",
    }


def test_references_without_times_are_aligned_once(
    engine: Callable, utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned: list[str] = []

    def align(decoder: object, samples: object, text: str) -> tuple[TimedWord, ...]:
        aligned.append(text)
        return tuple(TimedWord(word, 0.3 * i, 0.3 * i + 0.2) for i, word in enumerate(text.split()))

    monkeypatch.setattr("eval.sweep.align", align)
    bare = [Utterance(one.id, one.audio, one.text) for one in utterances]

    def go(some: list[Utterance]) -> dict[str, Any]:
        workshop, scripted = Workshop(engine, "scripted", "scripted"), object()
        workshop.decoder = scripted  # type: ignore[assignment]
        [made] = evaluate(Plan(some, [STREAM], tmp_path / "out"), workshop).values()
        return made.summary

    summary = go(bare)
    assert aligned == ["one small step", "for a man"]  # nothing is said in the third
    assert summary["word_times"] == "the reference aligned by scripted (2)"
    # "small" ends at 200, is shown at 300, and so on; "for" ends at 200, and is shown at 600, "man" at 800 and 900.
    assert summary["emission_delay_ms"]["p50"] == 100
    assert go(bare) == summary
    assert len(aligned) == 2
    go([Utterance("small", bare[0].audio, "one big step"), *bare[1:]])
    assert aligned[2:] == ["one big step"]
    assert len((tmp_path / "out" / ALIGNMENT).read_text().splitlines()) == 3


def test_a_sweep_has_a_folder_for_each_setting_and_its_baselines(
    engine: Callable, utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = conditions(chunk_ms=[300, 600], baselines=["offline", "local-agreement"])
    assert [one.name for one in ask] == [
        f"chunk300-{REST}",
        f"chunk600-{REST}",
        "offline",
        "local-agreement-chunk300",
        "local-agreement-chunk600",
    ]
    monkeypatch.setattr("eval.jobs.Workshop._baseline", lambda self, system: engine())
    out = tmp_path / "out"
    reports = run(engine(), utterances, out, ask=ask)
    write_overview(out, reports)
    overview = json.loads((out / "report.json").read_text())
    assert list(overview["sweep"]) == [f"chunk300-{REST}", f"chunk600-{REST}"]
    assert list(overview["baselines"]) == ["offline", "local-agreement-chunk300", "local-agreement-chunk600"]
    assert set(overview["sweep"][f"chunk600-{REST}"]["compute_ratio"]) == {"offline", "local-agreement"}
    assert "final_wer" not in overview["baselines"]["offline"]
    for condition in ask:
        assert (out / condition.name / "utterances.jsonl").exists()


def test_one_setting_and_its_baselines(
    engine: Callable, utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.jobs.Workshop._baseline", lambda self, system: engine())
    reports = run(engine(), utterances, tmp_path, ask=conditions(baselines=["offline"]))
    write_overview(tmp_path, reports)
    overview = json.loads((tmp_path / "report.json").read_text())
    assert overview["wer"] == overview["baselines"]["offline"]["wer"]  # they are the same engine here
    assert (tmp_path / "offline" / "traces.jsonl").exists()


def test_lists_of_settings_are_combined() -> None:
    names = [one.name for one in conditions(chunk_ms=[100, 300], beam=[1, 4], delay_ms=[0, 200])]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "chunk100-beam1-delay0"
    assert names[-1] == "chunk300-beam4-delay200"
    names = [one.name for one in conditions(pause_ms=[300, 700])]
    assert names == ["chunk300-beam1-delay160-pause300", "chunk300-beam1-delay160"]


def test_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match="no baseline is called 'whisper'"):
        conditions(baselines=["whisper"])
    with pytest.raises(ValueError, match="chunk_ms must be"):
        conditions(chunk_ms=[310])
