"""The encoder, 600 ms ahead: a stream, the same all at once and, with nothing masked, Whisper's own."""

import pytest
import torch
from torch import Tensor

from asr.checkpoint import Whisper
from asr.encoder import (
    FRAME_LOOKAHEAD,
    MEL_PER_FRAME,
    Encoder,
    EncoderState,
    block_of,
    blocks_ahead,
    frame_blocks,
    n_settled,
)
from tests.contract import CHECKS, Check, Outputs, Subject


class EncoderSubject(Subject):
    def __init__(self, encoder: Encoder, chunk: int) -> None:
        self.stage = encoder
        self.chunk, block = chunk, block_of(chunk)
        self.n = self.longest = MEL_PER_FRAME * 9 * block + 7  # nine blocks, and a rest

    def inputs(self, rows: int, seed: int) -> Tensor:
        return torch.randn(rows, 80, self.n, generator=torch.Generator().manual_seed(seed))

    def init_state(self, rows: int) -> EncoderState:
        return self.stage.init_state(rows, self.chunk)

    def reset(self, state: EncoderState, rows: Tensor) -> None:
        self.stage.reset(state, rows, self.chunk)

    @torch.no_grad()
    def step(self, x: Tensor, state: EncoderState, rows: Tensor) -> list[Outputs]:
        """Only what is settled: recent features will be replaced."""
        features, _, _ = self.stage.step(x, state, rows)
        settled = features.shape[1] - int(state.recent_fill[rows[0]])
        return [list(row[: max(0, settled)]) for row in features]

    def due(self, i: int, output: Tensor) -> int:
        """A frame settles with the last one of the blocks behind its own."""
        block = block_of(self.chunk)
        last = ((i + FRAME_LOOKAHEAD) // block + 1 + blocks_ahead(block)) * block - FRAME_LOOKAHEAD - 1
        return super().due(last, output)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("chunk", [5, 8, 15, 50])
def test_contract(tiny: Whisper, chunk: int, check: Check) -> None:
    check(EncoderSubject(tiny.encoder, chunk))


@pytest.mark.parametrize("block", [15, 20, 30, 32, 50])
@torch.no_grad()
def test_all_at_once_equals_the_stream(tiny: Whisper, block: int) -> None:
    encoder, n_blocks = tiny.encoder, 4
    n_frames = n_blocks * block - FRAME_LOOKAHEAD
    mel = torch.randn(2, 80, MEL_PER_FRAME * n_frames + 1, generator=torch.Generator().manual_seed(0))
    state, rows = encoder.init_state(2, block), torch.arange(2)
    settled, provisional, between = torch.zeros(2, 0, 8), [], []
    for part in mel.split(2 * block, dim=2):
        features, replaced, _ = encoder.step(part, state, rows)
        if features.shape[1]:
            kept = settled.shape[1] - replaced
            settled = torch.cat([settled[:, :kept], features], 1) if kept else features
            provisional.append(features[:, replaced:])
            if len(provisional) > 1:  # the block before, seen with one behind it
                between.append(features[:, : features.shape[1] - block][:, -len(provisional[-2][0]) :])
    # An odd mel frame more than the pass at once takes: its last frame's right neighbour is padding.
    at_once, *middle, guessed = encoder.forward_blocks(torch.cat([mel, torch.zeros(2, 80, 1)], dim=2), block)
    newest = int(state.recent_fill[0])
    torch.testing.assert_close(settled[:, :-newest], at_once[:, : n_frames - newest], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(provisional, 1), guessed[:, :n_frames], atol=1e-4, rtol=1e-4)
    for view in middle:
        seen = torch.cat(between, 1)
        torch.testing.assert_close(seen, view[:, : seen.shape[1]], atol=1e-4, rtol=1e-4)
    assert len(middle) == blocks_ahead(block) - 1
    assert not torch.allclose(at_once[:, : n_frames - newest], guessed[:, : n_frames - newest], atol=1e-2)


@torch.no_grad()
def test_many_blocks_in_one_step_leave_what_single_steps_leave(tiny: Whisper) -> None:
    encoder, rows = tiny.encoder, torch.arange(1)
    mel = torch.randn(1, 80, 81, generator=torch.Generator().manual_seed(0))
    state = encoder.init_state(1, 5)
    features, replaced, _ = encoder.step(mel, state, rows)
    single = encoder.init_state(1, 5)
    for part in mel.split(7, dim=2):
        newest, _, _ = encoder.step(part, single, rows)
    assert replaced == 0 and features.shape[1] == 39
    torch.testing.assert_close(features[:, -newest.shape[1] :], newest, atol=1e-4, rtol=1e-4)
    assert encoder.phase(state, 0) == encoder.phase(single, 0)


@pytest.mark.parametrize("chunk", [1, 5, 7, 8])
@torch.no_grad()
def test_short_chunks_settle_as_their_blocks_do(tiny: Whisper, chunk: int) -> None:
    """What is provisional differs, and comes sooner; what is settled does not."""
    encoder, rows, block = tiny.encoder, torch.arange(1), block_of(chunk)
    mel = torch.randn(1, 80, 4 * MEL_PER_FRAME * block, generator=torch.Generator().manual_seed(0))
    settled: dict[int, list[Tensor]] = {chunk: [], block: []}
    for size, kept in settled.items():
        state = encoder.init_state(1, size)
        for part in mel.split(MEL_PER_FRAME * size, dim=2):
            features, _, _ = encoder.step(part, state, rows)
            assert features.shape[1] >= min(size - FRAME_LOOKAHEAD, 1), "every chunk is heard at once"
            kept.append(features[:, : max(0, features.shape[1] - int(state.recent_fill[0]))])
    short, whole = (torch.cat(kept, dim=1) for kept in settled.values())
    assert whole.shape[1] == (4 - blocks_ahead(block)) * block - FRAME_LOOKAHEAD
    torch.testing.assert_close(short, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("chunk", "block"), [(1, 15), (5, 15), (7, 21), (8, 16), (14, 28), (15, 15), (50, 50)]
)
def test_blocks_are_whole_chunks(chunk: int, block: int) -> None:
    assert block_of(chunk) == block


@pytest.mark.parametrize(("block", "ahead"), [(15, 2), (16, 2), (29, 2), (30, 1), (50, 1)])
def test_a_block_settles_with_600_ms_behind_it(block: int, ahead: int) -> None:
    assert blocks_ahead(block) == ahead
    assert n_settled((1 + ahead) * block - FRAME_LOOKAHEAD - 1, block) == 0
    assert n_settled((1 + ahead) * block - FRAME_LOOKAHEAD, block) == block - FRAME_LOOKAHEAD
    assert n_settled((2 + ahead) * block - FRAME_LOOKAHEAD, block) == 2 * block - FRAME_LOOKAHEAD


def test_blocks_end_one_frame_before_their_chunk() -> None:
    assert frame_blocks(8, tau=3).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


@torch.no_grad()
def test_everything_in_sight_equals_openai_whisper(tiny_en: Whisper, openai_tiny_en) -> None:
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) * 0.5
    expected = openai_tiny_en.encoder(mel)
    torch.testing.assert_close(tiny_en.encoder(mel), expected, atol=1e-4, rtol=1e-4)
    # A stream whose block is the whole window sees everything, too.
    *_, whole = tiny_en.encoder.forward_blocks(mel, expected.shape[1] + FRAME_LOOKAHEAD)
    torch.testing.assert_close(whole, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_streams_with_other_block_sizes_share_a_state(tiny: Whisper) -> None:
    encoder = tiny.encoder
    mel = torch.randn(2, 80, 121, generator=torch.Generator().manual_seed(0))
    shared = encoder.init_state(2)
    for row, block in ((0, 5), (1, 20)):
        encoder.reset(shared, torch.tensor([row]), block)
        alone, _, _ = encoder.step(mel[row : row + 1], encoder.init_state(1, block), torch.tensor([0]))
        beside, _, _ = encoder.step(mel[row : row + 1], shared, torch.tensor([row]))
        torch.testing.assert_close(beside, alone)


def test_rows_out_of_phase_are_refused(tiny: Whisper) -> None:
    encoder = tiny.encoder
    state = encoder.init_state(2, chunk=5)
    encoder.step(torch.zeros(1, 80, 8), state, torch.tensor([0]))
    with pytest.raises(AssertionError, match="phase"):
        encoder.step(torch.zeros(2, 80, 8), state, torch.arange(2))


@torch.no_grad()
def test_who_began_later_shares_steps_once_in_phase(tiny: Whisper) -> None:
    """The first block is a frame short, and so is what replaces it: only the step after that may be shared."""
    encoder, block = tiny.encoder, 30
    mel = torch.randn(2, 80, 4 * MEL_PER_FRAME * block, generator=torch.Generator().manual_seed(0))
    pieces = mel.split(MEL_PER_FRAME * block, dim=2)
    state, early, late = encoder.init_state(2, block), torch.tensor([0]), torch.tensor([1])
    encoder.step(pieces[0][:1], state, early)
    assert encoder.phase(state, 0) != encoder.phase(state, 1)
    encoder.step(pieces[1][:1], state, early)
    encoder.step(pieces[0][1:], state, late)
    assert encoder.phase(state, 0) != encoder.phase(state, 1)
    with pytest.raises(AssertionError, match="phase"):
        encoder.step(pieces[2], state, torch.arange(2))
    encoder.step(pieces[2][:1], state, early)
    encoder.step(pieces[1][1:], state, late)
    assert encoder.phase(state, 0) == encoder.phase(state, 1)
    together, replaced, _ = encoder.step(pieces[3], state, torch.arange(2))
    assert replaced == block
    for row, n_before in ((0, 3), (1, 2)):
        alone = encoder.init_state(1, block)
        for piece in (*pieces[:n_before], pieces[3]):
            expected, _, _ = encoder.step(piece[row : row + 1], alone, torch.tensor([0]))
        torch.testing.assert_close(together[row : row + 1], expected, atol=1e-4, rtol=1e-4)
