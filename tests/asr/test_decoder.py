"""The decoder fed piece by piece, against OpenAI's decoder over everything at once."""

from dataclasses import asdict

import pytest
import torch
import whisper
from torch import Tensor

from asr.checkpoint import Whisper
from asr.decoder import DecoderState
from tests.contract import fill_with_nan

TOKENS = torch.tensor([[50257, 50362, 843, 523, 616, 5891, 3399]])
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def features(tiny: Whisper) -> Tensor:
    """(3, 60, d) of three streams."""
    return torch.randn(3, 60, tiny.dims.n_audio_state, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs(tiny: Whisper) -> whisper.model.Whisper:
    """OpenAI's modules with the tiny model's weights."""
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**asdict(tiny.dims)))
    model.load_state_dict(tiny.state_dict())
    return model.eval()


def unwritten(tiny: Whisper, rows: int) -> DecoderState:
    """Fresh rows in which everything that was never written is NaN."""
    state = tiny.decoder.init_state(rows)
    fill_with_nan(state)
    return state


def row(i: int) -> Tensor:
    return torch.tensor([i])


def test_equals_openai_whisper(tiny: Whisper, theirs: whisper.model.Whisper, features: Tensor) -> None:
    expected = theirs.decoder(TOKENS, features[:1])
    state = unwritten(tiny, 1)
    tiny.decoder.listen(features[:1], state, row(0))
    torch.testing.assert_close(tiny.decoder.logits(TOKENS, state, row(0)), expected, atol=1e-4, rtol=1e-4)


def test_everything_at_once_equals_openai_whisper(
    tiny: Whisper, theirs: whisper.model.Whisper, features: Tensor
) -> None:
    """The training pass, with the causal mask."""
    u = TOKENS.shape[1]
    causal = torch.ones(1, 1, u, u, dtype=torch.bool).tril()
    hidden = tiny.decoder(TOKENS, features[:1], torch.arange(u)[None], causal, None)
    expected = theirs.decoder(TOKENS, features[:1])
    torch.testing.assert_close(tiny.decoder.project(hidden), expected, atol=1e-4, rtol=1e-4)


