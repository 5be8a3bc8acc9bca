"""Frames that nobody should send, in every dialect: none breaks, hangs or leaks anything."""

import contextlib
import copy
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import streaming.engine
from asr.audio import AudioError, Recording, stream_audio
from asr.checkpoint import Whisper
from server.app import DIALECTS, Server, bind
from server.config import Settings
from server.dialects import Audio, Close, Finalize, Finish, Open, Send, Step
from server.spec.messages import VOCABULARIES
from streaming.engine import Engine
from streaming.events import Fault
from streaming.recognizer import WhisperRecognizer
from tests.server.dialects.wire import TERMS
from tests.server.fakes import FakeEngine, FakeSession, speech
from tests.server.recorder import AUDIO, Frame, appended, blocks
from tests.server.test_access import silence
from tests.server.test_asyncapi import TALKS
from tests.streaming.test_engine import SHORT, LoudVoice

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # frames may be long

EXAMPLES, FEWEST, MOST = 300, 26, 40  # conversations of a dialect, frames of each: 31 200 frames and more
SOCKETS = 25  # conversations of a dialect over real sockets
PATIENCE_S = 120  # machines that test may stand still for long

Fuzz = Callable[[Callable[..., None]], Callable[..., None]]
LOUD = [speech(*words) for words in ((1,), (2, 3, 4), (5, 0, 6), (0, 0, 0), range(1, 9))]
SEEDS: dict[str, list[Frame]] = {
    path: [
        *dict.fromkeys(frame for _, frames in talks for frame in frames if isinstance(frame, str)),
        *(LOUD if path != "/v1/realtime" else map(appended, LOUD)),
    ]
    for path, talks in TALKS.items()
}
QUERIES = {"/v1/listen": {"encoding": "linear16", "sample_rate": "16000"}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308),
    *(float("nan"), float("inf"), "", " ", "\0", "\ud800", "\udfff x", "a" * 5_000, "ä" * 70, "🎙" * 30),
    *("2", "true", "audio/pcm", "en-US", "fr", "====", "AAA", [], {}, [[]], [None] * 600, ["a"] * 600),
    *(["\ud800"], {"type": "server_vad"}, {"": {}}, {"a" * 100: 1}, nested(200)),
]
TEXTS = [
    *("", "{", "[]", "null", "NaN", "-Infinity", '"', '{"type"', "\ufeff{}", "[" * 100_000, '{"a":' * 20_000),
    *('{"type":' + "1" * 5_000 + "}", '{"type":"\\ud800"}', '{"type":1e999}', '{"type":"close","type":[]}'),
    *('{"type":null}', '{"config":null}', '{"eof":0}', '{"reset":[]}', '{"config":{"sample_rate":NaN}}'),
]
BYTES = [b"", b"\0", b"\xff" * 3, bytes(7), bytes(9_600), b"\x7f" * 10_001, b"\x00\x00\xc0\x7f" * 100]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything within a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def altered(frame: str, at: int, odd: Any) -> str:
    """A frame of ours with one thing in it replaced."""
    try:
        whole = {"": json.loads(frame)}
    except ValueError:
        return frame + str(odd)
    ways = list(places(copy.deepcopy(whole)))[1:]
    *way, last = ways[at % len(ways)]
    value: Any = whole
    for key in way:
        value = value[key]
    value[last] = odd
    return json.dumps(whole[""])


def frames(path: str) -> st.SearchStrategy[Frame]:
    texts = [seed for seed in SEEDS[path] if isinstance(seed, str)]
    odd = st.sampled_from(ODD)
    return st.one_of(
        st.sampled_from(SEEDS[path]),
        st.builds(altered, st.sampled_from(texts), st.integers(0, 30), odd),
        st.sampled_from(TEXTS),
        st.sampled_from(BYTES),
        st.text(max_size=20) | st.binary(max_size=50),
        st.sampled_from(["type", "config", "eof", "reset", "audio", "session"]).flatmap(
            lambda name: odd.map(lambda value: json.dumps({name: value}))
        ),
    )


