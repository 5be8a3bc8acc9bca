"""Many sessions, one model. Speech is what is loud, unless a test is about hearing itself."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import streaming.engine
from asr.audio import read_audio, samples_in
from asr.biasing import Guidance
from asr.checkpoint import Whisper
from asr.offline import Context
from asr.timing import TimedWord
from streaming import final_pass, policy
from streaming.context import LONGEST_MS
from streaming.endpoint import EndpointOptions, VoiceActivity
from streaming.engine import Engine
from streaming.events import (
    LONGEST_TIMELINE_MS,
    MAX_CARRIED_CHARS,
    Bookmark,
    Closed,
    Endpoint,
    Event,
    Fault,
    Final,
    Finalized,
    Partial,
)
from streaming.recognizer import FLUSH_MS, WhisperRecognizer
from streaming.session import Full, Session, SessionOptions
from tests.contract import CHECKS, Check, Outputs, Subject, fill_with_nan, random_noises

RATE = 16_000
SAMPLES = Path(__file__).parents[2] / "samples"
SHORT = EndpointOptions(longest_ms=10_000)
hasty = partial(SessionOptions, pause_ms=300)
NO_SECOND_PASS = hasty(chunk_ms=400, final_pass="none")


class LoudVoice(VoiceActivity):
    """Hears speech in every loud window."""

    def __init__(self) -> None:
        pass

    def _features(self, seen: Tensor) -> Tensor:
        return seen[:, 64:].abs().mean(1, keepdim=True)

    @staticmethod
    def _recurrent(features: PackedSequence, state: tuple[Tensor, Tensor]) -> tuple[PackedSequence, Any]:
        return features, state

    def _probabilities(self, hidden: Tensor) -> Tensor:
        return (hidden > 0.01).float().squeeze(1)


@pytest.fixture
def make_engine(tiny: Whisper, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    monkeypatch.setattr(streaming.engine, "VoiceActivity", LoudVoice)
    made: list[Engine] = []

    def make(slots: int = 4, *, base: Whisper = tiny, threaded: bool = False) -> Engine:
        recognizer = WhisperRecognizer(tiny)
        made.append(Engine(recognizer, base, "tiny", slots, final_pass_thread=threaded, endpoint=SHORT))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Speaker:
    """Words in place of a second pass; keeps the audio that it was given."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.heard: list[np.ndarray] = []

    def transcribe(
        self, samples: Tensor, guidance: Guidance, draft: str, context: Context
    ) -> list[TimedWord]:
        self.heard.append(samples.numpy())
        return [TimedWord(word, 0.1 * i, 0.1 * i + 0.1, 0.9, 1) for i, word in enumerate(self.words)]