def test_alignment_pass_sees_what_decoding_sees(
    tiny: Whisper, theirs: whisper.model.Whisper, features: Tensor
) -> None:
    """Its hidden states are the decoder's; its scores are those that OpenAI's attention returns."""
    looked: list[Tensor] = []
    attention = theirs.decoder.blocks[1].cross_attn
    hook = attention.register_forward_hook(lambda _, __, out: looked.append(out[-1]))
    with whisper.model.disable_sdpa():  # only without it are the scores given back
        expected = theirs.decoder(TOKENS, features[:1])
    hook.remove()
    heads = [(1, 1), (1, 0), (0, 1)]
    scores, hidden = tiny.decoder.alignment_pass(TOKENS, heads, tiny.decoder.keys_values(features[:1]))
    assert scores.shape == (3, TOKENS.shape[1], features.shape[1])
    torch.testing.assert_close(scores[:2], looked[0][0, [1, 0]], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(tiny.decoder.project(hidden), expected[0], atol=5e-4, rtol=1e-4)


def test_listening_in_pieces_equals_hearing_all(tiny: Whisper, features: Tensor) -> None:
    whole, pieces = unwritten(tiny, 1), unwritten(tiny, 1)
    tiny.decoder.listen(features[:1], whole, row(0))
    for piece in features[:1].split([1, 14, 0, 45], dim=1):
        tiny.decoder.listen(piece, pieces, row(0))
    expected = tiny.decoder.logits(TOKENS, whole, row(0))
    torch.testing.assert_close(tiny.decoder.logits(TOKENS, pieces, row(0)), expected)
    for ours, theirs in zip(
        tiny.decoder.heard(pieces, 0), tiny.decoder.keys_values(features[:1]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_tokens_in_pieces_equal_all_at_once(tiny: Whisper, features: Tensor) -> None:
    whole, pieces = unwritten(tiny, 1), unwritten(tiny, 1)
    for state in (whole, pieces):
        tiny.decoder.listen(features[:1], state, row(0))
    expected = tiny.decoder.logits(TOKENS, whole, row(0))
    parts = [tiny.decoder.logits(part, pieces, row(0)) for part in TOKENS.split([2, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_a_token_hears_only_what_was_heard_by_then(tiny: Whisper, features: Tensor) -> None:
    state = unwritten(tiny, 1)
    tiny.decoder.listen(features[:1, :20], state, row(0))
    early = tiny.decoder.logits(TOKENS, state, row(0))
    state.text.rewind(row(0), TOKENS.shape[1])
    tiny.decoder.listen(features[:1, 20:], state, row(0))
    late = tiny.decoder.logits(TOKENS, state, row(0))
    fresh = unwritten(tiny, 1)
    tiny.decoder.listen(features[:1, :20], fresh, row(0))
    torch.testing.assert_close(tiny.decoder.logits(TOKENS, fresh, row(0)), early)
    assert not torch.allclose(early, late, atol=0.1)


def test_padding_and_rewinding_equals_never_having_appended(tiny: Whisper, features: Tensor) -> None:
    plain, padded = unwritten(tiny, 1), unwritten(tiny, 1)
    for state in (plain, padded):
        tiny.decoder.listen(features[:1], state, row(0))
    n_pad = 3
    with_pad = torch.cat([TOKENS[:, :4], torch.zeros(1, n_pad, dtype=torch.int64)], dim=1)
    expected = tiny.decoder.logits(TOKENS[:, :4], plain, row(0))
    torch.testing.assert_close(
        tiny.decoder.logits(with_pad, padded, row(0))[:, :4], expected, atol=1e-4, rtol=1e-4
    )
    padded.text.rewind(row(0), n_pad)
    expected = tiny.decoder.logits(TOKENS[:, 4:], plain, row(0))
    torch.testing.assert_close(
        tiny.decoder.logits(TOKENS[:, 4:], padded, row(0)), expected, atol=1e-4, rtol=1e-4
    )


def test_rows_at_different_lengths_equal_each_alone(tiny: Whisper, features: Tensor) -> None:
    """Different audio heard, different tokens said, and a neighbour of NaN."""
    decoder, heard, said = tiny.decoder, [60, 7, 31], [5, 1, 2]
    together, rows = unwritten(tiny, 5), torch.tensor([4, 0, 2])
    expected = []
    for i, slot in enumerate(rows.tolist()):
        alone = unwritten(tiny, 1)
        for state, where in ((alone, row(0)), (together, row(slot))):
            decoder.listen(features[i : i + 1, : heard[i]], state, where)
            decoder.logits(TOKENS[:, : said[i]], state, where)
        expected.append(decoder.logits(TOKENS[:, 5:], alone, row(0)))
    decoder.listen(torch.full_like(features[:1], torch.nan), together, row(3))
    batch = TOKENS[:, 5:].repeat(4, 1)
    logits = decoder.logits(batch, together, torch.tensor([4, 0, 2, 3]))
    torch.testing.assert_close(logits[:3], torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_reset_equals_fresh(tiny: Whisper, features: Tensor) -> None:
    used, fresh = unwritten(tiny, 2), unwritten(tiny, 2)
    tiny.decoder.listen(features[1:2], used, row(1))
    tiny.decoder.logits(TOKENS, used, row(1))
    tiny.decoder.reset(used, row(1))
    fill_with_nan(used)
    for state in (used, fresh):
        tiny.decoder.listen(features[:1], state, row(1))
    expected = tiny.decoder.logits(TOKENS, fresh, row(1))
    torch.testing.assert_close(tiny.decoder.logits(TOKENS, used, row(1)), expected)