def queries(path: str) -> st.SearchStrategy[dict[str, str]]:
    """Mostly what can be served."""
    odd = st.sampled_from(
        ["true", "false", "1", "0", "-1", "300", "1e3", "NaN", "en", "mulaw", "1" * 5_000, ""]
    )
    names = st.sampled_from(sorted(VOCABULARIES[path].query)) | st.text(max_size=5)
    more = st.dictionaries(names, odd, max_size=2)
    return st.just({}) | more.map(lambda query: QUERIES.get(path, {}) | query)


def fuzz(examples: int) -> Fuzz:
    """The same frames in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


class Desk:
    """Does for a dialect what a connection does, and checks what it wants and says."""

    def __init__(self, path: str, query: dict[str, str]) -> None:
        self.engine = FakeEngine()
        self.session: FakeSession | None = None
        self.close: Close | None = None
        told = {"anyOf": list(VOCABULARIES[path].server.values())}
        self._told = VALIDATORS.setdefault(path, jsonschema_rs.validator_for(told))
        self.dialect = DIALECTS[path].parse(query, TERMS)
        self.carry_out(self.dialect.greet("abc"))

    def carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            if self.close is not None:
                return
            match step:
                case Open(options):
                    assert self.session is None
                    self.session = self.engine.open(options)
                case Audio(data):
                    self.opened.receive(data)
                case Finalize():
                    self.opened.finalize()
                case Finish():
                    self.opened.finish()
                case Fault():
                    assert step.message.isprintable()
                    self.carry_out(self.dialect.render(step))
                    assert self.close is not None or not step.fatal
                case Send(str(text)):
                    text.encode()
                    self._told.validate(json.loads(text, parse_constant=pytest.fail))
                case Close(code):
                    assert step.reason
                    assert code in (1000, 1001, 1003, 1007, 1008, 1009, 1013)
                    self.close = step
                case _:
                    pytest.fail(f"a step that no connection knows: {step}")

    @property
    def opened(self) -> FakeSession:
        assert self.session is not None
        return self.session

    def hear(self) -> None:
        """Works off what is there."""
        while self.engine.step():
            pass
        if self.session is None:
            return
        for event in self.session.events():
            self.carry_out(self.dialect.render(event))
        if self.close is None:
            self.carry_out(self.dialect.progress(self.session.decoded_ms))


VALIDATORS: dict[str, Any] = {}


def served(path: str, query: dict[str, str]) -> Desk:
    """With this query, or, where it is refused, with one that is not."""
    try:
        return Desk(path, query)
    except ValueError as wrong:
        refusal = str(wrong)
    assert refusal.isprintable()
    return Desk(path, QUERIES.get(path, {}))


@pytest.mark.parametrize("path", DIALECTS)
def test_any_conversation_is_described_and_ends_with_a_close(path):
    n_frames = n_words = 0

    @fuzz(EXAMPLES)
    @given(queries(path), st.lists(frames(path), min_size=FEWEST, max_size=MOST), st.integers(1, 5))
    def attack(query: dict[str, str], sent: list[Frame], pace: int) -> None:
        nonlocal n_frames, n_words
        n_frames += len(sent)
        desk = served(path, query)
        for number, frame in enumerate(sent):
            if desk.close is not None:  # who comes again starts anew
                desk = served(path, QUERIES.get(path, {}))
            desk.carry_out(desk.dialect.receive(frame))
            if number % pace == 0:
                desk.hear()
        if desk.close is None:
            desk.carry_out(desk.dialect.leave(1001, "the test ends"))
            desk.hear()
            assert desk.close is not None
        if desk.session is not None:
            n_words += desk.session.decoded_ms > 0

    attack()
    assert n_frames >= EXAMPLES * FEWEST
    assert n_words


RECORDINGS = {kind: silence(2, kind, rate=8_000) for kind in ("WAV", "FLAC", "OGG", "MP3")}


@fuzz(200)
@given(
    st.sampled_from(sorted(RECORDINGS)),
    st.lists(
        st.tuples(st.integers(0, 60) | st.integers(0, 3_000), st.binary(min_size=1, max_size=4)), max_size=5
    ),
    st.none() | st.integers(0, 3_000),
)
def test_broken_files_are_read_or_refused_in_a_line(kind, changes, end):
    data = bytearray(RECORDINGS[kind])
    for at, new in changes:
        data[at : at + len(new)] = new
    refusal = ""
    try:
        for block in islice(stream_audio(Recording(io.BytesIO(data[:end]), "the file")), 10):
            assert np.isfinite(block).all()
    except AudioError as wrong:
        refusal = str(wrong)
    assert refusal == "" or (refusal.startswith("the file") and refusal.isprintable())


@pytest.fixture(scope="module")
def server(tiny: Whisper) -> Iterator[Server]:
    """A real server in a thread of its own, with a model that says nonsense."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming.engine, "VoiceActivity", LoudVoice)
        engine = Engine(WhisperRecognizer(tiny), tiny, "tiny", slots=4, endpoint=SHORT)
        server = Server(engine, Settings(port=0, pause_ms=300, idle_timeout_s=PATIENCE_S))
        listener = bind("127.0.0.1", 0)
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until(lambda: server.started)
        try:
            yield server
        finally:
            server.should_exit = True
            thread.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDS: dict[str, Frame] = {
    "/v1/stream": '{"type":"close"}',
    "/v1/listen": '{"type":"CloseStream"}',
    "/vosk": '{"eof":1}',
}
PLAIN = {
    path: "&".join(f"{name}={value}" for name, value in QUERIES.get(path, {}).items()) for path in DIALECTS
}


