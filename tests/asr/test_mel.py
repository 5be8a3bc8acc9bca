"""Log-mel frames: Whisper's own in `offline`, and the same at any cut as a stream."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from whisper.audio import N_SAMPLES, log_mel_spectrogram

from asr.mel import HOP, INITIAL_PEAK, LogMel, normalise
from tests.contract import CHECKS, Check, Outputs, Subject


class MelSubject(Subject):
    def __init__(self) -> None:
        self.stage = LogMel()
        self.n = self.longest = 12_345

    def inputs(self, rows: int, seed: int) -> Tensor:
        """Noise that grows louder, so that the running maximum runs."""
        noise = torch.randn(rows, self.n, generator=torch.Generator().manual_seed(seed))
        return noise * torch.linspace(0, 1, self.n)

    def step(self, x: Tensor, state, rows: Tensor) -> list[Outputs]:
        mel, _ = self.stage.step(x, state, rows)
        return [list(row.T) for row in mel]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check(MelSubject())


def test_offline_equals_openai_whisper(jfk: Tensor) -> None:
    ours = LogMel().offline(pad(jfk, (0, N_SAMPLES))[None])[0]
    torch.testing.assert_close(ours, log_mel_spectrogram(jfk, padding=N_SAMPLES), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [1600, 16_000, 16_159])
def test_whole_equals_the_stream_followed_by_silence(n: int) -> None:
    mel = LogMel()
    samples = torch.randn(2, n, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1e-3]])
    streamed, _ = mel.step(pad(samples, (0, mel.lookahead)), mel.init_state(2), torch.arange(2))
    whole = mel.whole(samples)
    assert whole.shape == (2, 80, n // HOP)
    torch.testing.assert_close(streamed[:, :, : n // HOP], whole, atol=1e-4, rtol=0)


def test_floor_follows_the_running_maximum() -> None:
    power = torch.tensor([[-9.0, 3.0, -9.0], [-9.0, -9.0, -9.0]])[None]  # (1, 2 bins, 3 frames), decades
    mel, peak = normalise(power, torch.tensor([INITIAL_PEAK]))
    floors = mel[0, 1] * 4 - 4
    assert floors.tolist() == [INITIAL_PEAK - 8, 3 - 8, 3 - 8]
    assert peak.tolist() == [3]


def test_silence_looks_like_silence_between_words() -> None:
    """A stream begins at the level of quiet speech, so its first frames are not blown up."""
    mel, _ = LogMel().step(torch.zeros(1, 1600), LogMel().init_state(1), torch.tensor([0]))
    assert mel.shape[2] > 0
    assert bool((mel == (INITIAL_PEAK - 8 + 4) / 4).all())
