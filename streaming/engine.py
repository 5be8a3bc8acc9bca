"""Many sessions, one model: slots, dynamic batching, admission. One thread calls `step`.

A step is schedule -> run -> postprocess: the sessions that have a chunk ready, one batched pass over them, and the
events that come of it.
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from asr.audio import SAMPLE_RATE, Samples, samples_in
from asr.biasing import Guidance
from asr.cache import KVCache
from asr.checkpoint import Whisper
from asr.device import FIRST, own_stream
from asr.offline import OfflineDecoder
from asr.search import Hypothesis
from asr.timing import TimedWord
from streaming import policy
from streaming.context import Heard
from streaming.endpoint import WINDOW, EndpointOptions, VoiceActivity
from streaming.events import Bookmark, Endpoint, Fault, Finalized
from streaming.final_pass import FinalPass, Rescoring
from streaming.finals import Ended, Finals
from streaming.memory import give_back
from streaming.recognizer import Recognizer
from streaming.replay import Replay, settled_tokens
from streaming.session import FINAL_PASSES, Full, Session, SessionOptions, no_such_pass
from streaming.stream import Stream
from streaming.utterance import Feed, Utterances, Verdict

WARM_SESSIONS = 8  # more add no shape that is not soon met
POLL_S = 0.01  # between two looks for a second pass
STEPS_TO_TRIM = 256  # a minute or so
LEAST_SPEECH = SAMPLE_RATE // 2  # that the second pass is asked about though the stream heard no word in it


@dataclass(frozen=True)
class _Work:
    """One stream's part of a step."""

    stream: Stream
    feed: Feed
    verdict: Verdict
    carried: tuple[int, ...] = ()  # settled tokens that the fresh window begins with