@pytest.mark.parametrize("path", DIALECTS)
def test_no_conversation_over_a_socket_breaks_or_keeps_anything(server, path):
    address = f"ws://127.0.0.1:{server.port}{path}"
    house = server.house
    threads = {thread for thread in threading.enumerate() if thread.is_alive()}

    @fuzz(SOCKETS)
    @given(queries(path), st.lists(frames(path), min_size=3, max_size=15), st.booleans())
    def attack(query: dict[str, str], sent: list[Frame], abrupt: bool) -> None:
        url = "&".join(f"{quote(name)}={quote(value)}" for name, value in query.items())
        until(lambda: house.free_slots == 4)  # of every one before
        status = 101
        try:
            socket = connect(f"{address}?{url}", open_timeout=PATIENCE_S)
        except InvalidStatus as refused:
            status = refused.response.status_code
            socket = connect(f"{address}?{PLAIN[path]}", open_timeout=PATIENCE_S)
        with socket:
            assert status in (101, 400)
            with contextlib.suppress(ConnectionClosed):
                for frame in sent:
                    raw = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
                    socket.send(raw, text=isinstance(frame, str))
            if abrupt:
                with contextlib.suppress(OSError):  # the server was first
                    socket.socket.shutdown(SHUT_RDWR)
            else:
                socket.close()
                assert socket.close_code != 1011

    attack()
    until(lambda: not house.connections and house.free_slots == 4 == house.worker.engine.free_slots)
    until(lambda: not server.server_state.connections and not server.server_state.tasks)
    until(lambda: {thread for thread in threading.enumerate() if thread.is_alive()} <= threads)
    assert house.worker.alive
    with connect(f"{address}?{PLAIN[path]}", open_timeout=PATIENCE_S) as client:  # the next one is served
        for block in blocks(AUDIO):
            client.send(appended(block) if path == "/v1/realtime" else block)
        if path in ENDS:
            client.send(ENDS[path])
            assert list(client)
        else:
            while (
                json.loads(client.recv())["type"] != "conversation.item.input_audio_transcription.completed"
            ):
                pass
