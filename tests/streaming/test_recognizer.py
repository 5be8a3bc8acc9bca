"""The whole recogniser as a stream of samples."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from asr.checkpoint import Whisper
from asr.search import tokens_in
from streaming.recognizer import SPARE_TOKENS, WhisperRecognizer, WhisperState
from tests.contract import CHECKS, Check, Outputs, Subject, random_noises

BLOCK, CHUNK = 15, 4_800


class RecognizerSubject(Subject):
    """What has been said after each chunk. One step decodes once, so it takes in one chunk at the most."""

    def __init__(self, model: Whisper) -> None:
        self.stage = WhisperRecognizer(model)
        self.n, self.longest = 7 * CHUNK + 700, CHUNK

    def inputs(self, rows: int, seed: int) -> Tensor:
        return random_noises(rows, self.n, seed)

    def reset(self, state: WhisperState, rows: Tensor) -> None:
        self.stage.reset(state, rows, BLOCK)

    def step(self, x: Tensor, state: WhisperState, rows: Tensor) -> list[Outputs]:
        heard = state.search.decoder.audio.lengths
        before = heard[rows].tolist()
        hypotheses, _ = self.stage.step(x, state, rows)
        completes = [n > b for n, b in zip(heard[rows].tolist(), before, strict=True)]
        return [[h.tokens] if block else [] for h, block in zip(hypotheses, completes, strict=True)]

    def due(self, i: int, output: tuple[int, ...]) -> int:
        """No later than the end of its chunk: blocks end a frame early."""
        return (i + 1) * CHUNK


@pytest.mark.parametrize("check", CHECKS)
def test_contract(tiny: Whisper, check: Check) -> None:
    check(RecognizerSubject(tiny))


def test_says_what_depends_on_the_audio_and_takes_it_back(tiny: Whisper) -> None:
    """What the other tests rely on: the random model speaks, waits, and changes its mind."""
    subject = RecognizerSubject(tiny)
    said = [subject_outputs(subject, seed) for seed in range(3)]
    assert len({outputs[-1] for outputs in said}) == 3
    steps = [pair for outputs in said for pair in pairwise(outputs)]
    assert any(after[: len(before)] != before for before, after in steps)
    bound = SPARE_TOKENS + tokens_in(BLOCK)
    assert any(len(after) < len(before) + bound for before, after in steps)


def subject_outputs(subject: RecognizerSubject, seed: int) -> Outputs:
    state, row = subject.init_state(1), torch.tensor([0])
    return [
        output
        for piece in subject.inputs(1, seed).split(CHUNK, dim=1)
        for output in subject.step(piece, state, row)[0]
    ]


def test_a_step_is_bounded(tiny: Whisper) -> None:
    recognizer, row = WhisperRecognizer(tiny), torch.tensor([0])
    state, before = recognizer.init_state(1), 0
    for piece in random_noises(1, 6 * CHUNK, seed=0).split(CHUNK, dim=1):
        (said,), _ = recognizer.step(piece, state, row)
        assert len(said.tokens) <= before + SPARE_TOKENS + tokens_in(BLOCK)
        before = len(said.tokens)
    assert before > 0


def test_settled_words_have_times(tiny: Whisper) -> None:
    recognizer, row = WhisperRecognizer(tiny), torch.tensor([1])
    state = recognizer.init_state(2)
    recognizer.reset(state, row, BLOCK, [[843, 523]])  # " And so"
    noise = random_noises(1, 3 * CHUNK, seed=0)
    recognizer.step(noise, state, row)
    said = recognizer.settle(state, 1)
    assert said.stable == len(said.tokens)
    assert said.tokens[:2] == (843, 523)
    words = recognizer.words(state, 1, noise[0].numpy())
    assert sum(word.n_tokens for word in words) == len(said.tokens)
    assert words[0].text == "And"
    assert words[-1].end <= 0.9