class Listener:
    """Says how loud the parts of audio are, so that utterances differ in words; keeps what stood before them."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    def transcribe(
        self, samples: Tensor, guidance: Guidance, draft: str, context: Context
    ) -> list[TimedWord]:
        self.contexts.append(context)
        n = len(samples) // 4
        return [
            TimedWord(
                f"{float(samples[i * n : (i + 1) * n].abs().sum()):.3f}",
                i * n / RATE,
                (i + 1) * n / RATE,
                0.9,
                1,
            )
            for i in range(4)
        ]


def speech(*spans: tuple[float, float], seconds: float, seed: int = 0) -> np.ndarray:
    """Loud noises within the spans, silence elsewhere."""
    noises = 0.05 + random_noises(1, int(seconds * RATE), seed)[0].numpy()
    at = np.arange(len(noises)) / RATE
    return noises * sum((start <= at) & (at < end) for start, end in spans).astype(np.float32)


def work_off(engine: Engine) -> None:
    while engine.step():
        pass


def converse(engine: Engine, session: Session, samples: np.ndarray, packet: int = 3_333) -> list[Event]:
    """The whole conversation, heard to its end."""
    for start in range(0, len(samples), packet):
        session.receive_samples(samples[start : start + packet])
        engine.step()
    session.finish()
    work_off(engine)
    return session.events()


TWO_UTTERANCES = speech((0.3, 1.5), (2.3, 3.2), seconds=3.5)


# --- the contract -----------------------------------------------------------------------------------


class EngineSubject(Subject):
    """Sessions as rows: samples in packets of any size, events out."""

    def __init__(self, make_engine: Callable[..., Engine]) -> None:
        self.make_engine = make_engine
        self.n = self.longest = len(TWO_UTTERANCES)

    def inputs(self, rows: int, seed: int) -> Tensor:
        spans = ((0.3, 1.5), (2.3, 3.2))
        return torch.stack(
            [torch.from_numpy(speech(*spans, seconds=3.5, seed=9 * seed + row)) for row in range(rows)]
        )

    def init_state(self, rows: int) -> tuple[Engine, list[Session]]:
        engine = self.make_engine(rows)
        return engine, [engine.open(NO_SECOND_PASS) for _ in range(rows)]

    def reset(self, state: tuple[Engine, list[Session]], rows: Tensor) -> None:
        engine, sessions = state
        for row in rows.tolist():
            sessions[row].abort()
            engine.step()
            sessions[row] = engine.open(NO_SECOND_PASS)

    def step(self, x: Tensor, state: tuple[Engine, list[Session]], rows: Tensor) -> list[Outputs]:
        engine, sessions = state
        for row, samples in zip(rows.tolist(), x.numpy(), strict=True):
            sessions[row].receive_samples(samples)
        work_off(engine)
        return [[told(event) for event in sessions[row].events()] for row in rows.tolist()]

    def due(self, i: int, output: tuple) -> int:
        return samples_in(output[-1])

    def poison(self, state: tuple[Engine, list[Session]]) -> None:
        fill_with_nan(state[0]._state)


def told(event: Event) -> tuple:
    """An event without its confidences, whose last digit depends on the batch."""
    match event:
        case Partial():
            return "partial", event.utterance, event.text, event.stable, event.audio_ms
        case Final():
            times = [(word.text, word.start_ms, word.end_ms) for word in event.words]
            return "final", event.utterance, event.text, times, event.audio_ms
        case Endpoint():
            return "endpoint", event.utterance, event.audio_ms
        case Finalized():
            return "finalized", event.audio_ms
    raise AssertionError(event)


@pytest.mark.parametrize("check", CHECKS)
def test_contract(make_engine: Callable[..., Engine], check: Check) -> None:
    check(EngineSubject(make_engine))


def test_a_model_without_a_schedule_tells_of_none(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(1)
    session = engine.open(NO_SECOND_PASS)
    assert any(isinstance(event, Final) for event in converse(engine, session, TWO_UTTERANCES))
    assert session.waits is None


def test_sessions_with_other_chunks_equal_each_alone(make_engine: Callable[..., Engine]) -> None:
    chunks = (100, 400, 1000)
    options = [hasty(chunk_ms=chunk_ms, final_pass="none") for chunk_ms in chunks]
    alone = [converse(engine := make_engine(1), engine.open(o), TWO_UTTERANCES) for o in options]
    engine = make_engine(3)
    sessions = [engine.open(o) for o in options]
    for start in range(0, len(TWO_UTTERANCES), 5_000):
        for session in sessions:
            session.receive_samples(TWO_UTTERANCES[start : start + 5_000])
        engine.step()
    for session in sessions:
        session.finish()
    work_off(engine)
    for session, expected in zip(sessions, alone, strict=True):
        events = session.events()
        assert [told(event) for event in events[:-1]] == [told(event) for event in expected[:-1]]
        assert events[-1] == expected[-1]


# --- before the first conversation ------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True])
def test_warming_up_meets_every_batch_and_leaves_nothing(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    options = hasty(chunk_ms=400)
    expected = converse(engine := make_engine(6), engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    engine, second, batches = make_engine(6, threaded=threaded), Speaker("warm"), set()
    hear = engine._recognizer.step

    def noting(samples: Tensor, state: Any, rows: Tensor) -> Any:
        batches.add(len(rows))
        return hear(samples, state, rows)

    monkeypatch.setattr(engine._recognizer, "step", noting)
    fill_with_nan(engine._state)
    monkeypatch.setattr(engine._final_pass, "_decoder", second)
    engine.warm_up(speech((0.0, 3.0), seconds=4), options)
    assert {1, 2, 4, 6} <= batches
    assert len(second.heard) == 1
    assert engine.free_slots == 6 and engine.idle and not engine.sessions
    assert bool((engine._state.encoder.cache.k == 0).all())  # all of it is there, for the longest utterance
    assert bool((engine._state.search.decoder.audio.v == 0).all())
    events = converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    assert [told(event) for event in events[:-1]] == [told(event) for event in expected[:-1]]


def test_memory_is_given_back_now_and_then(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, given = make_engine(1), []
    monkeypatch.setattr(streaming.engine, "give_back", lambda: given.append(engine._n_steps))
    monkeypatch.setattr(streaming.engine, "STEPS_TO_TRIM", 3)
    converse(engine, engine.open(NO_SECOND_PASS), np.zeros(7 * 6_400, np.float32), packet=6_400)
    work_off(engine)
    assert given == [3, 6]


# --- one conversation -------------------------------------------------------------------------------


def test_events_come_in_order_and_add_up(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    session = engine.open(NO_SECOND_PASS)
    events = converse(engine, session, TWO_UTTERANCES)
    finals = [event for event in events if isinstance(event, Final)]
    assert [final.utterance for final in finals] == [0, 1]
    for utterance, final in enumerate(finals):
        own = [e for e in events if not isinstance(e, Closed) and e.utterance == utterance]
        *partials, endpoint, last = own
        assert partials
        assert all(isinstance(event, Partial) for event in partials)
        assert isinstance(endpoint, Endpoint)
        assert last is final
        assert final.text.split() == partials[-1].text.split()
        assert partials[-1].stable == len(partials[-1].text)
        for before, after in pairwise(partials):
            assert after.text[: before.stable] == before.text[: before.stable]
        assert final.audio_ms == endpoint.audio_ms
        assert final.start_ms <= final.end_ms <= final.audio_ms
    n_words = sum(len(final.words) for final in finals)
    assert events[-1] == Closed(3_500, 2, n_words)
    assert [event for event in events if isinstance(event, Closed)] == events[-1:]
    assert session.closed
    assert session.decoded_ms == 3_500
    assert engine.free_slots == engine.slots
    assert engine.idle


def test_each_client_says_what_a_pause_is(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(2)
    n_finals = []
    for pause_ms in (300, 900):  # there are 800 ms between both utterances
        options = SessionOptions(chunk_ms=100, final_pass="none", pause_ms=pause_ms)
        events = converse(engine, engine.open(options), TWO_UTTERANCES)
        n_finals.append(len(finals_of(events)))
    assert n_finals == [2, 1]


def test_silence_says_nothing(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    session = engine.open(hasty())
    assert converse(engine, session, np.zeros(5 * RATE, np.float32)) == [Closed(5_000, 0, 0)]
    assert converse(engine, engine.open(hasty()), np.zeros(0, np.float32)) == [Closed(0, 0, 0)]


def test_the_client_may_end_an_utterance(make_engine: Callable[..., Engine]) -> None:
    """What was said before and what comes after are as if they were two streams."""
    engine = make_engine()
    session = engine.open(NO_SECOND_PASS)
    first, second = TWO_UTTERANCES[: int(1.1 * RATE)], TWO_UTTERANCES[int(2.3 * RATE) :]
    session.receive_samples(first)
    session.finalize()
    work_off(engine)
    *_, endpoint, final, finalized = session.events()
    assert isinstance(final, Final)
    assert endpoint == Endpoint(0, 1_100)
    assert finalized == Finalized(1_100)
    assert max(word.end_ms for word in final.words) <= final.audio_ms == 1_100
    assert session.decoded_ms == 1_100
    assert not engine._voice_state.fill.any()  # the ears, too, begin anew
    after = converse(engine, session, second)
    alone = converse(engine, engine.open(NO_SECOND_PASS), second)
    assert [e.text for e in after if isinstance(e, Partial)] == [
        e.text for e in alone if isinstance(e, Partial)
    ]
    assert after[-1].audio_ms == 1_100 + len(second) * 1000 // RATE
    assert after[-2].utterance == 1


@pytest.mark.parametrize("threaded", [False, True])
def test_an_end_is_carried_out_after_its_final_though_nothing_was_said(
    make_engine: Callable[..., Engine], threaded: bool
) -> None:
    """Each is told once, and none before a second pass that is under way."""
    engine = make_engine(threaded=threaded)
    engine._final_pass._decoder = Speaker("yes")
    session = engine.open(hasty(chunk_ms=400))
    ends = (6_400, 6_400 + 16_000, 6_400 + 16_000)  # a whole chunk of silence; speech; and nothing more
    for samples in (np.zeros(6_400, np.float32), speech((0.1, 0.9), seconds=1.0), np.zeros(0, np.float32)):
        session.receive_samples(samples)
        session.finalize()
        work_off(engine)
    session.receive_samples(np.zeros(100, np.float32))
    session.finish()
    while not engine.idle:
        engine.step()
    events = [event for event in session.events() if not isinstance(event, Partial)]
    told = [Finalized(end // 16) for end in ends]
    assert [event for event in events if isinstance(event, Finalized)] == told
    kinds = [type(event) for event in events]
    assert kinds == [Finalized, Endpoint, Final, Finalized, Finalized, Closed]


def test_a_second_pass_is_asked_where_the_stream_heard_no_word(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there was speech enough. What it hears is an utterance like others; if it hears nothing, nothing is told."""
    engine, outcomes = make_engine(), []
    engine.second_pass_ended = outcomes.append
    monkeypatch.setattr(engine, "_show", lambda stream, hypothesis: None)
    samples = speech((0.3, 1.5), (2.6, 3.5), seconds=4.0)
    for words, finals in ((("after", "all"), ["after all"] * 2), ((), [])):
        speaker = engine._final_pass._decoder = Speaker(*words)
        events = converse(engine, engine.open(hasty(chunk_ms=400)), samples)
        assert [event.text for event in events if isinstance(event, Final)] == finals
        assert [type(event) for event in events] == [Endpoint, Final] * len(finals) + [Closed]
        assert len(speaker.heard) == 2
    assert outcomes == ["heard", "heard"]
    for options, loud in ((NO_SECOND_PASS, samples), (hasty(), speech((0.3, 0.6), seconds=2))):
        speaker = engine._final_pass._decoder = Speaker("click")
        assert [type(event) for event in converse(engine, engine.open(options), loud)] == [Closed]
        assert not speaker.heard


