"""The public operations hand CUDA tensors to their kernels, wherever the caller keeps slots and lengths."""

import pytest
import torch
from torch import Tensor

from kernels.adaptive_span_attention import adaptive_span_attention, adaptive_span_attention_reference
from kernels.block_causal_attention import block_causal_attention, block_causal_attention_reference
from kernels.cached_chunk_attention import cached_chunk_attention, cached_chunk_attention_reference
from kernels.limit_cross_attention import limit_cross_attention, limit_cross_attention_reference
from kernels.slot_append import slot_append, slot_append_reference

pytestmark = pytest.mark.gpu


def drawn(*shape: int) -> list[Tensor]:
    return list(torch.randn((3, *shape), device="cuda").unbind())


def near(own: Tensor, true: Tensor) -> bool:
    return bool((own - true).norm() < 1e-5 * true.norm())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_slots_and_lengths_may_lie_on_the_host(device: str) -> None:
    (q, *_), (k, v, _) = drawn(2, 6, 30, 64), drawn(4, 6, 300, 64)
    slots, lengths = torch.tensor([3, 1], device=device), torch.tensor([300, 40], device=device)
    limits = lengths[:, None] - torch.arange(30, device=device)
    cached = cached_chunk_attention(q, k, v, slots, lengths)
    assert near(cached, cached_chunk_attention_reference(q, k, v, slots, lengths))
    limited = limit_cross_attention(q, k, v, slots, limits)
    assert near(limited, limit_cross_attention_reference(q, k, v, slots, limits))
    own, true = [k.clone(), v.clone()], [k.clone(), v.clone()]
    slot_append(*own, slots, lengths - 30, q, q)
    slot_append_reference(*true, slots, lengths - 30, q, q)
    assert torch.equal(own[0], true[0])
    assert torch.equal(own[1], true[1])


def test_training_operations() -> None:
    q, k, v = drawn(2, 6, 300, 64)
    block = (torch.arange(100, device="cuda") + 1) // 15
    assert near(block_causal_attention(q, k, v, block), block_causal_attention_reference(q, k, v, block))
    right = torch.rand(2, q.shape[2], 16, device="cuda")
    own, true = (
        operation(q, k, v, right, 64)
        for operation in (adaptive_span_attention, adaptive_span_attention_reference)
    )
    assert near(own, true)


def test_a_step_can_be_captured() -> None:
    """Serving captures its step in a CUDA graph: no operation may wait for the host."""
    (q, *_), (k, v, _) = drawn(2, 6, 30, 64), drawn(4, 6, 300, 64)
    slots, lengths = torch.tensor([3, 1], device="cuda"), torch.tensor([300, 40], device="cuda")

    def step() -> Tensor:
        slot_append(k, v, slots, lengths - 30, q, q)
        return cached_chunk_attention(q, k, v, slots, lengths)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    lengths.copy_(torch.tensor([200, 77]))
    graph.replay()
    assert near(out, cached_chunk_attention_reference(q, k, v, slots, lengths))
