"""What is kept of a run: the two texts, and the way to a file and back."""

import json
import math
from dataclasses import replace

from asr.transducer.schedule import Waits
from eval.trace import Step, Trace
from streaming.events import Closed, Endpoint, Fault, Final, Partial, Word

WORD = Word("hello", 0, 400, 0.5)
HELLO = Trace(
    "hello",
    1.2,
    (
        Step(300, 0.125, (Partial(0, "hallo", 0, 300, (WORD,)),)),
        Step(
            600,
            0.25,
            (Partial(0, "hullo", 5, 600), Endpoint(0, 600), Final(0, "Hello.", (WORD,), 0, 400, 600)),
        ),
        Step(900, 0.0, (Partial(1, "", 0, 900), Partial(2, "ho", 2, 900))),
        Step(
            1200.5,
            0.5,
            (Final(2, "Oh!", (), 600, 900, 1200), Fault("late", "slow", False), Closed(1200, 2, 2)),
        ),
    ),
)


def test_the_streaming_text_is_what_was_shown_last_and_the_final_text_what_came_of_it() -> None:
    assert HELLO.streaming_text == "hullo ho"
    assert HELLO.final_text == "Hello. Oh!"
    assert HELLO.compute_s == 0.875


def test_a_trace_survives_its_file_but_for_the_words_of_partials() -> None:
    [first, *rest] = HELLO.steps
    wordless = replace(first, events=(Partial(0, "hallo", 0, 300),))
    assert Trace.from_json(json.loads(json.dumps(HELLO.as_json()))) == replace(HELLO, steps=(wordless, *rest))


def test_how_long_frames_waited_goes_with_it() -> None:
    waited = replace(HELLO, steps=(), waits=Waits((20, 0, 7), (0, 0, 3)))
    assert Trace.from_json(json.loads(json.dumps(waited.as_json()))) == waited
    assert "waits" not in HELLO.as_json()


def test_what_was_not_measured_is_null_in_files_and_not_a_number_here() -> None:
    unmeasured = Trace("together", 0.3, (Step(300, math.nan, ()),))
    row = json.loads(json.dumps(unmeasured.as_json(), allow_nan=False))
    assert (row["cpu_s"], row["steps"][0]["compute_s"]) == (None, None)
    assert Trace.from_json(row) == unmeasured
    assert math.isnan(unmeasured.compute_s)
