"""One conversation without a model: what may be asked, what is taken, and the order of what is said."""

import threading

import numpy as np
import pytest

from asr.limits import LONGEST_DELAY_S
from streaming.events import Bookmark, Closed, Endpoint, Event, Fault, Final, Partial, Word
from streaming.session import DELAY_MS, Session, SessionOptions

CHUNK = 4_800


def session(**options) -> Session:
    return Session(SessionOptions(**options), wake=lambda: None, notify=None)


def numbered(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)


def partial(utterance: int, text: str = "hm") -> Partial:
    return Partial(utterance, text, 0, 0)


def final(utterance: int, n_words: int) -> Final:
    return Final(utterance, "hm", (Word("hm", 0, 1, 0.5),) * n_words, 0, 1, 1)


def taken(conversation: Session, n: int = CHUNK) -> list[tuple[list[float], bool]]:
    """Everything that can be taken, up to the end of the stream."""
    pieces = []
    while (piece := conversation.take(n)) is not None:
        pieces.append((piece[0].tolist(), piece[1]))
        if conversation.drained:
            break
    return pieces


@pytest.mark.parametrize(
    "bookmark",
    [
        (-1, -1, -1),
        (5, 6, 7),
        (5, 4, 4),
        (0, 0, 10**13),
        (0, 0, 12_001),
        (12_001, 0, 12_001),
        (0, 0, 0, "x" * 501),
        (9, 4, 9, "", "x" * 501),
        (9, 4, 9, "", "so", 6),
        (9, 4, 9, "", "so", -1),
    ],
)
def test_impossible_bookmarks_are_refused_in_one_line(bookmark: tuple) -> None:
    with pytest.raises(ValueError, match=r"^.*(must hold|at most)$"):
        Bookmark(*bookmark)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_ms": 90},
        {"chunk_ms": 1020},
        {"chunk_ms": 310},
        {"final_pass": "half"},
        {"encoding": "opus"},
        {"sample_rate": 7_999},
        {"channels": 0},
        {"beam": 0},
        {"beam": 9},
        {"prompt": "x" * 2001},
        {"hotwords": ("?",)},
        {"hotword_boost": -1.0},
        {"hotword_boost": float("nan")},
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        SessionOptions(**options)


def test_hotwords_are_tidied() -> None:
    assert SessionOptions(hotwords=(" Ada ", "", "Mont  Blanc", "Ada")).hotwords == ("Ada", "Mont Blanc")


@pytest.mark.parametrize(("chunk_ms", "block"), [(100, 5), (300, 15), (1000, 50)])
def test_a_chunk_is_a_block(chunk_ms: int, block: int) -> None:
    assert SessionOptions(chunk_ms=chunk_ms).chunk_frames == block


@pytest.mark.parametrize("packet", [1_000, 4_800, 7_777, 20_000])
def test_packets_of_any_size_give_the_same_chunks(packet: int) -> None:
    conversation = session()
    for start in range(0, 20_000, packet):
        conversation.receive_samples(numbered(start, min(start + packet, 20_000)))
    conversation.finish()
    chunks = [(numbered(i * CHUNK, (i + 1) * CHUNK).tolist(), False) for i in range(4)]
    assert taken(conversation) == [*chunks, (numbered(4 * CHUNK, 20_000).tolist(), True)]
    assert conversation.drained


def test_bytes_are_decoded() -> None:
    conversation = session(encoding="s16le")
    data = (np.arange(CHUNK) % 100).astype("<i2").tobytes()
    for packet in (data[:1001], data[1001:]):
        conversation.receive(packet)
    samples, ending = conversation.take(CHUNK)
    assert not ending
    assert np.array_equal(samples * 2**15, np.arange(CHUNK) % 100)


def test_what_is_no_number_is_counted_and_becomes_silence() -> None:
    conversation = session(encoding="f32le")
    conversation.receive(np.array([0.5, np.nan, np.inf, 0.25], "<f4").tobytes())
    conversation.finish()
    assert conversation.take(CHUNK)[0].tolist() == [0.5, 0, 0, 0.25]
    assert conversation.bad_samples == 2


def test_nothing_is_taken_before_a_chunk_is_complete() -> None:
    conversation = session()
    conversation.receive_samples(numbered(0, CHUNK - 1))
    assert conversation.take(CHUNK) is None
    assert not conversation.ready
    assert conversation.backlog_ms == 299
    conversation.receive_samples(numbered(0, 1))
    assert conversation.ready
    assert len(conversation.take(CHUNK)[0]) == CHUNK
    assert conversation.backlog_ms == 0


def test_a_mark_ends_the_utterance_where_it_was_set() -> None:
    """Asked twice is asked once."""
    conversation = session()
    conversation.receive_samples(numbered(0, 6_000))
    conversation.finalize()
    conversation.receive_samples(numbered(6_000, 12_000))
    conversation.finalize()
    conversation.finalize()
    conversation.finish()
    assert [(len(samples), ending) for samples, ending in taken(conversation)] == [
        (CHUNK, False),
        (6_000 - CHUNK, True),
        (CHUNK, False),
        (6_000 - CHUNK, True),
    ]


