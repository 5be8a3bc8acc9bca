"""vosk's dialect without sockets: one answer for every frame of audio."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects import Audio, Close, Finalize, Finish, Open, Send
from server.dialects.vosk import Vosk
from streaming.events import Closed, Endpoint, Fault, Finalized
from streaming.session import SessionOptions
from tests.server.dialects.wire import AGAIN, TERMS, TROUBLE, final, messages, partial, render

CONFIG = json.dumps({"config": {"sample_rate": 16000}})
EOF, RESET = '{"eof" : 1}', '{"reset" : 1}'
BLOCK = bytes(3200)  # 100 ms


def vosk(config: str | None = CONFIG) -> Vosk:
    dialect = Vosk.parse({}, TERMS)
    if config is not None:
        assert dialect.receive(config) == []
    return dialect


def test_config_sets_the_session():
    assert vosk(None).receive(BLOCK)[0] == Open(SessionOptions(sample_rate=8_000))
    config = {"config": {"sample_rate": 44100.0, "phrase_list": ["yes", "[unk]"], "max_alternatives": 0}}
    options = SessionOptions(sample_rate=44_100, hotwords=("yes",))
    assert vosk(json.dumps(config)).receive(BLOCK)[0] == Open(options)


def test_a_frame_is_answered_when_no_chunk_of_it_is_left():
    dialect = vosk()
    assert dialect.receive(BLOCK)[1:] == [Audio(BLOCK), Send('{"partial":""}')]
    assert messages(dialect.receive(BLOCK)) == [{"partial": ""}]
    assert messages(dialect.receive(BLOCK)) == []  # 300 ms: a chunk
    dialect.render(partial())
    assert messages(dialect.progress(300)) == [{"partial": "hello bob"}]
    assert dialect.progress(300) == []


def test_what_a_resampler_holds_back_is_not_waited_for():
    dialect = vosk(None)
    assert messages(dialect.receive(bytes(4_800))) == [
        {"partial": ""}
    ]  # 300 ms at 8 kHz, of which 190 come out


def test_a_final_is_the_answer_to_the_next_frame():
    dialect = vosk()
    dialect.receive(BLOCK)
    assert render(dialect, partial(), Endpoint(0, 900), final()) == []
    (result,) = messages(dialect.receive(BLOCK))
    assert result == {
        "result": [
            {"conf": 0.9, "end": 0.4, "start": 0.1, "word": "hello"},
            {"conf": 0.7, "end": 0.8, "start": 0.45, "word": "bob"},
        ],
        "text": "hello bob",
    }
    dialect.progress(200)
    assert messages(dialect.receive(BLOCK)) == [{"partial": ""}]


def test_several_finals_are_one_answer_and_words_may_be_left_out():
    dialect = vosk('{"config": {"sample_rate": 16000, "words": 0}}')
    render(dialect, final(), final(AGAIN, 1, 1600))
    assert messages(dialect.receive(BLOCK)) == [{"text": "hello bob again"}]


def test_the_end_answers_every_frame_and_then_says_the_rest():
    dialect = vosk()
    dialect.receive(bytes(9600))
    dialect.receive(bytes(9600))
    assert dialect.receive(EOF) == [Finish()]
    assert dialect.receive(BLOCK) == []
    steps = render(dialect, final(), Closed(600, 1, 2))
    assert [m.get("text", m.get("partial")) for m in messages(steps)] == ["hello bob", "", ""]
    assert steps[-1] == Close(1000, "done")


def test_an_empty_conversation_has_an_end():
    dialect = vosk()
    assert dialect.receive(EOF)[-1] == Finish()
    assert messages(dialect.render(Closed(0, 0, 0))) == [{"text": ""}]


def test_a_reset_is_answered_by_the_final_that_it_brings():
    dialect = vosk()
    dialect.receive(BLOCK)
    assert dialect.receive(RESET) == [Finalize()]
    assert dialect.receive(BLOCK)[1:] == []  # waits for its turn
    assert render(dialect, partial(ms=100), Endpoint(0, 100)) == []
    texts = [m.get("text", m.get("partial")) for m in messages(dialect.render(final(audio_ms=100)))]
    assert texts == ["hello bob", ""]


def test_a_reset_is_answered_though_there_was_nothing_to_say():
    dialect = vosk()
    assert messages(dialect.receive(RESET)) == [{"text": ""}]
    dialect.receive(BLOCK)
    assert dialect.receive(RESET) == [Finalize()]
    assert dialect.progress(100) == []
    assert messages(dialect.render(Finalized(100))) == [{"text": ""}]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", 1007),
        ("[]", 1007),
        ("{}", 1003),
        ('{"config": 1}', 1007),
        ('{"config": {"sample_rate": "fast"}}', 1007),
        ('{"config": {"sample_rate": 1e999}}', 1007),
        ('{"config": {"sample_rate": 1}}', 1007),
        ('{"config": {"phrase_list": "yes"}}', 1007),
        ('{"config": {"phrase_list": ["\\ud800"]}}', 1007),
    ],
)
def test_a_mistake_closes_with_a_reason(frame, code):
    dialect = vosk()
    (fault,) = dialect.receive(frame)
    (close,) = dialect.render(fault)
    assert isinstance(close, Close)
    assert (close.code, bool(close.reason)) == (code, True)
    assert dialect.receive(BLOCK) == []


def test_config_comes_before_audio():
    dialect = vosk()
    dialect.receive(BLOCK)
    (fault,) = dialect.receive(CONFIG)
    assert "before any audio" in fault.message


def test_trouble_closes_and_warnings_are_no_answers():
    assert vosk().render(Fault("bad_audio", "not numbers", fatal=False)) == []
    assert vosk().render(TROUBLE) == [Close(1011, TROUBLE.message)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4
)
CONFIGS = st.dictionaries(
    st.sampled_from(["sample_rate", "words", "phrase_list"]), JSON | st.lists(st.text())
)
TEXTS = st.fixed_dictionaries({}, optional={"config": CONFIGS | JSON, "eof": JSON, "reset": JSON})
FRAMES = (
    st.binary(max_size=20_000) | st.text() | TEXTS.map(json.dumps) | st.sampled_from([EOF, RESET, CONFIG])
)


@settings(max_examples=80)
@given(st.lists(FRAMES, max_size=8))
def test_any_frames_are_answered_once_or_closed_with_a_reason(frames):
    dialect = Vosk.parse({}, TERMS)
    questions = answers = 0
    opened = False
    for frame in frames:
        steps = dialect.receive(frame)
        if steps and isinstance(steps[0], Fault):
            (close,) = dialect.render(steps[0])
            assert isinstance(close, Close)
            return
        assert not opened or Open not in map(type, steps)
        opened |= Open in map(type, steps)
        ended = steps[-1:] == [Finish()]
        questions += isinstance(frame, bytes) or ended or (isinstance(frame, str) and Finalize() in steps)
        questions += not opened and '"reset"' in str(frame) and bool(steps)
        answers += len(messages(steps))
        if ended:
            break
    else:
        questions += 1
    answers += len(messages(dialect.render(Closed(10**6, 0, 0))))
    assert answers == questions
