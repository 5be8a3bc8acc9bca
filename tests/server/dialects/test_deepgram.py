"""Deepgram's dialect without sockets."""

import hashlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from server.dialects import Audio, Close, Finalize, Finish, Open
from server.dialects.deepgram import ENCODINGS, Deepgram
from streaming.events import Closed, Endpoint, Fault, Finalized
from streaming.session import SessionOptions
from tests.server.dialects.wire import AGAIN, TALK, TERMS, TROUBLE, final, kinds, messages, partial, render

PCM = "encoding=linear16&sample_rate=16000"


def deepgram(query: str = "") -> Deepgram:
    dialect = Deepgram.parse(QueryParams(f"{PCM}&{query}"), TERMS)
    dialect.greet("abc")
    return dialect


def text(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("encoding=linear16&sample_rate=24000&channels=2", SessionOptions(300, "s16le", 24_000, 2)),
        ("encoding=linear32&sample_rate=48000", SessionOptions(300, "f32le", 48_000)),
        ("encoding=mulaw", SessionOptions(300, "mulaw", 8_000)),
        ("encoding=alaw&model=nova-3&language=en-GB", SessionOptions(300, "s16le", 8_000)),
        (
            "encoding=mulaw&keyterm=Ada&keyterm=Mont+Blanc&keywords=Bob:2",
            SessionOptions(300, "mulaw", 8_000, hotwords=("Ada", "Mont Blanc", "Bob")),
        ),
        (
            "encoding=mulaw&diarize=true&numerals=true&tag=x&endpointing=true",
            SessionOptions(300, "mulaw", 8_000),
        ),
        ("encoding=mulaw&endpointing=300", SessionOptions(300, "mulaw", 8_000, pause_ms=300)),
        ("encoding=mulaw&endpointing=10", SessionOptions(300, "mulaw", 8_000, pause_ms=100)),
        ("encoding=mulaw&endpointing=99999", SessionOptions(300, "mulaw", 8_000, pause_ms=5000)),
        ("encoding=mulaw&endpointing=false", SessionOptions(300, "mulaw", 8_000)),
    ],
)
def test_the_query_sets_the_session(query, options):
    assert Deepgram.parse(QueryParams(query), TERMS).receive(b"\x55\x55")[0] == Open(options)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sample_rate=16000", "encoding must be one of linear16"),
        ("encoding=opus", "containers"),
        ("encoding=linear16", "sample_rate must be an integer"),
        ("encoding=linear16&sample_rate=1", "sample rate"),
        ("encoding=mulaw&channels=99", "channels"),
        ("encoding=mulaw&language=fr", "use en"),
        ("encoding=mulaw&utterance_end_ms=1000", "interim_results=true"),
        ("encoding=mulaw&utterance_end_ms=10&interim_results=true", "1000 or more"),
        ("encoding=mulaw&endpointing=soon", "endpointing must be an integer"),
        ("encoding=mulaw&multichannel=true", "multichannel is not supported"),
        ("encoding=mulaw&redact=pci", "redact is not supported"),
    ],
)
def test_a_query_that_cannot_be_served_says_why(query, said):
    with pytest.raises(ValueError, match=said):
        Deepgram.parse(QueryParams(query), TERMS)


def test_the_key_is_in_the_header_or_in_the_subprotocols():
    assert Deepgram.key({"authorization": "Token k1"}, {}) == "k1"
    assert Deepgram.key({"authorization": "Bearer k1"}, {}) == "k1"
    assert Deepgram.key({"sec-websocket-protocol": "token, k2"}, {}) == "k2"
    assert Deepgram.key({"sec-websocket-protocol": "k2"}, {}) == ""
    assert Deepgram.key({"authorization": "Basic k1"}, {"token": "k1"}) == ""


def test_a_refusal_is_in_deepgrams_words():
    assert Deepgram.refusal("bad_key", "no") == {"err_code": "INVALID_AUTH", "err_msg": "no"}