def test_a_mark_at_the_end_of_a_chunk() -> None:
    conversation = session()
    conversation.receive_samples(numbered(0, 2 * CHUNK))
    conversation.finalize()
    assert [(len(s), end) for s, end in (conversation.take(CHUNK), conversation.take(CHUNK))] == [
        (CHUNK, False),
        (CHUNK, True),
    ]
    assert conversation.take(CHUNK) is None


def test_after_finish_nothing_more_is_heard() -> None:
    conversation = session()
    conversation.receive_samples(numbered(0, 100))
    conversation.finish()
    conversation.finish()
    conversation.receive_samples(numbered(0, 100))
    assert [(len(samples), end) for samples, end in taken(conversation)] == [(100, True)]


def test_finishing_lets_the_resampler_speak_out() -> None:
    conversation = session(sample_rate=8_000)
    conversation.receive(np.zeros(8_000, "<i2").tobytes())
    conversation.finish()
    assert sum(len(samples) for samples, _ in taken(conversation)) == 16_000


def test_no_event_overtakes_a_promise() -> None:
    conversation = session()
    conversation.put(partial(0), Endpoint(0, 10))
    place = conversation.promise()
    conversation.put(partial(1))
    later = conversation.promise()
    conversation.close()
    assert conversation.events() == [partial(0), Endpoint(0, 10)]
    conversation.fulfil(later, final(1, 3))
    assert conversation.events() == []
    conversation.fulfil(place, final(0, 2))
    rest = conversation.events()
    assert rest == [final(0, 2), partial(1), final(1, 3), Closed(0, 2, 5)]
    assert conversation.closed
    assert conversation.events() == []


def test_totals_are_counted_however_often_events_are_taken() -> None:
    conversation = session(resume=Bookmark.at(5_000))
    conversation.receive_samples(numbered(0, 16_000))
    told: list[Event] = []
    for i in range(3):
        conversation.put(final(i, 2))
        told += conversation.events()
    empty = conversation.promise()
    conversation.fulfil(empty)  # an utterance of which nothing was left
    conversation.put(final(3, 1))
    conversation.close()
    told += conversation.events()
    assert told[-1] == Closed(6_000, 4, 7)
    assert len(told) == 5


def test_a_fatal_fault_closes() -> None:
    conversation = session()
    conversation.put(Fault("odd", "carry on", fatal=False))
    conversation.events()
    assert not conversation.closed
    conversation.put(Fault("internal", "open a new session", fatal=True))
    assert not conversation.closed  # until the client has been told
    conversation.events()
    assert conversation.closed


def test_an_aborted_session_is_silent() -> None:
    conversation = session()
    conversation.receive_samples(numbered(0, CHUNK))
    conversation.put(partial(0))
    place = conversation.promise()
    conversation.abort()
    conversation.put(partial(0))
    conversation.fulfil(place, final(0, 1))
    conversation.fulfil(conversation.promise(), final(1, 1))  # the engine is in the middle of a step
    conversation.close()
    assert conversation.aborted
    assert conversation.closed
    assert not conversation.ready
    assert conversation.events() == []


def test_both_sides_are_woken() -> None:
    woken, told = [], []
    conversation = Session(SessionOptions(), wake=lambda: woken.append(1), notify=lambda: told.append(1))
    conversation.receive(b"\0\0")
    conversation.receive_samples(numbered(0, 1))
    conversation.finalize()
    conversation.finish()
    conversation.abort()
    assert len(woken) == 5
    conversation.fulfil(conversation.promise(), final(0, 1))
    conversation.tell()
    assert len(told) == 2


def test_progress_is_on_the_sessions_timeline() -> None:
    conversation = session(resume=Bookmark.at(1_000))
    assert conversation.decoded_ms == 1_000
    conversation.decoded(8_000)
    assert conversation.decoded_ms == 1_500


def test_threads_lose_nothing() -> None:
    """A client's thread sends and asks, the engine's takes and answers, at once."""
    conversation, n_packets = session(), 300
    got: list[float] = []
    answers: list[Event] = []

    def client() -> None:
        for i in range(n_packets):
            conversation.receive_samples(numbered(i * 100, (i + 1) * 100))
            answers.extend(conversation.events())
        conversation.finish()

    thread = threading.Thread(target=client)
    thread.start()
    while not conversation.drained:
        piece = conversation.take(CHUNK)
        if piece is not None:
            got += piece[0].tolist()
            conversation.put(partial(len(got)))
    thread.join(timeout=10)
    assert got == numbered(0, n_packets * 100).tolist()
    answers += conversation.events()
    heard = [answer.utterance for answer in answers]
    assert heard == sorted(set(heard))
    assert heard[-1] == len(got)


def test_no_delay_is_longer_than_models_are_taught() -> None:
    assert (0, round(1000 * LONGEST_DELAY_S)) == DELAY_MS