class Engine:
    """Serves up to `slots` sessions with one model.

    Args:
        recognizer: hears the stream.
        base: the unmodified model, for the second pass.
        name: what clients call the model.
        final_pass_thread: False runs second passes within `step`, so that their cost can be measured.

    Attributes:
        stepped: called after every batch with its seconds and the number of its streams.
        second_pass_ended: called for every final that wants a second pass with what became of it, one of OUTCOMES.
    """

    def __init__(
        self,
        recognizer: Recognizer[Any],
        base: Whisper,
        name: str,
        slots: int = 32,
        *,
        final_pass_thread: bool = True,
        endpoint: EndpointOptions | None = None,
    ) -> None:
        self.model_name = name
        self.slots = slots
        self.endpoint = endpoint or EndpointOptions()
        self._recognizer = recognizer
        self._vocabulary = recognizer.vocabulary
        self._second_vocabulary = base.vocabulary
        self._device = base.device
        self._voice = VoiceActivity()
        self._state = self._recognizer.init_state(slots)
        self._voice_state = self._voice.init_state(slots)
        self._final_pass = FinalPass(OfflineDecoder(base), threaded=final_pass_thread)
        self.stepped: Callable[[float, int], None] = lambda seconds, rows: None
        self.second_pass_ended: Callable[[str], None] = lambda outcome: None
        self._finals = Finals(self._final_pass, lambda outcome: self.second_pass_ended(outcome))
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._free = list(range(slots))
        self._streams: list[Stream] = []
        self._n_steps = 0

    # -- any thread

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def final_passes(self) -> tuple[str, ...]:
        """Those that a session may choose."""
        return tuple(name for name in FINAL_PASSES if name != "rescore" or self._recognizer.rescores)

    @property
    def sessions(self) -> list[Session]:
        with self._lock:
            return [stream.session for stream in self._streams]

    def open(self, options: SessionOptions, *, notify: Callable[[], None] | None = None) -> Session:
        """A new session.

        Raises:
            Full: every slot is taken.
            ValueError: the model cannot be asked for such a second pass.
        """
        if options.final_pass not in self.final_passes:
            raise ValueError(no_such_pass(self.model_name, options.final_pass, self.final_passes))
        second = Guidance.of(
            self._second_vocabulary, options.beam, options.prompt, options.hotwords, options.hotword_boost
        )
        guidance = self._recognizer.guidance(options, second)
        with self._lock:
            if not self._free:
                raise Full(f"all {self.slots} slots are taken; try again later")
            row = self._free.pop()
            session = Session(options, self._wake.set, notify)
            utterances = Utterances(samples_in(options.chunk_ms), samples_in(options.pause_ms), self.endpoint)
            self._streams.append(Stream(session, row, utterances, guidance, second, Replay(options.resume)))
        return session

    @property
    def idle(self) -> bool:
        """Whether nothing is ready and no second pass is under way."""
        return not self._final_pass.pending and not any(s.ready or s.aborted for s in self.sessions)

    def wait(self, timeout: float) -> None:
        """Blocks until audio may have arrived, at most `timeout` seconds."""
        self._wake.wait(timeout)
        self._wake.clear()

    def hurry(self) -> None:
        """From now on finals are the streaming text, also those whose second pass is under way."""
        self._final_pass.hurry()

    def close(self) -> None:
        """Finishes second passes under way."""
        self._final_pass.close()

    # -- the worker's thread

    def warm_up(self, speech: Samples, options: SessionOptions) -> None:
        """Hears `speech` (n,) in one session, then in two, four and eight at once; leaves nothing of it behind.

        What is loaded, compiled or given memory at its first use is there when clients come; before the first of
        them. Speech must begin at once, and last for eight chunks.

        The thread that calls this is to step the engine: on a GPU it has from then on a stream of its own, which goes
        before that of second passes.
        """
        own_stream(self._device, FIRST)
        sessions: list[Session] = []
        most, n = min(self.slots, WARM_SESSIONS), samples_in(options.chunk_ms)
        for start in range(0, n * WARM_SESSIONS, n):
            more = min(max(1, len(sessions)), most - len(sessions))
            sessions += [self.open(options) for _ in range(more)]
            for session in sessions:
                session.receive_samples(speech[start : start + n])
            self.step()
        first, *others = sessions
        for session in others:
            session.abort()
        rows = torch.tensor([stream.row for stream in self._current()])
        first.finish()
        while not first.closed:
            if not self.step():
                self.wait(POLL_S)
            first.events()
        for cache in _caches(self._state):
            cache.touch(rows)  # these are the slots that are taken first

    @torch.no_grad()
    def step(self) -> bool:
        """One batch; False when nothing was ready."""
        started = time.perf_counter()
        self._release([s for s in self._current() if s.session.aborted])
        taken = [(s, *piece) for s in self._current() if (piece := s.session.take(s.wanted))]
        work, rests, chunks = [], [], []
        for stream, samples, ending in taken:
            stream.received += len(samples)
            if stream.replay.missing:
                again, samples = stream.replay.gather(samples, ending)
                if again is not None:
                    work += self._recall(stream, again)
            if ending:
                rests.append((stream, samples))
            elif len(samples):
                chunks.append((stream, samples))
        self._run(work + self._schedule(chunks))
        for stream, rest in rests:
            self._finish_utterance(stream, rest)
        for stream, _, _ in taken:
            stream.session.decoded(stream.received)
            stream.session.tell()
        if not taken:
            return False
        self.stepped(time.perf_counter() - started, len(taken))
        self._n_steps += 1
        if self._n_steps % STEPS_TO_TRIM == 0:
            give_back()
        return True

    def fail(self, error: BaseException) -> None:
        """Ends every session after `step` has raised; the engine can serve new ones."""
        message = f"the recogniser failed ({type(error).__name__}); open a new session"
        for stream in self._current():
            stream.session.put(Fault("internal", message, fatal=True))
            stream.session.tell()
        self._release(self._current())

    def _current(self) -> list[Stream]:
        with self._lock:
            return list(self._streams)

    def _recall(self, stream: Stream, again: np.ndarray) -> list[_Work]:
        """Goes on where a lost session was, of which `again` (n,) was heard: what the recogniser must hear."""
        replay = stream.replay
        stream.before = Heard.again(again[: replay.n_finished], replay.said)
        feed = stream.utterances.recall(again, replay.n_finished, replay.n_lead)
        return [_Work(stream, feed, Verdict.GO_ON, self._carried(replay.carried))] if feed else []

    def _carried(self, settled: str) -> tuple[int, ...]:
        """The tokens that a window begins with behind a cut, be it in this session or in one that goes on with it."""
        return self._recognizer.carried(settled_tokens(settled, self._vocabulary), 0)

    def _schedule(self, taken: list[tuple[Stream, np.ndarray]]) -> list[_Work]:
        """Who speaks? Chunks -> what the recogniser must hear."""
        work = []
        for group in _by_length(taken):
            rows = torch.tensor([stream.row for stream, _ in group])
            samples = torch.from_numpy(np.stack([samples for _, samples in group]))
            speech, _ = self._voice.step(samples, self._voice_state, rows)
            for (stream, chunk), probabilities in zip(group, speech, strict=True):
                feed, verdict = stream.utterances.hear(chunk, probabilities.numpy())
                if feed is not None:
                    work.append(_Work(stream, feed, verdict))
        return work

    def _run(self, work: list[_Work]) -> None:
        """Feeds the recogniser in batches of streams in the same phase, then acts on each verdict."""
        groups: dict[tuple[int, int, tuple[int, ...]], list[_Work]] = defaultdict(list)
        for item in work:
            stream = item.stream
            phase = () if item.feed.fresh else self._recognizer.phase(self._state, stream.row)
            groups[stream.utterances.chunk, len(item.feed.samples), phase].append(item)
        turned: list[_Work] = []
        for group in groups.values():
            rows = torch.tensor([item.stream.row for item in group])
            if group[0].feed.fresh:
                chunk = group[0].stream.session.options.chunk_frames
                carried = [list(item.carried) for item in group]
                guidance = [item.stream.guidance for item in group]
                self._recognizer.reset(self._state, rows, chunk, carried, guidance)
            samples = torch.from_numpy(np.stack([item.feed.samples for item in group]))
            hypotheses, _ = self._recognizer.step(samples, self._state, rows)
            for item, hypothesis in zip(group, hypotheses, strict=True):
                self._show(item.stream, hypothesis)
                if item.verdict is Verdict.END:
                    self._end(item.stream)
                elif item.verdict is Verdict.TURN:
                    turned.append(self._turn(item.stream))
        if turned:
            self._run(turned)

    def _show(self, stream: Stream, hypothesis: Hypothesis) -> None:
        assert stream.utterances.start is not None
        begin_ms, audio_ms = stream.ms(stream.utterances.start), stream.ms(stream.heard)
        partial, stream.shown = policy.partial(
            hypothesis, stream.shown, self._vocabulary, stream.utterance, begin_ms, audio_ms, stream.delay_s
        )
        if partial is not None:
            stream.session.put(partial)

    def _finish_utterance(self, stream: Stream, rest: np.ndarray) -> None:
        """The client ends the utterance: the rest of its audio, and silence that completes its last chunk."""
        utterances, chunk, session = stream.utterances, stream.utterances.chunk, stream.session
        n_chunks = -(-(len(rest) + WINDOW) // chunk)  # the last window of voice activity is complete, too
        padded = np.zeros(n_chunks * chunk, np.float32)
        padded[: len(rest)] = rest
        for start in range(0, len(padded), chunk):
            self._run(self._schedule([(stream, padded[start : start + chunk])]))
        if utterances.open:
            self._end(stream)
        utterances.rewind(stream.received)
        self._forget_voices(stream)
        if session.drained:
            session.close()
            self._release([stream])
        else:
            session.put(Finalized(stream.ms(stream.received)))

    def _end(self, stream: Stream) -> None:
        """Lets the last words out, settles the open window, and asks for its second pass."""
        utterances = stream.utterances
        for hypothesis in self._recognizer.flush(
            self._state, stream.row, stream.guidance, behind=utterances.silence
        ):
            self._show(stream, hypothesis)
        self._count_waits(stream)
        samples, start, end = utterances.audio(), utterances.start, stream.heard
        assert start is not None
        spoken, again = utterances.spoken, self._finals.wants_second_pass(stream)
        rescoring = self._rescoring(stream, samples)
        hypothesis = self._recognizer.settle(self._state, stream.row)
        self._show(stream, hypothesis)
        utterances.end()
        self._forget_voices(stream)
        words: list[TimedWord] = []
        if stream.shown.text:
            stream.session.put(Endpoint(stream.utterance, stream.ms(end)))
            if again:  # it will know the times better, without making other streams wait
                words = policy.rough_words(hypothesis, self._vocabulary, stream.delay_s)
            else:
                words = self._recognizer.words(self._state, stream.row, samples)
        elif not (again and stream.full_pass and spoken >= LEAST_SPEECH):
            return  # else the second pass may hear what the stream did not
        # Where the client asked for the end, the silence that completed the last chunk leads nothing.
        n_lead = utterances.n_lead if utterances.now == end else 0
        bookmark = Bookmark(stream.ms(end), stream.ms(end - n_lead), stream.ms(end))
        self._finals.end(stream, Ended(words, samples, start, bookmark, rescoring))

    def _turn(self, stream: Stream) -> _Work:
        """Ends a full window in mid-speech; what was said behind the cut is heard again in the next one."""
        utterances = stream.utterances
        assert utterances.start is not None
        start, window = utterances.start, utterances.audio()
        before, feed = utterances.turn()
        self._forget_voices(stream)
        self._recognizer.flush(self._state, stream.row, stream.guidance, behind=len(feed.samples))
        self._count_waits(stream)
        words = self._recognizer.words(self._state, stream.row, window)
        said = self._recognizer.said(self._state, stream.row)
        cut_s = len(before) / SAMPLE_RATE
        rescoring = self._rescoring(stream, window, cut_s)
        kept = _said_before(cut_s, words)
        n_tokens = sum(word.n_tokens for word in kept)
        carried = list(self._recognizer.carried(said, n_tokens))
        settled = policy.carried(self._vocabulary.text(carried))
        if kept:
            text = self._vocabulary.text(list(said.tokens[:n_tokens])).strip()
            stream.session.put(policy.whole(text, stream.utterance, stream.ms(stream.heard)))
            cut_ms = stream.ms(min(utterances.start, stream.heard))
            bookmark = Bookmark(cut_ms, cut_ms, stream.ms(stream.heard), settled)
            self._finals.end(stream, Ended(kept, before, start, bookmark, rescoring))
        return _Work(stream, feed, Verdict.GO_ON, self._carried(settled))

    def _count_waits(self, stream: Stream) -> None:
        """Of the window that ends; what is heard again behind a cut counts in both."""
        waits = self._recognizer.waits(self._state, stream.row)
        if waits is not None:
            stream.session.waited(waits)

    def _forget_voices(self, stream: Stream) -> None:
        """Voice activity begins anew: what is heard behind a final does not depend on what was before it.

        So a session that resumes there goes on as this one does (silero-vad remembers tens of seconds).
        """
        self._voice.reset(self._voice_state, torch.tensor([stream.row]))

    def _rescoring(self, stream: Stream, samples: np.ndarray, until_s: float = math.inf) -> Rescoring | None:
        """How hypotheses of the window that ends now are chosen from, if so they are; words `until_s` alone."""
        if stream.session.options.final_pass != "rescore" or not self._finals.wants_second_pass(stream):
            return None
        choose = self._recognizer.rescoring(self._state, stream.row, samples)
        return choose and (lambda: _said_before(until_s, choose()))

    def _release(self, streams: list[Stream]) -> None:
        with self._lock:
            for stream in streams:
                self._streams.remove(stream)
                self._free.append(stream.row)
        if streams:
            self._voice.reset(self._voice_state, torch.tensor([stream.row for stream in streams]))


def _said_before(cut_s: float, words: list[TimedWord]) -> list[TimedWord]:
    return [word for word in words if (word.start + word.end) / 2 < cut_s]


def _caches(state: Any) -> Iterator[KVCache]:
    """Those in a recogniser's state."""
    if isinstance(state, KVCache):
        yield state
    elif is_dataclass(state):
        for each in fields(state):
            yield from _caches(getattr(state, each.name))


def _by_length(taken: list[tuple[Stream, np.ndarray]]) -> list[list[tuple[Stream, np.ndarray]]]:
    groups: dict[int, list[tuple[Stream, np.ndarray]]] = defaultdict(list)
    for item in taken:
        groups[len(item[1])].append(item)
    return list(groups.values())