def test_an_utterance_of_nothing_leaves_what_was_said_before_it(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass of the next one hears it as if there had been a pause."""

    class Middle(Listener):
        def transcribe(
            self, samples: Tensor, guidance: Guidance, draft: str, context: Context
        ) -> list[TimedWord]:
            words = super().transcribe(samples, guidance, draft, context)
            return [] if len(self.contexts) == 2 else words

    engine = make_engine()
    show = engine._show
    monkeypatch.setattr(engine, "_show", lambda s, h: show(s, h) if s.utterance != 1 else None)
    middle = engine._final_pass._decoder = Middle()
    samples = speech((0.3, 1.5), (2.6, 3.8), (4.9, 6.0), seconds=7.0)
    events = converse(engine, engine.open(hasty(chunk_ms=400)), samples)
    assert [event.utterance for event in events if isinstance(event, Final)] == [0, 2]
    _, of_second, of_third = middle.contexts
    assert of_third.text == of_second.text
    assert np.array_equal(of_third.samples, of_second.samples)


def test_a_timeline_may_go_on_from_a_lost_connection(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    plain = converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    options = hasty(chunk_ms=400, final_pass="none", resume=Bookmark.at(60_000))
    later = converse(engine, engine.open(options), TWO_UTTERANCES)
    assert [event.audio_ms for event in later] == [event.audio_ms + 60_000 for event in plain]
    finals = [[e for e in events if isinstance(e, Final)] for events in (plain, later)]
    for before, after in zip(*finals, strict=True):
        assert after.start_ms == before.start_ms + 60_000
        assert [word.end_ms for word in after.words] == [word.end_ms + 60_000 for word in before.words]


def test_speech_without_a_pause_turns(make_engine: Callable[..., Engine]) -> None:
    """Longer than any window: its utterances follow each other with no sample lost or doubled."""
    engine = make_engine()
    speaker = engine._final_pass._decoder = Speaker("so", "it", "goes")
    samples = speech((0.0, 21.0), seconds=21.0)
    events = converse(engine, engine.open(hasty(chunk_ms=1000)), samples, packet=RATE)
    finals = [event for event in events if isinstance(event, Final)]
    assert [final.utterance for final in finals] == list(range(len(finals)))
    assert len(finals) == len(speaker.heard) > 2
    heard = np.concatenate(speaker.heard)
    assert np.array_equal(heard[: len(samples)], samples)
    assert not heard[len(samples) :].any()
    assert len(heard) - len(samples) <= samples_in(FLUSH_MS + 1000)
    assert [final.audio_ms for final in finals] == sorted({final.audio_ms for final in finals})


def test_settled_words_behind_a_turn_open_the_next_utterance(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    session = engine.open(hasty(chunk_ms=1000, final_pass="none"))
    events = converse(engine, session, speech((0.0, 21.0), seconds=21.0), packet=RATE)
    n_carried = 0
    for said, whole, final, following in zip(*(events[i:] for i in range(4)), strict=False):
        if isinstance(final, Final) and isinstance(whole, Partial) and isinstance(following, Partial):
            assert whole.text.split() == final.text.split()
            assert whole.stable == len(whole.text)
            assert said.text.startswith(whole.text)
            carried = policy.carried(
                said.text[len(whole.text) : said.stable]
            )  # not more than a bookmark takes
            assert following.text.startswith(carried)
            assert following.stable >= len(carried)
            n_carried += bool(carried)
    assert n_carried


# --- resuming ---------------------------------------------------------------------------------------


def resumed_at_every_final(engine: Engine, options: SessionOptions, samples: np.ndarray) -> list[tuple]:
    """One conversation over many sessions: each is left at its first final, and the next goes on behind it."""
    story: list[Event] = []
    n_finals = 0
    while True:
        session = engine.open(options)
        events: list[Event] = []
        for start in range(options.start_ms * RATE // 1000, len(samples), 3_333):
            session.receive_samples(samples[start : start + 3_333])
            while not finals_of(events) and engine.step():
                events += session.events()
        left = [i for i, event in enumerate(events) if isinstance(event, Final)]
        if left:
            session.abort()
            engine.step()
        else:
            session.finish()
            work_off(engine)
            events += session.events()
        heard = events[: left[0] + 1] if left else events[:-1]
        story += [replace(event, utterance=event.utterance + n_finals) for event in heard]
        if not left:
            return [told(event) for event in story]
        n_finals += 1
        options = replace(options, resume=story[-1].bookmark)


@pytest.mark.parametrize("chunk_ms", [100, 400, 1000])
def test_a_session_that_resumes_goes_on_as_the_undisturbed_one(
    make_engine: Callable[..., Engine], chunk_ms: int
) -> None:
    """Behind pauses, and behind cuts in mid-speech: the same words, at the same times, shown at the same moments."""
    options = hasty(chunk_ms=chunk_ms, final_pass="none")
    samples = speech((0.3, 1.5), (2.3, 24.0), (25.0, 26.2), seconds=27.0)
    engine = make_engine(1)
    undisturbed = converse(engine, engine.open(options), samples)
    finals = [event for event in undisturbed if isinstance(event, Final)]
    turned = [final.bookmark for final in finals if final.bookmark.heard_ms > final.audio_ms]
    led = [final.bookmark for final in finals if final.bookmark.from_ms < final.audio_ms]
    assert len(turned) > 1
    assert led or chunk_ms == 1000  # longer than the silence that ends an utterance
    assert any(bookmark.carried for bookmark in turned)
    story = resumed_at_every_final(engine, options, samples)
    assert story == [told(event) for event in undisturbed[:-1]]


def test_the_second_pass_of_a_session_that_resumes_hears_what_was_said_before(
    make_engine: Callable[..., Engine],
) -> None:
    """Behind pauses and behind cuts in mid-speech, and where the client asked for the end."""
    options = hasty(chunk_ms=400)
    samples = speech((0.3, 1.5), (2.3, 24.0), (25.0, 26.2), seconds=27.0)
    engine = make_engine(1)
    listener = engine._final_pass._decoder = Listener()
    undisturbed = converse(engine, engine.open(options), samples)
    heard = listener.contexts
    assert heard[0].text == ""
    assert all(context.text for context in heard[1:])
    assert all(0 < len(context.samples) <= samples_in(LONGEST_MS) for context in heard[1:])
    for before, context in pairwise(heard):
        assert context.text != before.text
    listener.contexts = []
    story = resumed_at_every_final(engine, options, samples)
    assert story == [told(event) for event in undisturbed[:-1]]
    for before, after in zip(heard, listener.contexts, strict=True):
        assert before.text == after.text
        assert np.array_equal(before.samples, after.samples)


def test_silero_vad_hears_the_same_behind_a_bookmark(tiny: Whisper) -> None:
    """It remembers tens of seconds, and so it forgets at every final."""
    clips = [read_audio(SAMPLES / name) for name in ("austen-0870.flac", "jfk.wav")]
    engine = Engine(WhisperRecognizer(tiny), tiny, "tiny", 1, final_pass_thread=False, endpoint=SHORT)
    undisturbed = converse(engine, engine.open(NO_SECOND_PASS), np.concatenate(clips))
    story = resumed_at_every_final(engine, NO_SECOND_PASS, np.concatenate(clips))
    assert story == [told(event) for event in undisturbed[:-1]]
    assert len(finals_of(undisturbed)) > 3
    engine.close()


def test_a_client_that_ends_before_its_bookmark_is_heard_all_the_same(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(1)
    options = replace(NO_SECOND_PASS, resume=Bookmark(0, 0, 9_000, carried="word " * 99))
    expected = converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    events = converse(engine, engine.open(options), TWO_UTTERANCES)
    assert finals_of(events) == finals_of(expected) != []


def test_no_timeline_is_too_long_to_go_on(make_engine: Callable[..., Engine]) -> None:
    """What one client asks for must not make the engine fail all."""
    engine = make_engine(1)
    options = replace(NO_SECOND_PASS, resume=Bookmark.at(LONGEST_TIMELINE_MS))
    events = converse(engine, engine.open(options), TWO_UTTERANCES)
    assert len(finals_of(events)) == 2
    assert isinstance(events[-1], Closed)


def test_more_than_anybody_says_is_not_carried(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(1)
    bookmark = Bookmark(1_000, 1_000, 3_000, carried="\U0001f600" * MAX_CARRIED_CHARS)
    options = replace(NO_SECOND_PASS, resume=bookmark)
    events = converse(engine, engine.open(options), speech((0.0, 3.0), seconds=4.0))
    (final,) = (event for event in events if isinstance(event, Final))
    assert "\U0001f600" not in final.text


# --- the second pass --------------------------------------------------------------------------------


def finals_of(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final)]


def test_the_second_pass_has_the_last_word(make_engine: Callable[..., Engine]) -> None:
    engine, outcomes = make_engine(), list[str]()
    engine.second_pass_ended = outcomes.append
    speaker = engine._final_pass._decoder = Speaker("Much", "better.")
    events = converse(engine, engine.open(hasty(chunk_ms=100)), TWO_UTTERANCES)
    assert outcomes == ["heard"] * 2
    assert finals_of(events) == ["Much better."] * 2
    first = next(event for event in events if isinstance(event, Final))
    assert first.start_ms == 0  # 0.3 s less the lead of up to 0.5 s
    assert [word.end_ms for word in first.words] == [100, 200]
    assert events[-1] == Closed(3_500, 2, 4)
    assert np.array_equal(speaker.heard[0], TWO_UTTERANCES[: len(speaker.heard[0])])


def test_without_a_second_pass_none_is_run(make_engine: Callable[..., Engine]) -> None:
    engine, outcomes = make_engine(), list[str]()
    engine.second_pass_ended = outcomes.append
    speaker = engine._final_pass._decoder = Speaker("never")
    assert len(finals_of(converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES))) == 2
    assert speaker.heard == outcomes == []


def test_where_too_many_wait_the_streaming_text_stands(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, outcomes = make_engine(), list[str]()
    engine.second_pass_ended = outcomes.append
    expected = finals_of(converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES))
    monkeypatch.setattr(final_pass, "MOST_PENDING", 0)
    events = converse(engine, engine.open(hasty(chunk_ms=400)), TWO_UTTERANCES)
    assert finals_of(events) == expected != []
    assert outcomes == ["skipped"] * 2


@pytest.mark.parametrize("threaded", [False, True])
def test_a_failing_second_pass_keeps_the_streaming_text(
    make_engine: Callable[..., Engine], threaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(samples: Tensor, guidance: Guidance, draft: str, context: Context) -> list[TimedWord]:
        raise RuntimeError("out of order")

    engine, outcomes = make_engine(threaded=threaded), list[str]()
    engine.second_pass_ended = outcomes.append
    expected = finals_of(converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES))
    engine._final_pass._decoder.transcribe = fail
    session = engine.open(hasty(chunk_ms=400))
    events = converse(engine, session, TWO_UTTERANCES)
    engine.close()
    events += session.events()
    assert finals_of(events) == expected != []
    assert isinstance(events[-1], Closed)
    assert "out of order" in caplog.text and outcomes == ["failed"] * 2


def test_a_slow_second_pass_holds_back_what_follows_it(make_engine: Callable[..., Engine]) -> None:
    engine, gate = make_engine(threaded=True), threading.Event()

    class SlowSpeaker(Speaker):
        def transcribe(
            self, samples: Tensor, guidance: Guidance, draft: str, context: Context
        ) -> list[TimedWord]:
            assert gate.wait(timeout=60)
            return super().transcribe(samples, guidance, draft, context)

    engine._final_pass._decoder = SlowSpeaker("At", "last.")
    session = engine.open(hasty(chunk_ms=400))
    events = converse(engine, session, TWO_UTTERANCES)
    assert isinstance(events[-1], Endpoint)
    assert {event.utterance for event in events} == {0}
    assert not engine.idle
    gate.set()
    engine.close()
    assert engine.idle
    rest = session.events()
    assert finals_of(rest) == ["At last."] * 2
    assert isinstance(rest[0], Final)
    assert isinstance(rest[-1], Closed)


def test_who_has_no_time_gets_the_streaming_text_as_finals(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of second passes that wait or are under way, and of utterances that end later; what is late is not told."""
    engine, gate, begun, outcomes = make_engine(threaded=True), threading.Event(), threading.Event(), []
    plain = finals_of(converse(engine, engine.open(hasty(chunk_ms=400, final_pass="none")), TWO_UTTERANCES))
    engine.second_pass_ended = outcomes.append

    class Slow(Speaker):
        def transcribe(
            self, samples: Tensor, guidance: Guidance, draft: str, context: Context
        ) -> list[TimedWord]:
            begun.set()
            assert gate.wait(10)
            return super().transcribe(samples, guidance, draft, context)

    slow = engine._final_pass._decoder = Slow("too", "late")
    session, later = engine.open(hasty(chunk_ms=400)), engine.open(hasty(chunk_ms=400))
    assert finals_of(converse(engine, session, TWO_UTTERANCES)) == []
    assert begun.wait(10)
    engine.hurry()
    *_, closed = rest = session.events()
    assert finals_of(rest) == plain
    assert isinstance(closed, Closed)
    assert finals_of(converse(engine, later, TWO_UTTERANCES)) == plain
    gate.set()
    engine.close()
    assert session.events() == later.events() == []
    assert len(slow.heard) == 1
    assert outcomes == ["skipped"] * 4


# --- admission and failure --------------------------------------------------------------------------


def test_a_full_house_takes_nobody_more(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(2)
    first, _ = engine.open(NO_SECOND_PASS), engine.open(NO_SECOND_PASS)
    assert engine.free_slots == 0
    with pytest.raises(Full, match="try again"):
        engine.open(NO_SECOND_PASS)
    first.abort()
    assert not engine.idle
    assert not engine.step()
    assert engine.free_slots == 1
    assert first not in engine.sessions
    expected = converse(fresh := make_engine(1), fresh.open(NO_SECOND_PASS), TWO_UTTERANCES)
    assert converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES) == expected


def test_who_aborts_in_mid_speech_hears_no_more(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(1)
    session = engine.open(hasty(chunk_ms=400))
    session.receive_samples(TWO_UTTERANCES)
    for _ in range(3):
        assert engine.step()
    session.abort()
    work_off(engine)
    assert session.events() == []
    assert engine.free_slots == 1


def test_after_a_failure_everybody_is_told_and_the_engine_goes_on(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(2)
    expected = converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    sessions = [engine.open(NO_SECOND_PASS) for _ in range(2)]
    for session in sessions:
        session.receive_samples(TWO_UTTERANCES)

    def broken(*_: Any) -> None:
        raise RuntimeError("no such device")

    with monkeypatch.context() as patched:
        patched.setattr(engine._recognizer, "step", broken)
        with pytest.raises(RuntimeError) as error:
            work_off(engine)
    engine.fail(error.value)
    for session in sessions:
        (fault,) = session.events()
        assert isinstance(fault, Fault)
        assert fault.fatal
        assert "RuntimeError" in fault.message
        assert session.closed
    assert engine.free_slots == 2
    assert converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES) == expected


def test_waiting_ends_when_audio_arrives(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    session = engine.open(NO_SECOND_PASS)
    told_of: list[int] = []
    session.notify = lambda: told_of.append(1)
    session.receive_samples(TWO_UTTERANCES)
    engine.wait(timeout=60)  # returns at once, or the test takes a minute
    assert engine.step()
    assert told_of


# --- with real ears, and a real second pass ---------------------------------------------------------


@pytest.fixture
def real_engine(tiny: Whisper, tiny_en: Whisper) -> Engine:
    """The streaming text is nonsense, the finals are not."""
    return Engine(WhisperRecognizer(tiny), tiny_en, "tiny.en", 2, final_pass_thread=False)


def test_half_a_minute_of_silence_has_no_words(real_engine: Engine) -> None:
    session = real_engine.open(SessionOptions(chunk_ms=1000))
    hiss = np.random.default_rng(0).standard_normal(30 * RATE).astype(np.float32) * 1e-3
    assert converse(real_engine, session, hiss, packet=RATE) == [Closed(30_000, 0, 0)]


def test_a_president_is_understood(real_engine: Engine, jfk: Tensor) -> None:
    session = real_engine.open(SessionOptions(chunk_ms=1000))
    events = converse(real_engine, session, jfk.numpy(), packet=RATE)
    text = " ".join(finals_of(events)).lower()
    assert "fellow americans" in text
    assert "ask not what your country can do for you" in text
    assert events[-1] == Closed(11_000, len(finals_of(events)), len(text.split()))


def test_each_session_has_its_own_delay(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    patient = engine.open(hasty(chunk_ms=400, final_pass="none", delay_ms=600))
    quick = engine.open(hasty(chunk_ms=400, final_pass="none", delay_ms=0))
    for session in (patient, quick):
        session.receive_samples(speech((0.0, 1.0), seconds=1.2))
    work_off(engine)
    first, begin = [engine._state.search.rows[stream.row].prefix for stream in engine._streams], 50363
    assert [prefix[-1] - begin for prefix in first] == [30, 0]


@pytest.mark.parametrize("delay_ms", [0, 600])
@pytest.mark.parametrize("chunk_ms", [100, 400, 1000])
def test_the_last_words_have_time_to_be_said(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, chunk_ms: int, delay_ms: int
) -> None:
    """However a window ends, by a pause shorter than the delay or by its client, it hears the delay to its end."""
    engine = make_engine(1)
    heard: list[float] = []  # by the windows, in seconds of the stream, when they are settled
    settle = engine._recognizer.settle

    def watched(state, row):
        start = engine._streams[0].utterances.start / RATE
        heard.append(start + (int(state.search.decoder.audio.lengths[row]) + 1) / 50)
        return settle(state, row)

    monkeypatch.setattr(engine._recognizer, "settle", watched)
    session = engine.open(hasty(chunk_ms=chunk_ms, final_pass="none", delay_ms=delay_ms))
    converse(engine, session, speech((0.0, 2.0), (3.0, 4.0), seconds=4.0))
    assert len(heard) == 2
    due_s = (FLUSH_MS + delay_ms) / 1000
    for heard_s, spoken_s in zip(heard, (2.0, 4.0), strict=True):
        assert due_s - 1e-9 <= heard_s - spoken_s < due_s + 2 * chunk_ms / 1000
