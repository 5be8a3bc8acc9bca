"""Clips joined in one session of the scripted engine, which says a word for each 300 ms by their loudness."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from asr.audio import SAMPLE_RATE, read_audio
from eval.datasets import DatasetError, Utterance
from eval.longform import PAUSES_S, ROOM_NOISE, TENTHS, LongForm, join, measure, room_noise
from eval.run import EvaluationError
from streaming.events import Fault
from streaming.session import SessionOptions

WARM_UP = 1  # session
OPTIONS = SessionOptions(chunk_ms=300)
WHOLE_CHUNKS = (0.3, 0.3)  # pauses that keep words and chunks together


@pytest.fixture
def utterances(tmp_path: Path, record: Callable[[Path, list[int]], Path]) -> list[Utterance]:
    """WORDS are one, small, step, for, man: 0.9 s and 0.6 s."""
    return [
        Utterance("small", record(tmp_path / "small.flac", [1, 2, 3]), "one small step"),
        Utterance("man", record(tmp_path / "man.flac", [4, 5]), "for a man"),
    ]


def test_pauses_are_faint_noise_between_whole_clips(utterances: list[Utterance]) -> None:
    pieces = list(join(utterances, minutes=0.1, seed=1))
    again = list(join(utterances, minutes=0.1, seed=1))
    assert [one.id for one, _ in pieces[:3]] == ["small", "man", "small"]
    seconds = [len(samples) / SAMPLE_RATE for _, samples in pieces]
    assert sum(seconds[:-1]) < 6 <= sum(seconds)
    for (one, samples), (_, same) in zip(pieces, again, strict=True):
        clip = read_audio(one.audio)
        pause = samples[: -len(clip)]
        np.testing.assert_array_equal(samples[-len(clip) :], clip)
        np.testing.assert_array_equal(samples, same)
        assert PAUSES_S[0] <= len(pause) / SAMPLE_RATE <= PAUSES_S[1]
        assert 0 < np.abs(pause).max() < 10 * ROOM_NOISE
    assert len({len(samples) for _, samples in pieces[::2]}) > 1


def test_room_noise_is_low_and_as_loud_as_it_says() -> None:
    noise = room_noise(SAMPLE_RATE, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2  # a bin per hertz
    assert len(noise) == SAMPLE_RATE
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(ROOM_NOISE, rel=0.05)
    assert power[:1000].sum() > 0.7 * power.sum()


def test_one_session_is_compared_with_one_each(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    scripted, memory, told = engine(), itertools.count(100, 10), []
    heard = measure(
        scripted,
        utterances,
        OPTIONS,
        minutes=3.6 / 60,  # 1.2 s and 0.9 s, twice
        pauses_s=WHOLE_CHUNKS,
        memory_mb=lambda: next(memory),
        progress=lambda *progress: told.append(progress),
    )
    assert scripted.opened == WARM_UP + 1 + len(utterances)
    assert [one.id for one in heard.said] == ["small", "man", "small", "man"]
    assert [step.audio_ms for step in heard.steps] == [*range(300, 4201, 300), 4200]
    values = json.loads(json.dumps(heard.as_json()))
    assert (values["minutes"], values["clips"]) == (0.07, 4)
    # "a" is said by the second pass alone
    rates = {"wer": pytest.approx(2 / 12, abs=1e-5), "final_wer": 0}
    assert values["joined"] == values["alone"] == rates
    assert values["difference_points"] == {"wer": 0, "final_wer": 0}
    assert told[0] == (0, pytest.approx(3.6), "joined")
    assert (pytest.approx(4.2), pytest.approx(3.6), "joined") in told
    assert told[-1] == (1, 2, "one by one")

    heard.plot(tmp_path / "long.png")
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=120)
    with console.capture() as said:
        console.print(heard.table())
    assert "+0.00 points" in said.get()


def test_drift_is_the_last_tenth_against_the_first(engine: Callable, utterances: list[Utterance]) -> None:
    memory = itertools.count(100, 10)
    heard = measure(
        engine(),
        utterances[:1],
        OPTIONS,
        minutes=12 / 60,
        pauses_s=WHOLE_CHUNKS,
        memory_mb=lambda: next(memory),
    )
    tenths = heard.as_json()["tenths"]
    assert [row["end_s"] for row in tenths] == [pytest.approx(1.2 * number) for number in range(1, 11)]
    assert [row["memory_mb"] for row in tenths] == list(range(130, 530, 40))  # four chunks each
    # Every 1.2 s three words are shown, which the scripted final puts 100 ms apart from the session's start.
    assert sum(row["words"] for row in tenths) == 30
    assert tenths[0]["emission_delay_ms"]["p50"] > 0
    drift = heard.as_json()["drift"]
    assert drift["memory_mb"] == 360
    assert "chunk_compute_p50_ms" in drift


def test_a_joined_stream_that_loses_words_is_worse(engine: Callable, utterances: list[Utterance]) -> None:
    heard = measure(engine(), utterances, OPTIONS, minutes=2 / 60, pauses_s=(0.45, 0.45))  # words torn apart
    values = heard.as_json()
    assert values["joined"]["wer"] > values["alone"]["wer"]
    assert values["difference_points"]["wer"] == pytest.approx(
        100 * (values["joined"]["wer"] - values["alone"]["wer"]), abs=1e-3
    )


def test_without_a_second_pass_its_error_rate_is_absent(
    engine: Callable, utterances: list[Utterance]
) -> None:
    options = SessionOptions(chunk_ms=300, final_pass="none")
    values = measure(engine(), utterances, options, minutes=2 / 60, pauses_s=WHOLE_CHUNKS).as_json()
    assert set(values["joined"]) == set(values["alone"]) == {"wer"}
    assert all("memory_mb" not in row for row in values["tenths"])


def test_interrupted_it_tells_of_the_clips_said_by_then(
    engine: Callable, utterances: list[Utterance]
) -> None:
    scripted, asked = engine(), itertools.count()
    heard = measure(
        scripted, utterances, OPTIONS, minutes=1, pauses_s=WHOLE_CHUNKS, stop=lambda: next(asked) >= 3
    )
    assert scripted.opened == WARM_UP + 1
    assert [one.id for one in heard.said] == ["small", "man", "small"]
    values = heard.as_json()
    assert values["joined"]["final_wer"] == 0
    assert "alone" not in values
    assert "difference_points" not in values


def test_interrupted_at_once_it_has_nothing_to_tell(
    engine: Callable, utterances: list[Utterance], tmp_path: Path
) -> None:
    heard = measure(engine(), utterances, OPTIONS, minutes=1, stop=lambda: True)
    assert heard.said == []
    assert heard.as_json() == {}
    heard.plot(tmp_path / "long.png")
    assert "0 clips joined" in str(heard.table().title)


def test_a_clip_without_a_transcript_is_refused(engine: Callable, utterances: list[Utterance]) -> None:
    silent = Utterance("silent", utterances[0].audio)
    with pytest.raises(DatasetError, match="silent has no transcript"):
        measure(engine(), [*utterances, silent], OPTIONS, minutes=1)


def test_an_engine_that_fails_is_one_clear_line(engine: Callable, utterances: list[Utterance]) -> None:
    breaks = engine(fails_at=WARM_UP + 1, fault=Fault("internal", "out of memory", True))
    with pytest.raises(EvaluationError, match="out of memory"):
        measure(breaks, utterances, OPTIONS, minutes=1)


def test_there_are_ten_tenths_of_anything(engine: Callable, utterances: list[Utterance]) -> None:
    assert LongForm(OPTIONS).tenths() == []
    heard = measure(engine(), utterances, OPTIONS, minutes=1 / 60, pauses_s=WHOLE_CHUNKS)
    assert len(heard.tenths()) == TENTHS
