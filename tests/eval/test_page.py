"""Reports for people: what stands in them, and that a picture is one."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from eval.datasets import TimedWord, Utterance
from eval.document import Table
from eval.jobs import STREAMING
from eval.page import headline, page
from eval.plots import entries
from eval.report import Report, report
from eval.sweep import Condition, conditions
from eval.trace import Step, Trace
from streaming.events import Final, Partial

MACHINE = {"cpu": "abacus <3>", "threads": 1, "device": "cpu", "jobs": 1}
PNG = b"\x89PNG\r\n\x1a\n"


def made(condition: Condition, *, compute_s: float = 0.03, late_ms: float = 300) -> Report:
    """Two utterances of which one word is wrong."""
    recognised = []
    for name, shown in (("1", "the cap"), ("2", "a | dog")):
        final = Final(0, shown, (), 0, 600, 600)
        steps = (Step(late_ms, compute_s, (Partial(0, shown, 0, 300),)), Step(600, compute_s, (final,)))
        text = {"1": "the cat", "2": "a dog"}[name]
        words = tuple(TimedWord(word, 0.1 * i, 0.1 * i + 0.1) for i, word in enumerate(text.split()))
        utterance = Utterance(name, Path(name), text, speaker=f"speaker {name}", words=words)
        recognised.append((utterance, Trace(name, 0.6, steps)))
    return report(condition.settings("tiny.en", "by hand"), recognised, MACHINE)


def sweep(chunks: Sequence[int] = (300,), baselines: Sequence[str] = ()) -> dict[Condition, Report]:
    return {
        one: made(one, late_ms=one.options.chunk_ms)
        for one in conditions(chunk_ms=chunks, baselines=baselines)
    }


def test_the_headline_comes_first_and_the_pictures_before_the_details() -> None:
    text = page(entries(sweep(baselines=["offline", "local-agreement"]))).as_markdown()
    lines = text.splitlines()
    assert lines[0] == "# tiny.en, chunks of 300 ms"
    assert "|  | WER, streaming text | WER, finals | shown after, median / 95 % |" in text
    assert "| asr-stream, 300 ms | 25.0% (0.0 to 50.0) | 25.0% (0.0 to 50.0) | 200 / 200 ms" in text
    assert "| LocalAgreement-2 | 25.0% (0.0 to 50.0) |  | 200 / 200 ms" in text
    order = [
        text.index(part)
        for part in ("| offline |", "wer_against_delay.png", "## Details", "| 1 | 1 | the cat |")
    ]
    assert order == sorted(order)
    assert "| speaker 1 | 1 | 2 | 50.0% | 50.0% |" in text


def test_a_schedule_is_told_where_there_is_one() -> None:
    reports = sweep(baselines=["offline"])
    assert "schedule" not in page(entries(reports)).as_markdown().split("## What the numbers mean")[0]
    latency = {"mean": 69.4, "p50": 52.5, "p90": 172.5, "max": 572.5}
    next(iter(reports.values())).summary["schedule_latency_ms"] = {"frames": latency}
    text = page(entries(reports)).as_markdown()
    assert "schedule, mean / 90 %" in headline(entries(reports)).head
    assert "| 69 / 172 ms |" in text
    assert "| schedule, all frames, ms | mean 69, median 52, 90 % 172, max 572 |" in text


def test_all_files_and_the_page_of_its_own(tmp_path: Path) -> None:
    written = page(entries(sweep([100, 300, 500, 1000], ["local-agreement"])))
    written.write(tmp_path)
    pictures = {"compute.png", "delays.png", "wer_against_delay.png", "withdrawn.png"}
    assert {path.name for path in tmp_path.iterdir()} == {*pictures, "report.html", "report.md"}
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in pictures)
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)  # nothing is fetched
    assert html.escape(MACHINE["cpu"]) in text  # type: ignore[arg-type]
    for label in ("100 ms", "1000 ms", "LocalAgreement-2, 500 ms"):
        assert f"<td>{label}</td>" in text


def test_what_was_not_measured_is_neither_in_a_table_nor_in_a_picture() -> None:
    condition = Condition(STREAMING, conditions()[0].options)
    measured = made(condition, compute_s=math.nan)
    bare = replace(
        measured, measured=[replace(one, ends_ms=[None] * len(one.shown)) for one in measured.measured]
    )
    text = page(entries({condition: bare})).as_markdown()
    assert "compute was not measured" in text
    assert not re.search(
        r"with compute|compute / audio |compute.png|wer_against_delay.png|nan", text.split("## What")[0]
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_figures_of_processes_side_by_side_say_so(jobs: int) -> None:
    condition = conditions()[0]
    summary = made(condition).summary
    crowded = Report({**summary, "machine": {**MACHINE, "jobs": jobs}}, made(condition).measured)
    assert ("upper bounds" in page(entries({condition: crowded})).as_markdown()) == (jobs == 2)


def test_a_column_that_nobody_has_is_left_out() -> None:
    table = headline(entries({conditions()[0]: made(conditions()[0], compute_s=math.nan)}))
    assert isinstance(table, Table)
    assert "with compute" not in table.head
    assert all(len(row) == len(table.head) for row in table.rows)
