"""When windows open, turn and end, over scripted probabilities of speech.

Sample i of every stream is the number i, so a window's samples tell where they come from.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import SAMPLE_RATE, samples_in
from streaming.endpoint import WINDOW, EndpointOptions
from streaming.utterance import HURRY_AT, HURRY_PAUSE, Utterances, Verdict, quietest

OPTIONS = EndpointOptions(longest_ms=10_000)
PAUSE_MS = 700
Span = tuple[float, float]  # seconds


@dataclass
class Window:
    start: int
    audio: np.ndarray
    fed: list[np.ndarray]  # what the recogniser heard of it
    how: Verdict | None = None
    seen: int = 0  # audio that had come when it ended


@dataclass
class Stream:
    """A stream of numbered samples, cut by `Utterances` as the engine uses it."""

    chunk_ms: int = 300
    pause_ms: int = PAUSE_MS
    windows: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chunk = samples_in(self.chunk_ms)
        self.utterances = Utterances(self.chunk, samples_in(self.pause_ms), OPTIONS)

    def hear(self, speech: np.ndarray) -> "Stream":
        """`speech`: a probability for every window of 32 ms."""
        for stop in range(self.chunk, len(speech) * WINDOW + 1, self.chunk):
            start = stop - self.chunk
            chunk = np.arange(start, stop, dtype=np.float32)
            feed, verdict = self.utterances.hear(chunk, speech[start // WINDOW : stop // WINDOW])
            if feed is None:
                assert verdict is Verdict.GO_ON
                continue
            if feed.fresh:
                self.windows.append(Window(self.utterances.start, np.zeros(0), []))
            self.windows[-1].fed.append(feed.samples)
            if verdict is not Verdict.GO_ON:
                self._end(verdict, stop)
        return self

    def _end(self, verdict: Verdict, seen: int) -> None:
        window = self.windows[-1]
        window.how, window.seen, window.audio = verdict, seen, self.utterances.audio()
        if verdict is Verdict.END:
            self.utterances.end()
        else:
            window.audio, feed = self.utterances.turn()
            self.windows.append(Window(self.utterances.start, np.zeros(0), [feed.samples]))


def spoken(seconds: float, *spans: Span) -> np.ndarray:
    """Probabilities that are 1 within the spans and 0 elsewhere."""
    middle = (np.arange(int(seconds * SAMPLE_RATE / WINDOW)) + 0.5) * WINDOW / SAMPLE_RATE
    return sum((np.where((start < middle) & (middle < end), 1.0, 0.0) for start, end in spans), 0 * middle)


def test_a_click_is_no_speech() -> None:
    clicks = np.zeros(300)
    clicks[::2] = 1
    assert not Stream().hear(clicks).windows


@pytest.mark.parametrize("at", [3, 8, 9, 27])
def test_two_loud_windows_are_speech_even_across_chunks(at: int) -> None:
    speech = np.zeros(60)
    speech[at : at + 2] = 0.6
    assert len(Stream().hear(speech).windows) == 1


def test_what_is_below_the_onset_begins_nothing_but_goes_on() -> None:
    speech = np.full(200, 0.4)
    assert not Stream().hear(speech).windows
    speech[:2] = 0.9
    (window,) = Stream().hear(speech).windows
    assert window.how is None


def test_a_window_begins_with_its_lead() -> None:
    (window,) = Stream(chunk_ms=100).hear(spoken(4.0, (2.0, 3.0))).windows
    onset_chunk = 2 * SAMPLE_RATE
    assert window.start == onset_chunk - samples_in(OPTIONS.lead_ms)
    assert window.fed[0][0] == window.start
    assert len(window.fed[0]) == samples_in(OPTIONS.lead_ms) + samples_in(100)


def test_a_stream_that_begins_with_speech_has_no_lead() -> None:
    (window,) = Stream().hear(spoken(3.0, (0.0, 2.0))).windows
    assert window.start == 0


def test_a_window_ends_when_silence_has_lasted() -> None:
    (window,) = Stream(chunk_ms=100).hear(spoken(4.0, (1.0, 2.0))).windows
    assert window.how is Verdict.END
    silence = window.seen - 2 * SAMPLE_RATE
    assert samples_in(PAUSE_MS) - WINDOW < silence < samples_in(PAUSE_MS + 100) + WINDOW


def test_only_silence_leads_the_next_window() -> None:
    """What has been said once is not said again, however soon speech goes on."""
    first, second = Stream(100, pause_ms=100).hear(spoken(4.0, (1.0, 2.0), (2.3, 4.0))).windows
    assert first.how is Verdict.END
    assert 2 * SAMPLE_RATE - WINDOW <= second.start < int(2.3 * SAMPLE_RATE)


def test_a_pause_shorter_than_that_ends_nothing() -> None:
    (window,) = Stream(chunk_ms=100).hear(spoken(4.0, (1.0, 2.0), (2.6, 4.0))).windows
    assert window.how is None


def test_near_its_longest_a_window_is_in_a_hurry_to_end() -> None:
    hurry_s = HURRY_AT * OPTIONS.longest_ms / 1000
    pause_s = HURRY_PAUSE * PAUSE_MS / 1000 + 0.15
    early = spoken(9.0, (0.0, hurry_s - 1.0), (hurry_s - 1.0 + pause_s, 9.0))
    late = spoken(9.0, (0.0, hurry_s + 0.2), (hurry_s + 0.2 + pause_s, 9.0))
    assert [window.how for window in Stream(chunk_ms=100).hear(early).windows] == [None]
    assert [window.how for window in Stream(chunk_ms=100).hear(late).windows] == [Verdict.END, None]


def test_a_full_window_turns_and_goes_on() -> None:
    stream = Stream(chunk_ms=300).hear(spoken(25.0, (0.0, 25.0)))
    assert len(stream.windows) > 2
    assert {window.how for window in stream.windows[:-1]} == {Verdict.TURN}
    for window, following in pairwise(stream.windows):
        assert window.start + len(window.audio) == following.start
        rest = window.seen - following.start  # the turned window hears again what lies behind the cut
        assert SAMPLE_RATE <= rest <= 8.4 * SAMPLE_RATE
        assert rest % stream.chunk == 0
        assert len(following.fed[0]) == rest


def test_a_turn_cuts_where_it_is_quietest() -> None:
    noise = np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE)
    noise[30_000:32_000] *= 0.01
    assert 30_000 < quietest(noise, 0, len(noise)) < 32_000
    assert not 30_000 < quietest(noise, 0, 20_000) < 32_000
    assert 0 <= quietest(noise, -5, 100) < 100


def test_what_led_before_leads_behind_a_bookmark() -> None:
    before = Stream(chunk_ms=100).hear(spoken(3.0, (1.0, 2.0))).utterances
    assert not before.open
    n_lead = before.n_lead
    assert n_lead == samples_in(OPTIONS.lead_ms)
    said = np.zeros(1_000, np.float32)
    lead = np.arange(before.now - n_lead, before.now, dtype=np.float32)
    after = Utterances(before.chunk, before.pause, OPTIONS)
    assert after.recall(np.concatenate([said, lead]), 1_000 + n_lead, n_lead) is None
    for utterances in (before, after):
        feed, _ = utterances.hear(np.zeros(before.chunk, np.float32), np.ones(3))
        assert feed.fresh
        assert np.array_equal(feed.samples[:n_lead], lead)
    assert after.start == 1_000


def test_no_more_leads_than_would_have() -> None:
    """A client that keeps of a bookmark only what it knows sends words of the final in place of silence."""
    utterances = Utterances(samples_in(300), samples_in(PAUSE_MS), OPTIONS)
    audio = np.arange(samples_in(12_000), dtype=np.float32)
    assert utterances.recall(audio, len(audio), len(audio)) is None
    assert utterances.n_lead == samples_in(300)  # whole chunks, lead_ms at most
    feed, _ = utterances.hear(np.zeros(utterances.chunk, np.float32), np.ones(9))
    assert np.array_equal(feed.samples[: samples_in(300)], audio[-samples_in(300) :])


def test_behind_a_cut_a_window_is_open() -> None:
    utterances = Utterances(1_600, samples_in(PAUSE_MS), OPTIONS)
    feed = utterances.recall(np.ones(16_000, np.float32), 1_000, 0)
    assert (feed.fresh, len(feed.samples)) == (True, 15_000)
    assert (utterances.start, utterances.now) == (1_000, 16_000)
    feed, _ = utterances.hear(np.zeros(1_600, np.float32), np.zeros(3))
    assert not feed.fresh


def test_rewinding_takes_back_silence() -> None:
    stream = Stream().hear(spoken(3.0))
    stream.utterances.rewind(16_000)
    assert stream.utterances.now == 16_000
    feed, _ = stream.utterances.hear(np.zeros(stream.chunk, np.float32), np.ones(9))
    assert feed.fresh
    assert stream.utterances.start == 16_000  # the lead is gone with it


@st.composite
def conversations(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Stretches of speech and silence, some of them long."""
    lengths = draw(st.lists(st.integers(1, 60) | st.integers(100, 500), min_size=1, max_size=12))
    levels = [0.0, 0.2, 0.4, 0.9]
    speech = np.concatenate([np.full(n, draw(st.sampled_from(levels))) for n in lengths])
    return speech, draw(st.sampled_from([100, 300, 560, 1000])), draw(st.sampled_from([100, 700, 2000]))


