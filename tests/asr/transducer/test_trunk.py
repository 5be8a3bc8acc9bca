"""The causal trunk: a stream, the same all at once, and how far it hears beyond its own frames."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.checkpoint import Whisper
from asr.mel import LogMel
from asr.transducer.trunk import FEATURE_MS, FRONT_END_MS, SAMPLES_PER_FEATURE, STACK, Trunk, TrunkState
from tests.contract import CHECKS, Check, Outputs, Subject, random_noises

SAMPLES_PER_MS = 16


class TrunkSubject(Subject):
    def __init__(self, trunk: Trunk) -> None:
        self.stage = trunk
        self.n = self.longest = 20 * trunk.stride + 3

    def inputs(self, rows: int, seed: int) -> Tensor:
        return torch.randn(rows, 80, self.n, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def step(self, x: Tensor, state: TrunkState, rows: Tensor) -> list[Outputs]:
        features, _ = self.stage.step(x, state, rows)
        return [list(row) for row in features]


@pytest.fixture(scope="module")
def trunk(make_tiny: Callable[[int], Whisper]) -> Trunk:
    return Trunk(make_tiny(0).encoder).eval().requires_grad_(False)


@pytest.mark.parametrize("check", CHECKS)
def test_contract(trunk: Trunk, check: Check) -> None:
    check(TrunkSubject(trunk))


def test_all_at_once_equals_the_stream(trunk: Trunk) -> None:
    """Up to the last feature, which in the stream waits for what follows and here is given nothing."""
    mel = torch.randn(2, 80, 24 * trunk.stride + 3, generator=torch.Generator().manual_seed(0))
    at_once, _ = trunk.step(mel, trunk.init_state(2), torch.arange(2))
    whole = trunk(mel)
    assert whole.shape == (2, 24, trunk.width)
    assert at_once.shape == whole.shape
    torch.testing.assert_close(at_once, whole, atol=1e-4, rtol=1e-4)
    padded = trunk(mel[..., : 10 * trunk.stride])
    torch.testing.assert_close(padded[:, :9], whole[:, :9], atol=1e-4, rtol=1e-4)
    assert (padded[:, 9] - whole[:, 9]).abs().max() > 1e-2


def test_what_a_decoder_hears_is_the_last_layer_however_the_audio_came(trunk: Trunk) -> None:
    """Each stream its own, all of it, and nothing of who was in the row before."""
    mel = torch.randn(2, 80, 24 * trunk.stride + 3, generator=torch.Generator().manual_seed(0))
    features, whole = trunk.hear(mel)
    assert whole.shape == (2, 24 * STACK, trunk.encoder.dims.n_audio_state)
    torch.testing.assert_close(features, trunk(mel))
    state, rows = trunk.init_state(3), torch.tensor([2, 0])
    trunk.step(3 * mel.flip(0), state, rows)
    trunk.reset(state, rows)
    for piece in mel.split(11, dim=2):
        trunk.step(piece, state, rows)
    heard = torch.cat([trunk.heard(state, row) for row in rows.tolist()])
    torch.testing.assert_close(heard, whole, atol=1e-4, rtol=1e-4)
    assert trunk.heard(state, 1).shape[1] == 0
    early = trunk.heard(state, 0).clone()
    kept = trunk.heard(state, 0)
    trunk.step(mel[:1], state, torch.tensor([0]))
    assert torch.equal(kept, early)
    assert trunk.heard(state, 0).shape[1] > early.shape[1]


def test_a_feature_needs_its_own_audio_and_the_front_ends_and_not_a_sample_more(trunk: Trunk) -> None:
    n, feature = 12 * SAMPLES_PER_FEATURE, 6
    needed = (feature + 1) * SAMPLES_PER_FEATURE + int(FRONT_END_MS * SAMPLES_PER_MS)
    assert FEATURE_MS * SAMPLES_PER_MS == SAMPLES_PER_FEATURE
    samples, other = random_noises(1, n, seed=0), random_noises(1, n, seed=1)
    expected = features_of(trunk, samples)[:, : feature + 1]
    for last_heard, same in (
        (needed, True),
        (needed - 40, False),
    ):  # a window fades out: a sample is too faint
        heard = torch.cat([samples[:, :last_heard], 0.5 + other[:, last_heard:]], dim=1)
        difference = (features_of(trunk, heard)[:, : feature + 1] - expected).abs().amax(dim=(0, 2))
        assert difference[:feature].max() < 1e-5
        assert (difference[feature] < 1e-5) == same
    assert features_of(trunk, samples[:, :needed]).shape[1] == feature + 1
    assert features_of(trunk, samples[:, : needed - 1]).shape[1] == feature


def features_of(trunk: Trunk, samples: Tensor) -> Tensor:
    """What a stream has put out when it has heard just `samples` (1, n)."""
    mel, rows = LogMel(), torch.tensor([0])
    frames, _ = mel.step(samples, mel.init_state(1), rows)
    return trunk.step(frames, trunk.init_state(1), rows)[0]


def test_the_mix_chooses_among_the_layers(make_tiny: Callable[[int], Whisper]) -> None:
    trunk = Trunk(make_tiny(0).encoder)
    mel = torch.randn(1, 80, 40, generator=torch.Generator().manual_seed(0))
    even = trunk(mel)
    trunk.mix.data = torch.tensor([-40.0, 40.0])
    last = trunk(mel)
    trunk.mix.data = torch.tensor([40.0, -40.0])
    first = trunk(mel)
    torch.testing.assert_close((first + last) / 2, even)
    assert (first - last).abs().max() > 1e-2
    frames = first.unflatten(2, (STACK, -1)).flatten(1, 2)
    torch.testing.assert_close(F.layer_norm(frames, frames.shape[-1:]), frames, atol=1e-3, rtol=1e-3)
    even.square().sum().backward()
    assert trunk.mix.grad is not None
    assert trunk.mix.grad.abs().max() > 0
