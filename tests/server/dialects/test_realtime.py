"""OpenAI's Realtime dialect without sockets."""

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects import Audio, Close, Finalize, Finish, Open
from server.dialects.realtime import Realtime
from server.dialects.realtime_session import LOGPROBS
from streaming.events import Closed, Endpoint, Fault, Finalized, Partial
from streaming.session import SessionOptions
from tests.server.dialects.wire import (
    AGAIN,
    HELLO,
    TALK,
    TERMS,
    TROUBLE,
    final,
    kinds,
    messages,
    partial,
    render,
)

PCM_24K = SessionOptions(sample_rate=24_000)
STARTED, STOPPED = "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"
COMMITTED, CLEARED = "input_audio_buffer.committed", "input_audio_buffer.cleared"
DELTA, COMPLETED = (f"conversation.item.input_audio_transcription.{what}" for what in ("delta", "completed"))


def text(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def append(data: bytes) -> str:
    return text("input_audio_buffer.append", audio=base64.b64encode(data).decode())


def update(include: list[str] | None = None, **audio_input: object) -> str:
    session: dict[str, object] = {"type": "transcription", "audio": {"input": audio_input}}
    return text("session.update", session=session | ({"include": include} if include is not None else {}))


COMMIT, CLEAR = text("input_audio_buffer.commit"), text("input_audio_buffer.clear")
BLOCK = bytes(4800)  # 100 ms


def realtime(*frames: str) -> Realtime:
    dialect = Realtime.parse({"intent": "transcription"}, TERMS)
    dialect.greet("abc")
    for frame in frames:
        assert not any(isinstance(step, Fault) for step in dialect.receive(frame)), frame
    return dialect


def test_the_session_is_told_first():
    (created,) = messages(Realtime.parse({}, TERMS).greet("abc"))
    assert created["type"] == "session.created"
    session = created["session"]
    assert (session["id"], session["type"]) == ("sess_abc", "transcription")
    given = session["audio"]["input"]
    assert given["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert given["turn_detection"] == {"type": "server_vad", "silence_duration_ms": 700}


def test_another_intent_is_refused():
    with pytest.raises(ValueError, match="only transcribes"):
        Realtime.parse({"intent": "conversation"}, TERMS)


def test_the_key_is_in_the_header_or_in_the_subprotocols():
    assert Realtime.key({"authorization": "Bearer k1"}, {}) == "k1"
    offer = "realtime, openai-insecure-api-key.k2, openai-beta.realtime-v1"
    assert Realtime.key({"sec-websocket-protocol": offer}, {}) == "k2"
    assert Realtime.key({"authorization": "Token k1"}, {"token": "k1"}) == ""


def test_a_refusal_is_in_openais_words():
    error = Realtime.refusal("bad_key", "no")["error"]
    assert error == {
        "message": "no",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
        "param": None,
    }


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        (update(format={"type": "audio/pcmu"}), SessionOptions(encoding="mulaw", sample_rate=8_000)),
        (update(format={"type": "audio/pcma"}), SessionOptions(encoding="s16le", sample_rate=8_000)),
        (update(format={"type": "audio/pcm", "rate": 16_000}), SessionOptions()),
        (
            update(
                transcription={"model": "whisper-1", "language": "en", "prompt": "Ada", "keywords": ["Bob"]}
            ),
            SessionOptions(sample_rate=24_000, prompt="Ada", hotwords=("Bob",)),
        ),
        (update(transcription={"delay": "high"}), SessionOptions(sample_rate=24_000, delay_ms=480)),
        (update(noise_reduction=None, turn_detection={"type": "semantic_vad"}), PCM_24K),
        (
            update(turn_detection={"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 250}),
            SessionOptions(sample_rate=24_000, pause_ms=250),
        ),
        (update(turn_detection={"type": "server_vad", "silence_duration_ms": None}), PCM_24K),
        (text("session.update", session={"type": "transcription"}), PCM_24K),
    ],
)
def test_an_update_sets_the_session_and_is_told(frame, options):
    dialect = realtime()
    (updated,) = messages(dialect.receive(frame))
    assert updated["type"] == "session.updated"
    assert dialect.receive(append(BLOCK))[0] == Open(options)


def test_no_delay_can_be_asked_of_a_model_that_has_learnt_when_to_wait():
    dialect = Realtime.parse({}, replace(TERMS, delay_ms=None))
    (mistake,) = dialect.receive(update(transcription={"delay": "high"}))
    assert (mistake.code, mistake.param) == (
        "invalid_value",
        "session.audio.input.transcription.delay",
    )
    assert kinds(dialect.receive(update(transcription={"prompt": "Ada"}))) == ["session.updated"]
    assert dialect.receive(append(BLOCK))[0] == Open(replace(PCM_24K, delay_ms=0, prompt="Ada"))


def test_an_update_is_told_as_it_took_effect():
    frame = update([LOGPROBS], format={"type": "audio/pcmu"}, turn_detection=None)
    (updated,) = messages(realtime().receive(frame))
    given = updated["session"]["audio"]["input"]
    assert (given["format"], given["turn_detection"]) == ({"type": "audio/pcmu"}, None)
    assert updated["session"]["include"] == [LOGPROBS]


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        (b"audio", "invalid_type", None),
        ("{}", "invalid_value", "type"),
        (text("response.create"), "invalid_value", "type"),
        (text("input_audio_buffer.append"), "invalid_value", "audio"),
        (text("input_audio_buffer.append", audio="é!"), "invalid_value", "audio"),
        (COMMIT, "input_audio_buffer_commit_empty", None),
        (text("session.update"), "invalid_type", "session"),
        (text("session.update", session={"type": "realtime"}), "invalid_value", "session.type"),
        (text("session.update", session={"voice": "alloy"}), "unknown_parameter", "session.voice"),
        (update(["x"]), "invalid_value", "session.include"),
        (update(format={"type": "audio/mp3"}), "invalid_value", "session.audio.input.format.type"),
        (update(format={"type": []}), "invalid_value", "session.audio.input.format.type"),
        (
            update(format={"type": "audio/pcm", "rate": "x"}),
            "invalid_type",
            "session.audio.input.format.rate",
        ),
        (update(format={"type": "audio/pcm", "rate": 1}), "invalid_value", "session.audio.input"),
        (
            update(transcription={"language": "de"}),
            "invalid_value",
            "session.audio.input.transcription.language",
        ),
        (
            update(transcription={"keywords": "x"}),
            "invalid_type",
            "session.audio.input.transcription.keywords",
        ),
        (
            update(transcription={"prompt": "\ud800"}),
            "invalid_type",
            "session.audio.input.transcription.prompt",
        ),
        (update(turn_detection={"type": "x"}), "invalid_value", "session.audio.input.turn_detection"),
        (
            update(turn_detection={"silence_duration_ms": "long"}),
            "invalid_type",
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (update(turn_detection={"silence_duration_ms": 99}), "invalid_value", "session.audio.input"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(frame, code, param):
    dialect = realtime()
    before = dialect.options
    (fault,) = dialect.receive(frame)
    (message,) = messages(dialect.render(fault))
    assert message["type"] == "error"
    assert (message["error"]["code"], message["error"]["param"]) == (code, param)
    assert message["error"]["message"]
    assert dialect.options == before
    assert dialect.receive(append(BLOCK))[0] == Open(PCM_24K)


def test_a_mistake_names_the_event():
    dialect = realtime()
    (fault,) = dialect.receive(text("sing", event_id="e1"))
    assert messages(dialect.render(fault))[0]["error"]["event_id"] == "e1"


def test_the_format_is_set_before_audio_and_turn_detection_at_any_time():
    dialect = realtime(append(BLOCK))
    (fault,) = dialect.receive(update(format={"type": "audio/pcmu"}, turn_detection=None))
    assert isinstance(fault, Fault)
    assert dialect.setting.detects
    assert kinds(dialect.receive(update(turn_detection=None))) == ["session.updated"]
    assert not dialect.setting.detects
    (fault,) = dialect.receive(update(turn_detection={"type": "server_vad", "silence_duration_ms": 250}))
    assert "pause" in fault.message


def test_alaw_is_heard_as_pcm():
    dialect = realtime(update(format={"type": "audio/pcma"}))
    assert dialect.receive(append(b"\xd5\x55"))[1] == Audio(b"\x08\x00\xf8\xff")


def test_utterances_are_items_with_turn_detection():
    dialect = realtime()
    steps = render(dialect, *TALK)
    assert kinds(steps) == [
        *(STARTED, DELTA, STOPPED, COMMITTED, DELTA, COMPLETED),
        *(STARTED, STOPPED, COMMITTED, DELTA, COMPLETED),
    ]
    told = messages(steps)
    first, second = (m for m in told if m["type"] == COMPLETED)
    assert (first["transcript"], second["transcript"]) == ("Hello, Bob.", "Again!")
    assert first["usage"] == {"type": "duration", "seconds": 0.9}
    assert second["usage"] == {"type": "duration", "seconds": 0.7}
    assert first["words"][1] == {"word": "Bob.", "start": 0.45, "end": 0.8, "confidence": 0.7}
    deltas = [m["delta"] for m in told if m["type"] == DELTA]
    assert deltas == ["Hello,", " Bob.", "Again!"]
    assert (told[0]["audio_start_ms"], told[2]["audio_end_ms"]) == (100, 900)
    assert [m["previous_item_id"] for m in told if m["type"] == COMMITTED] == [None, first["item_id"]]
    assert len({m["event_id"] for m in told}) == len(told)
    assert steps[-1] == Close(1000, "done")


def test_what_was_told_is_not_taken_back():
    dialect = realtime()
    steps = render(dialect, partial(stable=6), final(AGAIN))
    assert [m["delta"] for m in messages(steps) if m["type"] == DELTA] == ["Hello,"]
    assert messages(steps)[-1]["transcript"] == "Again!"


def test_a_turn_whose_words_are_all_taken_back_ends_empty():
    dialect = realtime()
    nothing = Partial(0, "", 0, 900)
    steps = render(dialect, partial(), nothing, nothing, partial(AGAIN, ms=1500), Endpoint(0, 1600))
    assert kinds(steps) == [STARTED, STOPPED, COMMITTED, COMPLETED, STARTED, STOPPED, COMMITTED]
    told = messages(steps)
    assert (told[3]["transcript"], told[3]["item_id"]) == ("", told[0]["item_id"])
    assert told[4]["item_id"] != told[0]["item_id"]
    assert kinds(render(dialect, final(AGAIN, 0, 1600), Closed(1600, 1, 1))) == [DELTA, COMPLETED]


def test_speech_that_started_has_stopped_when_all_is_over():
    steps = render(realtime(), partial(), Closed(900, 0, 0))
    assert kinds(steps) == [STARTED, STOPPED, COMMITTED, COMPLETED]


def test_a_cut_in_mid_speech_completes_an_item():
    steps = render(realtime(), partial(), final())
    assert kinds(steps) == [STARTED, DELTA, STOPPED, COMMITTED, COMPLETED]


def test_logprobs_come_if_asked_for():
    (*_, completed) = messages(render(realtime(update([LOGPROBS])), final()))
    assert [(each["token"], each["logprob"]) for each in completed["logprobs"]] == [
        ("Hello,", -0.1054),
        ("Bob.", -0.3567),
    ]
    assert "logprobs" not in messages(render(realtime(), final()))[-1]


def manual(*frames: str) -> Realtime:
    return realtime(update(turn_detection=None), *frames)


def test_without_turn_detection_an_item_is_what_stands_between_commits():
    dialect = manual(append(bytes(76_800 - 480)))  # 1590 ms
    heard = render(dialect, partial(stable=11), Endpoint(0, 900), final(), partial(AGAIN, 0, 1, 1500))
    assert kinds(heard) == [DELTA]
    committed, finalize = dialect.receive(COMMIT)
    assert kinds([committed]) == [COMMITTED]
    assert finalize == Finalize()
    dialect.receive(append(BLOCK))
    delta, completed = messages(render(dialect, Endpoint(1, 1590), final(AGAIN, 1, 1590)))
    assert delta["delta"] == " Again!"
    assert completed["transcript"] == "Hello, Bob. Again!"
    assert completed["usage"]["seconds"] == 1.59
    assert completed["item_id"] == messages([committed])[0]["item_id"]
    (item,) = {m["item_id"] for m in messages(heard)}
    assert item == completed["item_id"]


def test_a_commit_of_silence_completes_empty():
    dialect = manual(append(BLOCK))
    dialect.receive(COMMIT)
    (completed,) = messages(dialect.render(Finalized(100)))
    assert (completed["type"], completed["transcript"], completed["words"]) == (COMPLETED, "", [])
    (fault,) = dialect.receive(COMMIT)
    assert fault.code == "input_audio_buffer_commit_empty"


def test_a_commit_while_a_turn_is_being_completed_is_an_item_of_its_own():
    dialect = realtime(append(bytes(48_480)))  # 1010 ms
    render(dialect, partial(), Endpoint(0, 900))
    dialect.receive(COMMIT)
    (completed,) = (m for m in messages(dialect.render(final())) if m["type"] == COMPLETED)
    (empty,) = messages(dialect.render(Finalized(1010)))
    assert (completed["transcript"], empty["transcript"]) == ("Hello, Bob.", "")
    assert completed["item_id"] != empty["item_id"]


def test_what_is_cleared_is_not_told():
    dialect = manual(append(BLOCK))
    cleared, finalize = dialect.receive(CLEAR)
    assert kinds([cleared]) == [CLEARED]
    assert finalize == Finalize()
    assert render(dialect, partial(stable=6, ms=100), Endpoint(0, 100), final(audio_ms=100)) == []
    dialect.receive(append(BLOCK))
    dialect.receive(COMMIT)
    assert [m["transcript"] for m in messages(render(dialect, final(audio_ms=200))) if "transcript" in m] == [
        "Hello, Bob."
    ]
    assert kinds(dialect.receive(CLEAR)) == [CLEARED]


def test_leaving_completes_what_was_heard():
    dialect = manual(append(BLOCK))
    assert dialect.leave(1001, "draining") == [Finish()]
    steps = render(dialect, final(audio_ms=100), Closed(100, 1, 2))
    assert kinds(steps) == [DELTA, COMMITTED, COMPLETED]
    assert steps[-1] == Close(1001, "draining")
    assert dialect.receive(append(BLOCK)) == []


def test_trouble_is_an_error_and_a_close():
    error, close = realtime().render(TROUBLE)
    assert messages([error])[0]["error"]["type"] == "server_error"
    assert close == Close(1011, TROUBLE.message)


NAMES = ["type", "audio", "input", "format", "rate", "transcription", "turn_detection", "keywords", "prompt"]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["transcription", "audio/pcm"])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES), inner), max_leaves=8
)
KINDS = st.sampled_from(
    ["session.update", *(f"input_audio_buffer.{x}" for x in ("append", "commit", "clear"))]
)
SESSIONS = st.fixed_dictionaries(
    {"audio": st.fixed_dictionaries({"input": st.dictionaries(st.sampled_from(NAMES[3:]), JSON)})}
)
MESSAGES = st.fixed_dictionaries({"type": KINDS | JSON}, optional={"audio": JSON, "session": SESSIONS | JSON})
FRAMES = st.binary() | st.text() | MESSAGES.map(json.dumps) | st.binary(max_size=30_000).map(append)
EVENTS = st.sampled_from([*TALK[:-1], final(HELLO, 2, 2000)])


@settings(max_examples=100)
@given(st.lists(FRAMES | EVENTS, max_size=10))
def test_any_frames_and_events_are_answered_and_every_commit_completes(frames):
    dialect = Realtime.parse({}, TERMS)
    dialect.greet("abc")
    told: list[dict] = []
    for frame in frames:
        for step in dialect.receive(frame) if isinstance(frame, str | bytes) else dialect.render(frame):
            if isinstance(step, Fault):
                (error,) = messages(dialect.render(step))
                assert error["type"] == "error"
            told += messages([step])
    told += messages(dialect.render(Closed(2000, 0, 0)))
    committed = [m["item_id"] for m in told if m["type"] == COMMITTED]
    assert committed == [m["item_id"] for m in told if m["type"] == COMPLETED]