def test_finals_have_words_with_times_and_confidences():
    ended, results = Endpoint(0, 900), final()
    (message,) = messages(render(deepgram(), ended, results))
    assert (message["start"], message["duration"]) == (0, 0.9)
    assert (message["is_final"], message["speech_final"], message["from_finalize"]) == (True, True, False)
    assert message["metadata"]["request_id"] == "abc"
    assert message["metadata"]["model_info"]["name"] == "tiny.en"
    (alternative,) = message["channel"]["alternatives"]
    assert alternative["transcript"] == "hello bob"
    assert alternative["confidence"] == 0.8
    assert alternative["words"] == [
        {"word": "hello", "start": 0.1, "end": 0.4, "confidence": 0.9},
        {"word": "bob", "start": 0.45, "end": 0.8, "confidence": 0.7},
    ]


@pytest.mark.parametrize("asked", ["punctuate=true", "smart_format=true"])
def test_punctuation_comes_if_asked_for(asked):
    (message,) = messages(deepgram(asked).render(final()))
    (alternative,) = message["channel"]["alternatives"]
    assert alternative["transcript"] == "Hello, Bob."
    assert alternative["words"][0]["punctuated_word"] == "Hello,"


def test_a_whole_conversation():
    dialect = deepgram("interim_results=true&vad_events=true&utterance_end_ms=1000")
    steps = render(dialect, *TALK)
    assert kinds(steps) == [
        *("SpeechStarted", "Results", "Results", "Results"),
        *("SpeechStarted", "Results", "Results", "Metadata"),
    ]
    results = [m for m in messages(steps) if m["type"] == "Results"]
    assert [(m["start"], m["duration"], m["is_final"]) for m in results] == [
        (0, 0.6, False),
        (0, 0.9, False),
        (0, 0.9, True),
        (0.9, 0.6, False),
        (0.9, 0.7, True),
    ]
    assert steps[-1] == Close(1000, "done")


def test_interim_results_come_if_asked_for():
    assert kinds(render(deepgram(), *TALK)) == ["Results", "Results", "Metadata"]


def test_a_cut_in_mid_speech_is_no_end_of_speech():
    (message,) = messages(deepgram().render(final()))
    assert (message["is_final"], message["speech_final"]) == (True, False)


def test_without_endpointing_there_is_no_end_of_speech():
    (message,) = messages(render(deepgram("endpointing=false"), Endpoint(0, 900), final()))
    assert message["speech_final"] is False


def test_utterance_end_comes_once_after_the_gap():
    dialect = deepgram("interim_results=true&utterance_end_ms=1000")
    render(dialect, partial(), Endpoint(0, 900), final())
    assert dialect.progress(1700) == []
    assert messages(dialect.progress(1800)) == [
        {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 0.8}
    ]
    assert dialect.progress(3000) == []


def test_no_utterance_ends_while_words_go_on():
    dialect = deepgram("interim_results=true&utterance_end_ms=1000")
    render(dialect, final(), partial(AGAIN, utterance=1, ms=1500))
    assert dialect.progress(2400) == []
    dialect.render(final(AGAIN, 1, 2400))
    assert [m["last_word_end"] for m in messages(dialect.progress(2500))] == [1.5]


def test_finalize_is_answered_by_the_final_that_it_brings():
    dialect = deepgram()
    assert dialect.receive(bytes(28_800)) == [Open(SessionOptions()), Audio(bytes(28_800))]
    assert dialect.receive(text("Finalize")) == [Finalize()]
    assert render(dialect, partial(ms=600)) == []
    (message,) = messages(render(dialect, Endpoint(0, 900), final(audio_ms=900), Finalized(900)))
    assert message["from_finalize"] is True


def test_a_final_from_before_the_finalize_does_not_answer_it():
    dialect = deepgram()
    dialect.receive(bytes(32_000))
    dialect.receive(text("Finalize"))
    before, answer = messages(render(dialect, Endpoint(0, 900), final(audio_ms=900), Finalized(1_000)))
    assert (before["from_finalize"], answer["from_finalize"]) == (False, True)
    assert answer["channel"]["alternatives"][0]["transcript"] == ""


