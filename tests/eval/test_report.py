"""The report: stable keys, absent where nothing was measured, numbers worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr.transducer.schedule import Waits
from eval.datasets import TimedWord, Utterance
from eval.report import kept_entries, report, write_atomically, write_json
from eval.trace import Step, Trace
from streaming.events import Final, Partial, Word

SETTINGS = {"model": "scripted", "policy": None, "chunk_ms": 300, "final_pass": "full"}
MACHINE = {"cpu": "abacus", "threads": 1, "device": "cpu"}


def recognised(utterance_id: str, shown: str, final: str, **known: Any) -> tuple[Utterance, Trace]:
    """600 ms of audio; `shown` comes with the first chunk and promised with the flush."""
    words = tuple(Word(word, 0, 100, 0.9) for word in final.split())
    steps = (
        Step(300, 0.03, (Partial(0, shown, 0, 300),)),
        Step(600, 0.01, ()),
        Step(600, 0.02, (Partial(0, shown, len(shown), 600), Final(0, final, words, 0, 600, 600))),
    )
    return Utterance(utterance_id, Path(f"{utterance_id}.wav"), **known), Trace(utterance_id, 0.6, steps)


ANN = recognised(
    "1",
    "the cap",
    "The cat.",
    text="the cat",
    speaker="ann",
    corpus="pets",
    words=(TimedWord("the", 0.1, 0.2),),
)
BOB = recognised("2", "dog", "Dog.", text="a dog", speaker="bob", corpus="pets")
UNKNOWN = recognised("3", "hm well", "well")


def test_the_latency_of_a_schedule_is_of_all_clips_or_absent() -> None:
    """Frames of 40 ms, which the front end's 12.5 ms come upon."""

    def waiting(one: tuple[Utterance, Trace], *waits: tuple[int, ...]) -> tuple[Utterance, Trace]:
        return one[0], replace(one[1], waits=Waits(*waits))

    clips = [waiting(ANN, (6, 0, 2), (0, 0, 1)), waiting(BOB, (1, 1, 0), (0, 0, 0))]
    silent = replace(UNKNOWN[1], steps=())  # no window was opened, so nothing waited
    summary = report(SETTINGS, [*clips, (UNKNOWN[0], silent)], MACHINE).summary
    assert summary["schedule_latency_ms"] == {
        "frames": {"mean": 32.5, "p50": 12.5, "p90": 92.5, "max": 92.5},
        "emitting": {"mean": 92.5, "p50": 92.5, "p90": 92.5, "max": 92.5},
    }
    assert "emitting" not in report(SETTINGS, clips[1:], MACHINE).summary["schedule_latency_ms"]
    for unknown in ([*clips, UNKNOWN], [ANN, BOB]):
        assert "schedule_latency_ms" not in report(SETTINGS, unknown, MACHINE).summary


