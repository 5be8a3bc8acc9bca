"""The transducer as a recogniser, and behind an engine: what was waited for is not lost when a window ends."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import streaming.engine
from asr.audio import samples_in
from asr.biasing import Guidance
from asr.checkpoint import Whisper
from asr.mel import LogMel
from asr.transducer.model import load_head, save_head
from asr.transducer.rescorer import Rescorer
from asr.transducer.schedule import Waits, completion
from kernels.int8_linear import padded
from streaming.endpoint import EndpointOptions
from streaming.engine import Engine
from streaming.events import Endpoint, Final, Partial
from streaming.recognizer import FLUSH_MS, WhisperRecognizer
from streaming.session import SessionOptions
from streaming.transducer import FRONT_END, TransducerRecognizer, TransducerState
from tests.asr.test_layers import Rows
from tests.contract import CHECKS, Check, Outputs, Subject, fill_with_nan, random_noises
from tests.streaming.test_engine import (
    NO_SECOND_PASS,
    RATE,
    SHORT,
    TWO_UTTERANCES,
    EngineSubject,
    LoudVoice,
    Speaker,
    converse,
    finals_of,
    hasty,
    speech,
    work_off,
)
from tests.streaming.transducers import random_transducer, tiny_transducer

FEATURE, FRONT = 640, 200  # samples of a feature, and beyond it


class TransducerSubject(Subject):
    """Each piece that is said, and when it could be."""

    def __init__(self) -> None:
        self.stage = TransducerRecognizer(tiny_transducer())
        self.n, self.longest = 30_000, 9_600

    def inputs(self, rows: int, seed: int) -> Tensor:
        return random_noises(rows, self.n, seed)

    def step(self, x: Tensor, state: TransducerState, rows: Tensor) -> list[Outputs]:
        before = [len(self.stage.said(state, row).tokens) for row in rows.tolist()]
        hypotheses, _ = self.stage.step(x, state, rows)
        return [
            list(zip(said.tokens, said.frames, strict=True))[n:]
            for said, n in zip(hypotheses, before, strict=True)
        ]

    def due(self, i: int, output: tuple[int, int]) -> int:
        """With the last sample that the newest feature it waited for needs."""
        return output[1] // 2 * FEATURE + FRONT

    def poison(self, state: TransducerState) -> None:
        fill_with_nan(state)
        for layer in state.executor.layers:
            fill_with_nan(layer)


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check(TransducerSubject())


@pytest.mark.parametrize(("policy", "waiting"), [("layerwise:2,1", 3), ("layerwise:6,6", 12)])
def test_a_head_streams_under_the_policy_that_it_was_taught(
    tmp_path: Path, policy: str, waiting: int
) -> None:
    save_head(tiny_transducer(), tmp_path, {"policy": policy})
    recognizer = TransducerRecognizer(load_head(tiny_transducer().trunk.encoder, tmp_path))
    state, row = recognizer.init_state(1), torch.tensor([0])
    recognizer.reset(state, row)
    recognizer.step(random_noises(1, 20 * FEATURE + FRONT, seed=1), state, row)
    assert state.search.rows[0].n_frames == 20 - waiting


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("n", [FEATURE * 40, FEATURE * 40 + 1, FEATURE * 41 - 1])
def test_a_flushed_window_has_said_what_the_whole_of_it_says(n: int, beam: int) -> None:
    """The offline pass under the schedulers' own masks, spans ending with the last feature that has any audio."""
    model = tiny_transducer()
    recognizer, row = TransducerRecognizer(model), torch.tensor([1])
    state, guidance = recognizer.init_state(2), [Guidance(beam)]
    recognizer.reset(state, row, guidance=guidance)
    noise = random_noises(1, n, seed=1)
    for piece in noise.split(4_800, dim=1):
        recognizer.step(piece, state, row)
    waiting, n_heard = recognizer.said(state, 1), state.search.rows[1].n_frames
    recognizer.flush(state, 1, guidance[0], behind=samples_in(FLUSH_MS))
    said = recognizer.settle(state, 1)
    assert n_heard < state.search.rows[1].n_frames == -(-n // FEATURE)
    assert said.tokens[: waiting.stable] == waiting.tokens[: waiting.stable]
    assert said.stable == len(said.tokens)

    mel, _ = recognizer.mel.step(
        torch.cat([noise, torch.zeros(1, FRONT_END)], 1), recognizer.mel.init_state(1), row * 0
    )
    features, _ = model.trunk.step(mel, model.trunk.init_state(1), row * 0)
    assert features.shape[1] == -(-n // FEATURE)
    frames, schedule = model.encoder(features, torch.tensor([features.shape[1]]))
    search = recognizer.search.init_state(1)
    recognizer.search.reset(search, row * 0, widths=[beam])
    counts = torch.tensor([frames.shape[1]])
    (whole,) = recognizer.search.step(frames, counts, schedule.done, search, row * 0)
    assert (said.tokens, said.frames) == (whole.tokens, whole.frames)
    waited = completion(schedule.spans, counts)[0] - torch.arange(frames.shape[1])
    assert recognizer.waits(state, 1) == counted(waited, sorted(set(whole.at)))


def counted(waited: Tensor, emitting: list[int]) -> Waits:
    """Frames by how many each waited for, and those of the numbers `emitting`."""
    most = TransducerRecognizer(tiny_transducer()).executor.lookahead
    return Waits(*(tuple(some.bincount(minlength=most + 1).tolist()) for some in (waited, waited[emitting])))


def test_audio_of_any_length_meets_few_shapes(make_tiny: Callable[[int], Whisper]) -> None:
    """The trunk serves in bfloat16, where every number of rows costs memory (asr/layers.py); the head does not."""
    model = random_transducer(make_tiny(3), 3)
    model.trunk.encoder.bfloat16()
    recognizer = TransducerRecognizer(model)
    state = recognizer.init_state(3)
    with Rows() as rows:
        for n in range(1, 40):
            streams = torch.arange(1 + n % 3)
            recognizer.reset(state, streams)
            recognizer.step(random_noises(len(streams), n * 700, seed=n), state, streams)
            recognizer.flush(state, 0, Guidance(), behind=0)
    assert rows.met <= {padded(n) for n in range(1, 512)}
    assert len(rows.met) > 10


def test_hotwords_are_favoured_and_neither_delay_nor_prompt_reaches_it() -> None:
    recognizer = TransducerRecognizer(tiny_transducer())
    options = SessionOptions(beam=2, prompt="Hats.", delay_ms=600, hotwords=("sad map",), hotword_boost=10)
    guidance = recognizer.guidance(options, Guidance(prompt=(1, 2)))
    assert (guidance.beam, guidance.prompt, guidance.delay_s) == (2, (), None)
    texts = []
    for wishes in (guidance, recognizer.guidance(SessionOptions(), Guidance())):
        state, row = recognizer.init_state(1), torch.tensor([0])
        recognizer.reset(state, row, guidance=[wishes])
        (said,), _ = recognizer.step(random_noises(1, 3 * RATE, seed=0), state, row)
        texts.append(recognizer.vocabulary.text(list(said.tokens)))
    assert "sad map" in texts[0]
    assert "sad map" not in texts[1]


# --- behind an engine -------------------------------------------------------------------------------


@pytest.fixture
def make_engine(tiny: Whisper, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    monkeypatch.setattr(streaming.engine, "VoiceActivity", LoudVoice)
    made: list[Engine] = []

    def make(slots: int = 2, endpoint: EndpointOptions = SHORT, rescorer: Rescorer | None = None) -> Engine:
        recognizer = TransducerRecognizer(tiny_transducer(), rescorer)
        made.append(Engine(recognizer, tiny, "ancat", slots, final_pass_thread=False, endpoint=endpoint))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The text before and after each flush."""
    seen: list[tuple[str, str]] = []
    flush = TransducerRecognizer.flush

    def watched(self: TransducerRecognizer, state: TransducerState, row: int, *how: Any, **rest: Any) -> Any:
        before = self.vocabulary.text(list(self.said(state, row).tokens))
        said = flush(self, state, row, *how, **rest)
        seen.append((before, self.vocabulary.text(list(said[-1].tokens))))
        return said

    monkeypatch.setattr(TransducerRecognizer, "flush", watched)
    return seen


@pytest.mark.parametrize("check", CHECKS)
def test_contract_of_sessions(make_engine: Callable[..., Engine], check: Check) -> None:
    check(EngineSubject(make_engine))


def test_a_pause_ends_what_was_waited_for(
    make_engine: Callable[..., Engine], flushed: list[tuple[str, str]]
) -> None:
    engine = make_engine()
    events = converse(engine, engine.open(NO_SECOND_PASS), TWO_UTTERANCES)
    assert finals_of(events) == [after for _, after in flushed]
    assert len(flushed) == 2
    assert any(len(after) > len(before) for before, after in flushed)
    for utterance in (0, 1):
        partials = [e for e in events if isinstance(e, Partial) and e.utterance == utterance]
        assert len(partials) > 2
        assert partials[-1].stable == len(partials[-1].text)
        for before, after in pairwise(partials):
            assert after.text[: before.stable] == before.text[: before.stable]


@pytest.mark.parametrize("beam", [1, 3])
def test_a_session_tells_how_long_frames_waited_as_the_recursion_does(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, beam: int
) -> None:
    windows: list[list[Tensor]] = []
    said: list[tuple[int, ...]] = []
    reset, step, settle = TransducerRecognizer.reset, TransducerRecognizer._step, TransducerRecognizer.settle

    def opened(*how: Any, **rest: Any) -> None:
        windows.append([])
        reset(*how, **rest)

    def heard(self: TransducerRecognizer, samples: Tensor, *how: Any, **rest: Any) -> Any:
        windows[-1].append(samples)
        return step(self, samples, *how, **rest)

    def settled(*how: Any) -> Any:
        hypothesis: Any = settle(*how)
        said.append(hypothesis.at)
        return hypothesis

    monkeypatch.setattr(TransducerRecognizer, "reset", opened)
    monkeypatch.setattr(TransducerRecognizer, "_step", heard)
    monkeypatch.setattr(TransducerRecognizer, "settle", settled)
    engine = make_engine()
    session = engine.open(replace(NO_SECOND_PASS, beam=beam))
    assert session.waits is None
    converse(engine, session, TWO_UTTERANCES)
    model, row, told = tiny_transducer(), torch.tensor([0]), []
    for window, at in zip(windows, said, strict=True):
        mel = LogMel(model.device)
        frames, _ = mel.step(torch.cat(window, 1), mel.init_state(1), row)
        features, _ = model.trunk.step(frames, model.trunk.init_state(1), row)
        n = features.shape[1]
        _, schedule = model.encoder(features, torch.tensor([n]))
        waited = completion(schedule.spans, torch.tensor([n]))[0] - torch.arange(n)
        told.append(counted(waited, sorted(set(at))))
    assert len(told) == 2
    assert session.waits == told[0] + told[1]
    assert sum(session.waits.frames[1:]) > sum(session.waits.emitting[1:]) > 0


def test_who_ends_an_utterance_gets_what_was_waited_for(
    make_engine: Callable[..., Engine], flushed: list[tuple[str, str]]
) -> None:
    engine = make_engine()
    session = engine.open(NO_SECOND_PASS)
    session.receive_samples(TWO_UTTERANCES[: int(1.1 * RATE)])
    session.finalize()
    work_off(engine)
    *_, shown, endpoint, final, _ = session.events()
    assert isinstance(final, Final)
    assert isinstance(shown, Partial)
    assert endpoint == Endpoint(0, 1_100)
    assert [final.text, shown.text] == [flushed[0][1]] * 2
    assert len(flushed[0][1]) > len(flushed[0][0])
    assert final.text == " ".join(word.text for word in final.words)
    assert all(0 <= word.start_ms <= word.end_ms <= final.audio_ms for word in final.words)


def test_a_full_window_turns_before_the_positions_end(
    make_engine: Callable[..., Engine], flushed: list[tuple[str, str]]
) -> None:
    """Whisper's encoder has positions for 30 s; no sample is lost or heard by two second passes."""
    engine = make_engine(1, EndpointOptions())
    speaker = engine._final_pass._decoder = Speaker("so", "it", "goes")
    samples = speech((0.0, 31.0), seconds=31.0)
    events = converse(engine, engine.open(hasty(chunk_ms=1000)), samples, packet=RATE)
    assert len(finals_of(events)) == len(speaker.heard) == len(flushed) == 2
    heard = np.concatenate(speaker.heard)
    assert np.array_equal(heard[: len(samples)], samples)
    assert not heard[len(samples) :].any()
    whole = max((e for e in events if isinstance(e, Partial) and e.utterance == 0), key=lambda e: e.audio_ms)
    assert flushed[0][1].startswith(whole.text)  # what is behind the cut is heard again
    assert len(whole.text) < len(flushed[0][1])
    last = [e for e in events if isinstance(e, Partial)][-1]
    assert last.text == flushed[1][1]


def test_the_second_pass_has_the_last_word(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine._final_pass._decoder = Speaker("Much", "better.")
    events = converse(engine, engine.open(hasty(chunk_ms=100, prompt="Hats.")), TWO_UTTERANCES)
    assert finals_of(events) == ["Much better."] * 2
    assert any(isinstance(event, Partial) for event in events)


# --- rescoring --------------------------------------------------------------------------------------

RESCORED = hasty(chunk_ms=400, final_pass="rescore", beam=4)


class Contrary(Rescorer):
    """Chooses what the transducer likes least, and keeps what it was given."""

    def __init__(self, whisper: Whisper) -> None:
        super().__init__(whisper.decoder, whisper.vocabulary, 1.0)
        self.asked: list[tuple[list[str], Tensor]] = []

    def logprobs(self, frames: Tensor, texts: Sequence[str]) -> list[float]:
        self.asked.append((list(texts), frames))
        assert len(super().logprobs(frames, texts)) == len(texts)
        return [float(i) for i in range(len(texts))]


def test_the_rescorer_chooses_among_what_the_beam_may_have_said(
    make_engine: Callable[..., Engine], tiny: Whisper
) -> None:
    rescorer = Contrary(tiny)
    engine = make_engine(rescorer=rescorer)
    assert engine.final_passes == ("full", "rescore", "none")
    events = converse(engine, engine.open(RESCORED), TWO_UTTERANCES)
    plain = converse(engine, engine.open(replace(RESCORED, final_pass="none")), TWO_UTTERANCES)
    assert len(rescorer.asked) == 2
    assert finals_of(plain) == [texts[0] for texts, _ in rescorer.asked]
    assert finals_of(events) == [texts[-1] for texts, _ in rescorer.asked]
    assert all(len(texts) > 3 and frames.shape[1] > 50 for texts, frames in rescorer.asked)
    streamed = [[e for e in heard if isinstance(e, Partial | Endpoint)] for heard in (events, plain)]
    assert streamed[0] == streamed[1]
    for final in (event for event in events if isinstance(event, Final)):
        assert final.text == " ".join(word.text for word in final.words)
        times = [ms for word in final.words for ms in (word.start_ms, word.end_ms)]
        assert times == sorted(times)
        assert times[-1] <= final.audio_ms


def test_a_choice_is_of_its_own_window_whoever_has_the_row_by_then(
    make_engine: Callable[..., Engine], tiny: Whisper
) -> None:
    rescorer = Rescorer(tiny.decoder, tiny.vocabulary, 0.5)
    recognizer, row = TransducerRecognizer(tiny_transducer(), rescorer), torch.tensor([0])
    state = recognizer.init_state(1)
    choices, at_once = [], []
    for seed in range(3):
        noise = random_noises(1, 2 * RATE, seed)
        recognizer.reset(state, row, guidance=[Guidance(4)])
        recognizer.step(noise, state, row)
        choose = recognizer.rescoring(state, 0, noise[0].numpy())
        assert choose is not None
        choices.append(choose)
        at_once.append([word.text for word in choose()])
        recognizer.settle(state, 0)
    assert [[word.text for word in choose()] for choose in choices] == at_once
    assert len({tuple(words) for words in at_once}) == 3


def test_of_a_window_that_turns_the_words_before_the_cut_are_chosen(
    make_engine: Callable[..., Engine], tiny: Whisper
) -> None:
    rescorer = Contrary(tiny)
    engine = make_engine(1, EndpointOptions(), rescorer)
    samples = speech((0.0, 31.0), seconds=31.0)
    events = converse(engine, engine.open(replace(RESCORED, chunk_ms=1000)), samples, packet=RATE)
    finals = [event for event in events if isinstance(event, Final)]
    assert len(finals) == len(rescorer.asked) == 2
    assert rescorer.asked[0][0][-1].startswith(finals[0].text)
    assert len(finals[0].text) < len(rescorer.asked[0][0][-1])
    assert finals[0].words[-1].start_ms < finals[0].audio_ms
    assert finals[1].text == rescorer.asked[1][0][-1]


def test_a_failing_rescorer_keeps_the_streaming_text(
    make_engine: Callable[..., Engine], tiny: Whisper, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Rescorer):
        def logprobs(self, frames: Tensor, texts: Sequence[str]) -> list[float]:
            raise RuntimeError("out of order")

    engine = make_engine(rescorer=Broken(tiny.decoder, tiny.vocabulary, 0.5))
    events = converse(engine, engine.open(RESCORED), TWO_UTTERANCES)
    plain = converse(engine, engine.open(replace(RESCORED, final_pass="none")), TWO_UTTERANCES)
    assert finals_of(events) == finals_of(plain) != []
    assert "out of order" in caplog.text


def test_who_cannot_rescore_says_so(make_engine: Callable[..., Engine], tiny: Whisper) -> None:
    with pytest.raises(ValueError, match=r"ancat cannot rescore utterances: .* one of full, none"):
        make_engine().open(RESCORED)
    causal = Engine(WhisperRecognizer(tiny), tiny, "tiny", 1, final_pass_thread=False)
    with pytest.raises(ValueError, match="tiny cannot rescore"):
        causal.open(RESCORED)
    causal.close()
    with pytest.raises(ValueError, match="ask for a beam of 2 to 8"):
        SessionOptions(final_pass="rescore")
