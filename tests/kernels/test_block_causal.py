"""Attention of a whole window as a stream computes it, against its reference."""

import pytest
import torch
from torch import Tensor

from kernels.block_causal_attention import (
    block_causal_attention,
    block_causal_attention_reference,
    block_causal_mask,
)


def window(n: int, views: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, views * n, 8, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("tau", [1, 5, 15, 50, 300])
@pytest.mark.parametrize(("n", "views"), [(1, 2), (37, 3), (250, 1), (250, 2), (501, 3), (250, 7)])
def test_equals_the_reference_with_gradients(n: int, views: int, tau: int) -> None:
    block = (torch.arange(n) + 1) // tau
    own, true = window(n, views), window(n, views)
    out, expected = block_causal_attention(*own, block), block_causal_attention_reference(*true, block)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(own, true, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_a_stream_that_computes_each_block_twice() -> None:
    mask = block_causal_mask(torch.tensor([0, 0, 1, 2]), views=2)
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 1, 0],  # settled frames of block 0 see block 1 as it first looks
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 0, 0, 0, 0],  # nothing follows the newest block
        [0, 0, 0, 0, 1, 1, 0, 0],  # provisional frames see their own block, and what has settled before
        [0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 1],
    ]


def test_a_stream_that_computes_each_block_three_times() -> None:
    mask = block_causal_mask(torch.tensor([0, 1, 2, 3]), views=3)
    assert mask.int().tolist() == [
        # settled;   before that; as the newest
        # step 2 settles block 0, beside block 1, seen again, and block 2, which is new
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0],  # step 1 has two blocks, and nothing has settled
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],  # step 0
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    ]
