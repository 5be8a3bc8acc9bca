"""Predictor and joiner: contexts, normalisation, and the lattice that training sums over."""

import pytest
import torch

from asr.transducer.joiner import CONTEXT
from tests.asr.transducer.spelling import WIDTH, noise, whimsical

MODEL = whimsical(0)


def test_contexts_are_the_newest_pieces_before_each() -> None:
    blank = MODEL.blank
    contexts = MODEL.predictor.contexts(torch.tensor([[3, 1, 2], [5, 5, 0]]))
    assert CONTEXT == 2
    assert contexts[0].tolist() == [[blank, blank], [blank, 3], [3, 1], [1, 2]]
    assert contexts[1].tolist() == [[blank, blank], [blank, 5], [5, 5], [5, 0]]
    assert MODEL.predictor.contexts(torch.zeros(1, 0, dtype=torch.int64)).tolist() == [[[blank, blank]]]


def test_the_order_of_a_context_counts_and_nothing_before_it() -> None:
    one, other, longer = (
        MODEL.predictor(MODEL.predictor.contexts(torch.tensor([tokens])))[0, -1]
        for tokens in ([1, 2], [2, 1], [7, 1, 2])
    )
    assert one.shape == (WIDTH,)
    assert not torch.allclose(one, other)
    assert torch.equal(one, longer)


def test_ways_to_go_on_have_probabilities_in_single_precision() -> None:
    frames, contexts = noise(5, 1)[:, None], noise(4, 2)
    logprobs = MODEL.joiner(frames, contexts)
    assert logprobs.shape == (5, 4, MODEL.blank + 1)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(5, 4))
    half = whimsical(0)
    half.joiner.bfloat16()
    rough = half.joiner(frames.bfloat16(), contexts.bfloat16())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.exp().sum(-1), torch.ones(5, 4))


@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_the_lattice_is_the_joiner_at_every_point(loud: float) -> None:
    """Also where logits are large; the right piece behind the last one is of no meaning."""
    tokens = torch.tensor([[1, 4, 2], [3, 3, 0]])
    frames = loud * torch.stack([noise(6, 3), noise(6, 4)])
    contexts = MODEL.predictor(MODEL.predictor.contexts(tokens))
    lattice = MODEL.joiner.lattice(frames, contexts, tokens)
    full = MODEL.joiner(frames[:, :, None], contexts[:, None])
    assert lattice.shape == (2, 6, 4, 2)
    torch.testing.assert_close(lattice[..., 0], full[..., MODEL.blank], rtol=1e-4, atol=1e-3)
    right = full[:, :, :-1].gather(-1, tokens[:, None, :, None].expand(-1, 6, -1, 1))[..., 0]
    torch.testing.assert_close(lattice[:, :, :-1, 1], right, rtol=1e-4, atol=1e-3)