@settings(max_examples=60)
@given(conversations())
def test_no_sample_is_lost_or_doubled(conversation: tuple[np.ndarray, int, int]) -> None:
    speech, chunk_ms, pause_ms = conversation
    stream = Stream(chunk_ms, pause_ms).hear(speech)
    n_heard = len(speech) * WINDOW // stream.chunk * stream.chunk
    if stream.utterances.open:
        stream.windows[-1].audio = stream.utterances.audio()
    windows = stream.windows
    times_covered = np.zeros(n_heard, dtype=int)
    for window in windows:
        expected = np.arange(window.start, window.start + len(window.audio))
        assert np.array_equal(window.audio, expected)
        assert np.array_equal(np.concatenate(window.fed)[: len(window.audio)], expected)
        assert len(np.concatenate(window.fed)) <= samples_in(OPTIONS.longest_ms)
        times_covered[expected] += 1
    # a run of speech is covered from its beginning to its end, and only silence may be heard by two windows
    in_speech = np.repeat(speech >= OPTIONS.onset, WINDOW)[:n_heard]
    loud = np.flatnonzero((speech[1:] >= OPTIONS.onset) & (speech[:-1] >= OPTIONS.onset)) + 1
    for second in loud[(loud + 1) * WINDOW <= n_heard]:
        assert (times_covered[(second - 1) * WINDOW : (second + 1) * WINDOW] >= 1).all()
    assert times_covered[in_speech].max(initial=0) <= 1
    assert times_covered.max(initial=0) <= 2