def test_finalize_is_answered_though_there_was_nothing_to_say():
    dialect = deepgram()
    (early,) = messages(dialect.receive(text("Finalize")))
    dialect.receive(bytes(3200))
    assert dialect.receive(text("Finalize")) == [Finalize()]
    assert dialect.progress(100) == []
    (late,) = messages(dialect.render(Finalized(100)))
    for message in (early, late):
        assert (message["is_final"], message["from_finalize"]) == (True, True)
        assert message["channel"]["alternatives"][0]["transcript"] == ""


def test_the_end_answers_what_is_still_asked_and_sums_up():
    dialect = deepgram()
    dialect.created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    dialect.receive(bytes(3200))
    dialect.receive(text("Finalize"))
    assert dialect.receive(text("CloseStream")) == [Finish()]
    assert dialect.receive(bytes(2)) == []
    results, metadata = messages(dialect.render(Closed(100, 0, 0)))
    assert results["from_finalize"] is True
    assert metadata == {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": "abc",
        "sha256": hashlib.sha256(bytes(3200)).hexdigest(),
        "created": "2026-01-02T03:04:05.000Z",
        "duration": 0.1,
        "channels": 1,
    }


def test_an_empty_frame_ends_the_stream():
    assert deepgram().receive(b"") == [Open(SessionOptions()), Finish()]


def test_alaw_is_heard_as_pcm():
    dialect = Deepgram.parse(QueryParams("encoding=alaw"), TERMS)
    assert dialect.receive(b"\xd5\x55")[1] == Audio(b"\x08\x00\xf8\xff")


def test_keyterms_are_set_before_audio():
    dialect = deepgram()
    (success,) = messages(dialect.receive(text("Configure", keyterms=["Ada"])))
    assert success == {"type": "ConfigureSuccess", "request_id": "abc", "keyterms": ["Ada"]}
    assert dialect.receive(bytes(2))[0] == Open(SessionOptions(hotwords=("Ada",)))
    (failure,) = messages(dialect.receive(text("Configure", keyterms=["Bob"])))
    assert (failure["type"], failure["code"]) == ("ConfigureFailure", "CONFIGURE_KEYTERMS_NOT_SUPPORTED")


@pytest.mark.parametrize(
    "frame",
    ["{", "[]", "[" * 100_000, '{"type": 1}', '{"type": "Sing"}', '{"type": "Configure", "keyterms": [1]}'],
)
def test_a_mistake_is_told_and_the_stream_goes_on(frame):
    dialect = deepgram()
    (fault,) = dialect.receive(frame)
    assert isinstance(fault, Fault)
    (error,) = messages(dialect.render(fault))
    assert (error["type"], error["variant"]) == ("Error", "SchemaError")
    assert error["description"]
    assert dialect.receive(bytes(2))[0] == Open(SessionOptions())


def test_trouble_is_an_error_and_a_close():
    error, close = deepgram().render(TROUBLE)
    assert messages([error])[0]["description"] == TROUBLE.message
    assert close == Close(1011, TROUBLE.message)


def test_leaving_finishes_first():
    dialect = deepgram()
    assert dialect.leave(1001, "draining") == [Open(SessionOptions()), Finish()]
    assert dialect.render(Closed(0, 0, 0))[-1] == Close(1001, "draining")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
KINDS = st.sampled_from(["KeepAlive", "Finalize", "Configure", "CloseStream"]) | JSON
MESSAGES = st.fixed_dictionaries({"type": KINDS}, optional={"keyterms": JSON | st.lists(st.text())})
FRAMES = st.binary(max_size=20_000) | st.text() | JSON.map(json.dumps) | MESSAGES.map(json.dumps)


@settings(max_examples=60)
@given(st.lists(FRAMES, max_size=8))
def test_any_frames_are_obeyed_or_told_to_be_mistakes(frames):
    dialect = deepgram()
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
                    finished = True
                case Fault():
                    assert messages(dialect.render(step))[0]["type"] == "Error"
    asked = [m for m in messages(dialect.render(Closed(0, 0, 0))) if m["type"] == "Results"]
    assert all(message["from_finalize"] for message in asked)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["encoding", "sample_rate", "utterance_end_ms", "keyterm"]), st.text())
)
def test_any_query_is_read_or_refused_in_one_line(query):
    refusal = ""
    try:
        Deepgram.parse(query, TERMS)
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or query["encoding"] in ENCODINGS