def test_every_key_and_number_of_the_report() -> None:
    summary = report(SETTINGS, [ANN, BOB, UNKNOWN], MACHINE).summary
    versions = summary.pop("versions")
    assert {"python", "torch", "jiwer"} <= versions.keys()
    low, high = summary.pop("wer_ci")
    assert low == high == 0.5  # each of the two has one error in two words
    assert summary.pop("final_wer_ci") == [0.0, 0.5]
    # "the" ends at 200 ms and is shown at 300 (compute 30), promised at 600: 600 + 10 + 20 of compute
    assert summary == {
        "model": "scripted",
        "chunk_ms": 300,
        "final_pass": "full",
        "utterances": 3,
        "audio_seconds": 1.8,
        "wer": 0.5,
        "edits": {"hits": 2, "substitutions": 1, "deletions": 1, "insertions": 0, "reference_words": 4},
        "final_wer": 0.25,
        "final_edits": {"hits": 3, "substitutions": 0, "deletions": 1, "insertions": 0, "reference_words": 4},
        "rwer": 1.0,  # at 300 and 600 ms "the" has begun and "the cap" is shown: an insertion each
        "arwer": 1.0,
        "rtf": 0.1,
        "chunk_compute_ms": {"p50": 20.0, "p95": 30.0, "max": 30.0},  # 30, 10, 30, 10, 30, 10
        "finish_compute_ms": {"p50": 20.0, "p95": 20.0, "max": 20.0},
        "emission_delay_ms": {"p50": 100.0, "p90": 100.0, "p95": 100.0},
        "final_delay_ms": {"p50": 400.0, "p95": 400.0},
        "first_word_ms": {"p50": 100.0, "p95": 100.0},
        "computation_aware": {
            "emission_delay_ms": {"p50": 130.0, "p90": 130.0, "p95": 130.0},
            "final_delay_ms": {"p50": 430.0, "p95": 430.0},
            "first_word_ms": {"p50": 130.0, "p95": 130.0},
        },
        "revision_rate": 0.0,
        "groups": {
            "corpus": {"pets": {"utterances": 2, "reference_words": 4, "wer": 0.5, "final_wer": 0.25}},
            "speaker": {
                "ann": {"utterances": 1, "reference_words": 2, "wer": 0.5, "final_wer": 0.0},
                "bob": {"utterances": 1, "reference_words": 2, "wer": 0.5, "final_wer": 0.5},
            },
        },
        "machine": MACHINE,
    }


def test_what_was_not_measured_is_absent() -> None:
    summary = report(SETTINGS, [UNKNOWN], MACHINE).summary
    assert not summary.keys() & {
        "wer",
        "wer_ci",
        "edits",
        "final_wer",
        "emission_delay_ms",
        "groups",
        "policy",
    }
    assert not summary.keys() & {"computation_aware", "rwer", "timestamps"}
    assert summary["revision_rate"] == 0  # measured


def test_silence_that_stays_silent_has_edits_but_no_rate() -> None:
    noise = Utterance("noise", Path("noise.wav"), "")
    summary = report(SETTINGS, [(noise, Trace("noise", 0.3, (Step(300, 0.01, ()),)))], MACHINE).summary
    assert summary["edits"]["insertions"] == 0
    assert not summary.keys() & {"wer", "revision_rate"}


def test_each_utterance_has_its_words_and_when_they_came() -> None:
    [row] = report(SETTINGS, [ANN], MACHINE).utterances
    assert (row["reference"], row["hypothesis"], row["final"]) == ("the cat", "the cap", "The cat.")
    assert row["shown"][0] == {
        "text": "the",
        "first_shown_ms": 300,
        "first_shown_clock_ms": 330,
        "final_at_ms": 600,
        "final_at_clock_ms": 630,
        "spoken_end_ms": 200,
    }
    assert "spoken_end_ms" not in row["shown"][1]
    assert row["words"][0] == {"text": "The", "start_ms": 0, "end_ms": 100, "confidence": 0.9}


def test_both_files(tmp_path: Path) -> None:
    made = report(SETTINGS, [ANN, BOB], MACHINE)
    made.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == made.summary
    lines = (tmp_path / "utterances.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "utterances.jsonl"]


def test_times_that_were_not_measured_are_absent_everywhere() -> None:
    utterance, trace = ANN
    steps = tuple(replace(step, compute_s=math.nan) for step in trace.steps)
    made = report(SETTINGS, [(utterance, replace(trace, steps=steps))], MACHINE)
    assert not made.summary.keys() & {"rtf", "chunk_compute_ms", "arwer", "computation_aware"}
    assert made.summary["emission_delay_ms"]["p50"] == 100
    assert made.summary["rwer"] == 1
    json.dumps([made.summary, *made.utterances], allow_nan=False)


def test_what_other_measurements_added_to_a_report_is_kept(tmp_path: Path) -> None:
    assert kept_entries(tmp_path) == {}
    write_json(tmp_path / "report.json", {"wer": 0.5, "timestamps": {"start_mae_ms": 40}})
    assert kept_entries(tmp_path) == {"timestamps": {"start_mae_ms": 40}}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
