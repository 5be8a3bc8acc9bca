"""Voice activity as a stream, and what may be asked of endpointing."""

import pytest
import torch
from silero_vad import load_silero_vad
from torch import Tensor

from asr.audio import SAMPLE_RATE, milliseconds, samples_in
from streaming.endpoint import WINDOW, EndpointOptions, VoiceActivity
from tests.contract import CHECKS, Check, Outputs, Subject


@pytest.fixture(scope="module")
def voice() -> VoiceActivity:
    return VoiceActivity()


class VoiceSubject(Subject):
    def __init__(self, voice: VoiceActivity, speech: Tensor) -> None:
        self.stage = voice
        self.speech = speech
        self.n = self.longest = 20 * WINDOW + 100

    def inputs(self, rows: int, seed: int) -> Tensor:
        """Stretches of a speech, another one for every row and seed."""
        starts = [(1 + 2 * row + seed) * SAMPLE_RATE for row in range(rows)]
        return torch.stack([self.speech[start : start + self.n] for start in starts])

    def step(self, x: Tensor, state, rows: Tensor) -> list[Outputs]:
        speech, _ = self.stage.step(x, state, rows)
        return [list(row) for row in speech]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(voice: VoiceActivity, jfk: Tensor, check: Check) -> None:
    check(VoiceSubject(voice, jfk))


def test_tells_speech_from_silence(voice: VoiceActivity, jfk: Tensor) -> None:
    heard = torch.stack([jfk[SAMPLE_RATE : 2 * SAMPLE_RATE], torch.zeros(SAMPLE_RATE)])
    (speech, silence), _ = voice.step(heard, voice.init_state(2), torch.arange(2))
    assert len(speech) == len(silence) == SAMPLE_RATE // WINDOW
    assert float(speech.median()) > 0.9
    assert float(silence.max()) < 0.1


@torch.no_grad()
def test_it_hears_what_silero_hears(voice: VoiceActivity, jfk: Tensor) -> None:
    n_windows = 60
    (speech,), _ = voice.step(jfk[None, : n_windows * WINDOW], voice.init_state(1), torch.arange(1))
    model = load_silero_vad()
    truth = [float(model(window, SAMPLE_RATE)) for window in jfk[: n_windows * WINDOW].split(WINDOW)]
    torch.testing.assert_close(speech, torch.tensor(truth), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_windows_come_out_the_same_whoever_comes_with_them(voice: VoiceActivity, jfk: Tensor) -> None:
    windows = jfk[SAMPLE_RATE:].unfold(0, WINDOW + 64, 300)[:80]
    together = voice._features(windows)
    for n in range(1, 70):
        assert torch.equal(voice._features(windows[5 : 5 + n]), together[5 : 5 + n])


def test_loading_it_leaves_torch_its_threads() -> None:
    before = torch.get_num_threads()
    VoiceActivity()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "options",
    [
        {"onset": 0.3, "offset": 0.5},
        {"onset": 1.0},
        {"offset": 0.0},
        {"longest_ms": 9_999},
        {"longest_ms": 28_001},
    ],
)
def test_impossible_thresholds_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|probabilities"):
        EndpointOptions(**options)


def test_time_is_counted_in_samples() -> None:
    assert samples_in(300) == 4_800
    assert milliseconds(4_800) == 300
    assert milliseconds(4_815) == 300  # a millisecond that is not complete has not passed
