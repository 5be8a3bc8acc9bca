"""What a stream is told does not depend on who shares its batch: with real weights, to the bit."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.audio import Samples, read_audio
from asr_stream import build_engine
from kernels import half_linear
from streaming.engine import Engine
from streaming.events import Event, Final, Partial
from streaming.session import SessionOptions

SAMPLES = Path(__file__).parents[2] / "samples"
CHUNK = 4_800
PLAIN = SessionOptions(final_pass="none")
NEIGHBOURS = (
    PLAIN,
    dataclasses.replace(PLAIN, chunk_ms=100),
    dataclasses.replace(PLAIN, beam=3),
    dataclasses.replace(PLAIN, delay_ms=480),
    dataclasses.replace(PLAIN, prompt="A novel of 1815."),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = build_engine("tiny.en", slots=1 + len(NEIGHBOURS), threads=1, final_pass_thread=False)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def clips() -> list[Samples]:
    return [read_audio(path) for path in sorted(SAMPLES.glob("austen-*.flac"))]


def hear(engine: Engine, speech: Samples, options: SessionOptions, others: list[Samples]) -> list[Event]:
    """What is told of `speech` while others speak, who have come one after another before and after it."""
    late = others[len(others) // 2 :]
    sessions = [(engine.open(NEIGHBOURS[i]), clip) for i, clip in enumerate(others[: -len(late) or None])]
    own = engine.open(options)
    events: list[Event] = []
    for start in range(0, len(speech), CHUNK):
        if late:
            sessions.append((engine.open(NEIGHBOURS[len(sessions)]), late.pop()[: len(speech)]))
        own.receive_samples(speech[start : start + CHUNK])
        for i, (session, clip) in enumerate(sessions):
            session.receive_samples(clip[start + 700 * i : start + 700 * i + CHUNK])
        while engine.step():
            events += own.events()
    own.finish()
    for session, _ in sessions:
        session.abort()
    while not own.closed:
        engine.step()
        events += own.events()
    while engine.step():
        pass
    return events


@pytest.mark.parametrize("beam", [1, 3])
def test_company_changes_nothing(engine: Engine, clips: list[Samples], beam: int) -> None:
    speech = clips[0][: 10 * 16_000]
    options = dataclasses.replace(PLAIN, beam=beam)
    alone = hear(engine, speech, options, [])
    assert sum(isinstance(event, Partial) for event in alone) > 10
    assert any(isinstance(event, Final) and len(event.words) > 3 for event in alone)
    for others in (clips[1:2], clips[1:] + clips[:1]):
        together = hear(engine, speech, options, others)
        if torch.cpu._is_avx512_bf16_supported() or half_linear.supported():
            assert together == alone
        else:  # float32's products add in an order that depends on the number of rows
            assert [_rounded(event) for event in together] == [_rounded(event) for event in alone]


def _rounded(event: Event) -> Event:
    """Probabilities to a hundredth, times to 100 ms."""
    if not isinstance(event, Partial | Final):
        return event
    words = tuple(
        dataclasses.replace(
            word,
            probability=round(word.probability, 2),
            start_ms=round(word.start_ms, -2),
            end_ms=round(word.end_ms, -2),
        )
        for word in event.words
    )
    return dataclasses.replace(event, words=words)


def test_voices_are_heard_the_same(engine: Engine, clips: list[Samples]) -> None:
    voice, audio = (
        engine._voice,
        [torch.from_numpy(clip[: 12 * CHUNK]) for clip in clips if len(clip) > 12 * CHUNK],
    )
    rng = np.random.default_rng(0)

    def probabilities(n_streams: int) -> torch.Tensor:
        state, heard = voice.init_state(n_streams), []
        for start in range(0, len(audio[0]), CHUNK):
            rows = torch.from_numpy(rng.permutation(n_streams))
            chunks = torch.stack([audio[row % len(audio)][start : start + CHUNK] for row in rows])
            speech, _ = voice.step(chunks, state, rows)
            heard.append(speech[int((rows == 0).nonzero())])
        return torch.cat(heard)

    alone = probabilities(1)
    assert len(audio) > 2 and len(alone) > 100 and alone.max() > 0.9
    for n_streams in (2, 3, 5, 12):
        assert torch.equal(probabilities(n_streams), alone)
