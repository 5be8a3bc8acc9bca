"""The native dialect without sockets: frames and events in, steps out."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialects import CLOSE_REASON_BYTES, Audio, Close, Finalize, Finish, Open, Send, Step, Terms
from server.dialects.native import Native
from streaming.events import Bookmark, Closed, Endpoint, Fault, Final, Partial, Word
from streaming.session import SessionOptions

TERMS = Terms("tiny.en", 300, "full", max_frame_bytes=2**20, max_backlog_s=5, idle_timeout_s=10)
WORD = Word("hello", 0, 400, 0.9)


def native(**query: str) -> Native:
    return Native.parse(query, TERMS)


def message(step: Step) -> dict[str, object]:
    assert isinstance(step, Send)
    return json.loads(step.frame)


def text(**fields: object) -> str:
    return json.dumps(fields)


def test_the_query_sets_the_session():
    dialect = native(
        chunk_ms="500", sample_rate="8000", encoding="mulaw", channels="2", language="en-US", pause_ms="450"
    )
    assert dialect.receive(b"\x00")[0] == Open(SessionOptions(500, "mulaw", 8000, 2, "full", pause_ms=450))
    assert message(dialect.greet("abc")[0])["pause_ms"] == 450


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"language": "de"}, "use en"),
        ({"model": "large"}, "use tiny.en"),
        ({"chunk_ms": "fast"}, "integer"),
        ({"chunk_ms": "10"}, "chunk_ms"),
        ({"encoding": "mp3"}, "encoding"),
        ({"words": "maybe"}, "true or false"),
        ({"beam": "9"}, "beam"),
        ({"delay_ms": "50"}, "delay_ms"),
        ({"pause_ms": "99"}, "pause_ms must be 100 to 5000, not 99"),
        ({"final_pass": "rescore"}, "beam of 2 to 8"),
        ({"final_pass": "rescore", "beam": "2"}, r"tiny\.en cannot rescore utterances: .* one of full, none"),
        ({"hotword_boost": "much"}, "number"),
        ({"hotwords": "Ada,??"}, "letter"),
        ({"chunkms": "300"}, "unknown parameter"),
    ],
)
def test_a_wrong_query_says_what_to_use(query, said):
    with pytest.raises(ValueError, match=said):
        native(**query)


def test_ready_names_the_session_and_the_limits():
    ready = message(native().greet("abc")[0])
    assert (ready["type"], ready["session"], ready["model"], ready["chunk_ms"]) == (
        "ready",
        "abc",
        "tiny.en",
        300,
    )
    assert ready["limits"] == {"max_frame_bytes": 2**20, "max_backlog_ms": 5000, "idle_timeout_ms": 10_000}


def test_the_session_opens_once_at_the_first_call():
    dialect = native()
    assert dialect.receive(text(type="keepalive")) == []
    assert dialect.receive(b"") == []
    assert dialect.receive(b"ab") == [Open(SessionOptions()), Audio(b"ab")]
    assert dialect.receive(b"cd") == [Audio(b"cd")]
    assert dialect.receive(text(type="finalize")) == [Finalize()]
    assert dialect.receive(text(type="close")) == [Finish()]
    assert dialect.receive(b"late") == []


def test_beam_prompt_and_hotwords_come_in_the_query_or_before_audio():
    dialect = native(beam="4", prompt="About Ada.", hotwords="Ada, Mont Blanc", hotword_boost="1.5")
    expected = SessionOptions(beam=4, prompt="About Ada.", hotwords=("Ada", "Mont Blanc"), hotword_boost=1.5)
    assert dialect.options == expected
    dialect = native(beam="2", hotwords="Bob")
    started = text(
        type="start", beam=4, prompt="About Ada.", hotwords=["Ada", "Mont Blanc"], hotword_boost=1.5
    )
    assert dialect.receive(started) == []
    assert dialect.receive(b"ab")[0] == Open(expected)


def test_what_a_server_has_stands_unless_the_client_asks_otherwise():
    terms = replace(TERMS, beam=2, prompt="A ship.", hotwords=("Ishmael",))
    assert Native.parse({}, terms).options == SessionOptions(beam=2, prompt="A ship.", hotwords=("Ishmael",))
    assert Native.parse({"hotwords": "Ahab"}, terms).options.hotwords == ("Ahab",)


@pytest.mark.parametrize(
    "wishes",
    [
        {"beam": 99},
        {"beam": True},
        {"beam": "4"},
        {"hotwords": "Ada"},
        {"hotwords": [1]},
        {"hotwords": ["??"]},
        {"prompt": None},
        {"prompt": "\ud800"},
        {"hotwords": ["\udfff"]},
        {"colour": "red"},
    ],
)
def test_a_wrong_start_is_a_mistake_in_a_line(wishes):
    (fault,) = native().receive(text(type="start", **wishes))
    assert isinstance(fault, Fault)
    assert fault.fatal
    assert fault.code == "bad_text"
    assert "\n" not in fault.message


def test_start_comes_before_audio():
    dialect = native()
    dialect.receive(b"ab")
    (fault,) = dialect.receive(text(type="start", beam=2))
    assert fault.code == "bad_order"


def test_resume_sets_the_timeline_and_must_come_first():
    dialect = native()
    assert dialect.receive(text(type="resume", audio_ms=4200)) == []
    assert dialect.receive(b"ab")[0] == Open(SessionOptions(resume=Bookmark.at(4200)))
    (fault,) = dialect.receive(text(type="resume", audio_ms=0))
    assert isinstance(fault, Fault)
    assert fault.code == "bad_order"


def test_a_bookmark_comes_before_its_final_and_goes_back_as_it_is():
    bookmark = Bookmark(4200, 1900, 4200, "", "hi", 2000)
    told, final = map(message, native().render(Final(0, "hi", (WORD,), 0, 400, 4200, bookmark)))
    held = {"audio_ms": 4200, "from_ms": 1900, "heard_ms": 4200, "carried": "", "said": "hi", "said_ms": 2000}
    assert told == {"type": "bookmark", **held}
    assert (final["type"], "bookmark" in final) == ("final", False)
    dialect = native(progress="true")
    assert dialect.receive(text(**(told | {"type": "resume"}))) == []
    assert dialect.receive(b"ab")[0] == Open(SessionOptions(resume=bookmark))
    assert dialect.progress(1900) == []
    assert message(dialect.progress(4000)[0])["audio_ms"] == 4000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", 1007),
        ("[]", 1007),
        ("[" * 100_000, 1007),
        ('{"type": 1}', 1007),
        ('{"type": "resume"}', 1007),
        ('{"type": "resume", "audio_ms": true}', 1007),
        ('{"type": "resume", "audio_ms": -1}', 1007),
        ('{"type": "resume", "audio_ms": 5, "from_ms": 6}', 1007),
        ('{"type": "resume", "audio_ms": 5, "heard_ms": null}', 1007),
        ('{"type": "resume", "audio_ms": 0, "heard_ms": 99999}', 1007),
        ('{"type": "resume", "audio_ms": 1000000000001}', 1007),
        ('{"type": "resume", "audio_ms": 5, "carried": 5}', 1007),
        ('{"type": "resume", "audio_ms": 5, "carried": "\\ud800"}', 1007),
        ('{"type": "sing"}', 1003),
    ],
)
def test_a_mistake_is_an_error_and_a_close(frame, code):
    dialect = native()
    (fault,) = dialect.receive(frame)
    assert isinstance(fault, Fault)
    error, close = dialect.render(fault)
    assert message(error) == {"type": "error", "code": fault.code, "message": fault.message, "fatal": True}
    assert isinstance(close, Close)
    assert close.code == code
    assert 0 < len(close.reason.encode()) <= CLOSE_REASON_BYTES


def test_words_are_told_if_asked():
    final = Final(0, "hello", (WORD,), 0, 400, 600)
    assert "words" not in message(native().render(final)[0])
    told = message(native(words="true").render(final)[0])
    assert told["words"] == [{"text": "hello", "start_ms": 0, "end_ms": 400, "confidence": 0.9}]
    assert (told["type"], told["text"], told["audio_ms"]) == ("final", "hello", 600)


def test_partials_are_told_unless_declined():
    partial = Partial(0, "hel", 2, 300)
    assert message(native().render(partial)[0])["stable"] == 2
    assert native(interim="false").render(partial) == []


def test_progress_is_told_if_asked_for_chunks_without_a_partial():
    dialect = native(progress="1")
    dialect.render(Partial(0, "hel", 2, 300))
    assert dialect.progress(300) == []
    assert message(dialect.progress(600)[0]) == {"type": "progress", "audio_ms": 600}
    assert dialect.progress(600) == []
    assert native().progress(600) == []


def test_closed_ends_with_the_reason_of_the_end():
    closed = Closed(600, 1, 1)
    told, close = native().render(closed)
    assert message(told) == {"type": "closed", "audio_ms": 600, "utterances": 1, "words": 1}
    assert close == Close(1000, "done")
    dialect = native()
    assert dialect.leave(1001, "draining") == [Open(SessionOptions()), Finish()]
    assert dialect.leave(1001, "still draining") == []
    assert dialect.render(closed)[1] == Close(1001, "still draining")


def test_who_resumes_is_left_at_once_unless_all_is_said():
    dialect = native(resumes="true")
    dialect.receive(b"..")
    assert dialect.leave(1001, "draining") == [Close(1001, "draining")]
    assert dialect.receive(b"..") == dialect.leave(1001, "still draining") == []
    dialect = native(resumes="true")
    assert dialect.receive('{"type":"close"}')[-1] == Finish()
    assert dialect.leave(1001, "draining") == []
    assert dialect.render(Closed(600, 1, 1))[1] == Close(1001, "draining")


def test_the_rest_of_the_vocabulary():
    assert message(native().render(Endpoint(3, 900))[0]) == {
        "type": "endpoint",
        "utterance": 3,
        "audio_ms": 900,
    }
    (warning,) = native().render(Fault("gap", "audio was lost", fatal=False))
    assert message(warning)["fatal"] is False
    assert native().render(Fault("who_knows", "broken", fatal=True))[1] == Close(1011, "broken")


def test_a_reason_is_cut_between_characters():
    reason = Close(1000, "ä" * 100).reason
    assert reason == "ä" * 61


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5
)
KINDS = st.sampled_from(["finalize", "keepalive", "close", "resume", "sing"]) | st.text()
MESSAGES = st.fixed_dictionaries({"type": KINDS | JSON}, optional={"audio_ms": JSON}).map(json.dumps)


@given(st.lists(st.binary() | st.text() | JSON.map(json.dumps) | MESSAGES, max_size=8))
def test_any_frames_give_valid_calls_or_an_error_and_a_close(frames):
    dialect = native()
    opened = finished = False
    for frame in frames:
        for step in dialect.receive(frame):
            assert not finished
            match step:
                case Open():
                    assert not opened
                    opened = True
                case Audio() | Finalize():
                    assert opened
                case Finish():
                    assert opened
                    finished = True
                case Fault():
                    error, close = dialect.render(step)
                    assert message(error)["fatal"] is True
                    assert isinstance(close, Close)
                    assert close.reason
                    finished = True
                case _:
                    pytest.fail(f"a native client is not answered at once: {step}")


@given(
    st.dictionaries(
        st.sampled_from(["chunk_ms", "words", "encoding", "channels", "x"]), st.text(), max_size=3
    )
)
def test_any_query_is_read_or_refused_in_one_line(query):
    try:
        native(**query)
    except ValueError as error:
        refusal = str(error)
    else:
        return
    assert refusal
    assert "\n" not in refusal
