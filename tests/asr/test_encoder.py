"""The block-causal encoder: a stream, a masked pass and, with nothing masked, Whisper's own."""

import pytest
import torch
from torch import Tensor

from asr.checkpoint import Whisper
from asr.encoder import FRAME_LOOKAHEAD, MEL_PER_FRAME, Encoder, EncoderState, block_causal_mask
from tests.contract import CHECKS, Check, Outputs, Subject


class EncoderSubject(Subject):
    def __init__(self, encoder: Encoder, block: int) -> None:
        self.stage = encoder
        self.block = block
        self.n = self.longest = MEL_PER_FRAME * 4 * block + 7  # four blocks, and a rest

    def inputs(self, rows: int, seed: int) -> Tensor:
        return torch.randn(rows, 80, self.n, generator=torch.Generator().manual_seed(seed))

    def init_state(self, rows: int) -> EncoderState:
        return self.stage.init_state(rows, self.block)

    def reset(self, state: EncoderState, rows: Tensor) -> None:
        self.stage.reset(state, rows, self.block)

    @torch.no_grad()
    def step(self, x: Tensor, state: EncoderState, rows: Tensor) -> list[Outputs]:
        features, _ = self.stage.step(x, state, rows)
        return [list(row) for row in features]

    def due(self, i: int, output: Tensor) -> int:
        """A frame waits for the last one of its block."""
        last = (i + FRAME_LOOKAHEAD) // self.block * self.block + self.block - FRAME_LOOKAHEAD - 1
        return super().due(last, output)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("block", [5, 15, 50])
def test_contract(tiny: Whisper, block: int, check: Check) -> None:
    check(EncoderSubject(tiny.encoder, block))


@pytest.mark.parametrize("block", [1, 5, 15, 50])
@torch.no_grad()
def test_masked_forward_equals_the_stream(tiny: Whisper, block: int) -> None:
    encoder, n_blocks = tiny.encoder, 4
    n_frames = n_blocks * block - FRAME_LOOKAHEAD
    mel = torch.randn(2, 80, MEL_PER_FRAME * n_frames + 1, generator=torch.Generator().manual_seed(0))
    streamed, _ = encoder.step(mel, encoder.init_state(2, block), torch.arange(2))
    # an odd frame more than the masked pass takes: its last frame's right neighbour is padding
    mask = block_causal_mask(n_frames + 1, block)
    masked = encoder(torch.cat([mel, torch.zeros(2, 80, 1)], dim=2), mask)[:, :n_frames]
    torch.testing.assert_close(streamed, masked, atol=1e-4, rtol=1e-4)


def test_blocks_end_one_frame_before_their_chunk() -> None:
    mask = block_causal_mask(8, tau=3)
    last_seen = [row.nonzero().max().item() for row in mask]
    assert last_seen == [1, 1, 4, 4, 4, 7, 7, 7]
    assert bool(mask[:, 0].all())


@torch.no_grad()
def test_full_mask_equals_openai_whisper(tiny_en: Whisper, openai_tiny_en) -> None:
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) * 0.5
    expected = openai_tiny_en.encoder(mel)
    n_frames = expected.shape[1]
    everything = torch.ones(1, 1, n_frames, n_frames, dtype=torch.bool)
    torch.testing.assert_close(tiny_en.encoder(mel), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiny_en.encoder(mel, everything), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_streams_with_other_block_sizes_share_a_state(tiny: Whisper) -> None:
    encoder = tiny.encoder
    mel = torch.randn(2, 80, 121, generator=torch.Generator().manual_seed(0))
    shared = encoder.init_state(2)
    for row, block in ((0, 5), (1, 20)):
        encoder.reset(shared, torch.tensor([row]), block)
        alone, _ = encoder.step(mel[row : row + 1], encoder.init_state(1, block), torch.tensor([0]))
        beside, _ = encoder.step(mel[row : row + 1], shared, torch.tensor([row]))
        torch.testing.assert_close(beside, alone)


def test_rows_out_of_phase_are_refused(tiny: Whisper) -> None:
    encoder = tiny.encoder
    state = encoder.init_state(2, block=5)
    encoder.step(torch.zeros(1, 80, 8), state, torch.tensor([0]))
    with pytest.raises(AssertionError, match="phase"):
        encoder.step(torch.zeros(2, 80, 8), state, torch.arange(2))
