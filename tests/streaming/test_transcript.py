"""Formats of transcripts: what a subtitle player and a program read."""

import itertools
import json
import re

import pytest

from streaming.events import Final, Word
from streaming.transcript import (
    LINE_CHARACTERS,
    LINES,
    LONGEST_MS,
    SHORTEST_MS,
    as_json,
    as_srt,
    as_text,
    as_vtt,
    cues,
)


def said(text: str, start_ms: int = 0, word_ms: int = 300, number: int = 0) -> Final:
    """An utterance whose words follow each other without pauses."""
    words = tuple(
        Word(word, start_ms + i * word_ms, start_ms + (i + 1) * word_ms, 0.9)
        for i, word in enumerate(text.split())
    )
    return Final(number, text, words, start_ms, words[-1].end_ms, words[-1].end_ms)


TWO = [said("Hello there."), said("Tom & <Jerry>", start_ms=3_723_004, word_ms=500, number=1)]


def test_text_is_a_line_per_utterance():
    assert as_text(TWO) == "Hello there.\nTom & <Jerry>\n"


def test_json_holds_times_and_words():
    read = json.loads(as_json(TWO))
    assert read["text"] == "Hello there. Tom & <Jerry>"
    assert [u["start_ms"] for u in read["utterances"]] == [0, 3_723_004]
    assert read["utterances"][0]["words"][1] == {
        "text": "there.",
        "start_ms": 300,
        "end_ms": 600,
        "confidence": 0.9,
    }


def test_srt_is_as_players_expect():
    assert as_srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n\n2\n01:02:03,004 --> 01:02:04,504\nTom & <Jerry>\n"
    )


def test_vtt_is_as_browsers_expect():
    assert as_vtt(TWO) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nHello there.\n"
        "\n01:02:03.004 --> 01:02:04.504\nTom &amp; &lt;Jerry&gt;\n"
    )


@pytest.mark.parametrize("write", [as_text, as_srt])
def test_nothing_said_is_nothing_written(write):
    assert write([]) == ""


def test_nothing_said_is_still_a_valid_document():
    assert as_vtt([]) == "WEBVTT\n"
    assert json.loads(as_json([])) == {"text": "", "utterances": []}


def test_long_utterances_become_cues_that_can_be_read():
    words = "word " * 150 + "averyveryverylongwordthatfitsonnolineofsubtitlesatall end."
    final = said(words.strip(), word_ms=270)
    made = cues([final])
    assert " ".join(line for cue in made for line in cue.lines).split("averyvery")[0] == "word " * 150
    assert all(len(cue.lines) <= LINES and max(map(len, cue.lines)) <= LINE_CHARACTERS for cue in made)
    assert all(SHORTEST_MS <= cue.end_ms - cue.start_ms <= LONGEST_MS for cue in made[:-1])
    assert all(one.end_ms <= other.start_ms for one, other in itertools.pairwise(made))


def test_a_cue_ends_with_its_sentence_and_before_a_pause():
    pause = Final(0, "a b", (Word("a", 0, 200, 1.0), Word("b", 5_000, 5_200, 1.0)), 0, 5_200, 5_200)
    assert [cue.lines for cue in cues([pause])] == [("a",), ("b",)]
    sentences = said("One two three four five six seven eight. Nine ten.")
    assert [cue.lines[-1].split()[-1] for cue in cues([sentences])] == ["eight.", "ten."]


def test_short_cues_give_way_to_what_follows():
    made = cues([said("Yes.", 0), said("No.", 400, number=1)])
    assert [(cue.start_ms, cue.end_ms) for cue in made] == [(0, 400), (400, 1_400)]


def test_a_final_without_words_is_shown_by_its_own_times():
    assert re.search(
        "00:00:01,000 --> 00:00:03,000\nunknown times\n",
        as_srt([Final(0, "unknown times", (), 1000, 3000, 3000)]),
    )
