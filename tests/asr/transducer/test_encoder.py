"""The adaptive layers all at once: they see what their schedules grant, and nothing else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.transducer.encoder import AdaptiveEncoder
from asr.transducer.schedule import Policy, chunked, layerwise, soft_completion
from tests.asr.transducer.random_models import DIMS, random_encoder

FAR = replace(DIMS, left=100)  # sees all that came before


def random_features(rows: int, n: int, seed: int) -> Tensor:
    return torch.randn(rows, n, DIMS.features, generator=torch.Generator().manual_seed(seed))


def given_spans(spans: list[Tensor]) -> Policy:
    return lambda layer, batch, n_frames, span: spans[layer]


@given(seed=st.integers(0, 7), n=st.integers(2, 40), data=st.data())
@settings(max_examples=60)
def test_what_comes_after_its_completion_never_changes_a_frame(
    seed: int, n: int, data: st.DataObject
) -> None:
    encoder, x, lengths = random_encoder(seed), random_features(1, n, seed), torch.tensor([n])
    frames, schedule = encoder(x, lengths)
    frame = data.draw(st.integers(0, n - 1))
    done = int(schedule.done[0, frame])
    longer = data.draw(st.integers(0, 5))  # nor does it matter whether more comes at all
    other = torch.cat([x[:, : done + 1], random_features(1, n - done - 1 + longer, seed + 100)], dim=1)
    others, otherwise = encoder(other, torch.tensor([n + longer]))
    if done == n - 1 and longer:  # it may have been the end that kept a frame from waiting on
        frame = int((schedule.done[0] < done).sum()) - 1
    torch.testing.assert_close(others[:, : frame + 1], frames[:, : frame + 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(otherwise.done[:, : frame + 1], schedule.done[:, : frame + 1])


@pytest.mark.parametrize("seed", range(3))
def test_what_completes_a_frame_changes_it(seed: int) -> None:
    """The latency is no overstatement: the input that a frame was last to wait for does matter."""
    n = 24
    encoder, x, lengths = random_encoder(seed, FAR), random_features(1, n, seed), torch.tensor([n])
    for layer in encoder.layers:
        layer.attn.query.weight.div_(8)  # every frame that is seen counts
    frames, schedule = encoder(x, lengths)
    fixed = given_spans(schedule.spans)  # else other spans would be what changes
    done = schedule.done[0].tolist()
    waiting = [i for i in range(n) if done[i] > i]
    assert len(waiting) > n / 2
    for i in waiting:
        other = x.clone()
        other[:, done[i]] = -other[:, done[i]]
        others, _ = encoder(other, lengths, fixed)
        assert (others[:, : i + 1] - frames[:, : i + 1]).abs().max() > 1e-4


def test_spans_vary_in_every_layer() -> None:
    """Else the proofs here would prove little."""
    for seed in range(3):
        _, schedule = random_encoder(seed)(random_features(1, 80, seed), torch.tensor([80]))
        assert all(len(spans.unique()) >= 3 for spans in schedule.spans)


def plain_transformer(encoder: AdaptiveEncoder, x: Tensor, masks: list[Tensor]) -> Tensor:
    """The same weights in torch's own attention under fixed masks; positions rotate complex numbers."""
    x = encoder.embed(x)
    for layer, mask in zip(encoder.layers, masks, strict=True):
        normed = layer.attn_ln(x)
        q, (k, v) = layer.attn.queries(normed), layer.attn.keys_values(normed)
        rotated = F.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=mask)
        x = x + layer.attn.merge(rotated)
        x = x + layer.mlp(layer.mlp_ln(x))
    return encoder.out_norm(x)


def turned(x: Tensor) -> Tensor:
    """Pair n of frame t, as a complex number, times exp(i t 10 000^(-n / pairs))."""
    pairs = x.shape[-1] // 2
    speed = torch.tensor([10_000.0 ** (-n / pairs) for n in range(pairs)])
    angle = torch.arange(x.shape[-2])[:, None] * speed
    turned = torch.complex(x[..., :pairs], x[..., pairs:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize(
    "spans", [(0, 0, 0), (4, 4, 4), (1, 0, 3)], ids=["causal", "as far as it goes", "layerwise"]
)
def test_equal_spans_are_a_plain_transformer(spans: tuple[int, ...]) -> None:
    encoder, n = random_encoder(1), 31
    x = random_features(2, n, 0)
    frames, schedule = encoder(x, torch.tensor([n, n]), layerwise(*spans))
    ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
    expected = plain_transformer(encoder, x, [(ahead >= -DIMS.left) & (ahead <= span) for span in spans])
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-4)
    assert (schedule.done - torch.arange(n))[:, : n - sum(spans)].unique().tolist() == [sum(spans)]


def test_chunks_are_a_transformer_with_a_block_mask() -> None:
    encoder, n, size = random_encoder(1), 31, 4
    x = random_features(2, n, 0)
    frames, _ = encoder(x, torch.tensor([n, n]), chunked(size))
    at = torch.arange(n)
    ahead = at[None] - at[:, None]
    mask = (ahead >= -DIMS.left) & (at[None] // size <= at[:, None] // size)
    torch.testing.assert_close(frames, plain_transformer(encoder, x, [mask] * 3), atol=1e-5, rtol=1e-4)


def test_controls_differ_from_each_other_and_from_what_is_adaptive() -> None:
    encoder, x, lengths = random_encoder(1), random_features(1, 31, 0), torch.tensor([31])
    policies = (None, layerwise(0, 0, 0), layerwise(4, 4, 4), chunked(4))
    made = [encoder(x, lengths, policy)[0] for policy in policies]
    for i, one in enumerate(made):
        assert all((one - other).abs().max() > 1e-2 for other in made[:i])


def test_a_row_does_not_see_beyond_its_end() -> None:
    encoder, lengths = random_encoder(2), torch.tensor([5, 31, 18])
    x = random_features(3, 31, 0)
    for row, n in enumerate(lengths.tolist()):
        x[row, n:] = 1e3 * random_features(1, 31 - n, 50)[0]
    frames, schedule = encoder(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, own = encoder(x[row : row + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(frames[row : row + 1, :n], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(schedule.done[row, :n], own.done[0])


def test_hard_masks_pass_gradients_as_if_they_were_soft() -> None:
    """Forward they are the schedule itself; backward, shorter waits are within reach of every scheduler."""
    encoder, x, lengths = random_encoder(0), random_features(2, 31, 0), torch.tensor([31, 20])
    encoder.requires_grad_(True)
    frames, schedule = encoder(x, lengths)
    fixed, same = encoder(x, lengths, given_spans(schedule.spans))
    torch.testing.assert_close(frames, fixed, atol=1e-5, rtol=1e-4)
    assert torch.equal(schedule.done, same.done)
    soft = soft_completion(schedule.rights)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(soft[row, :n], schedule.done[row, :n].float())
    soft.sum().backward(retain_graph=True)
    for layer in encoder.layers:
        assert layer.scheduler.own.bias.grad is not None
        assert (layer.scheduler.own.bias.grad > 0).all(), "a readier yes is a longer wait"
        assert layer.scheduler.own.weight.grad.abs().max() > 0
        assert layer.scheduler.offer.weight.grad.abs().max() > 0
    encoder.zero_grad()
    frames.square().mean().backward()
    assert all(layer.scheduler.own.weight.grad.abs().max() > 0 for layer in encoder.layers[:-1])


def test_cold_soft_masks_are_hard_ones() -> None:
    encoder, x, lengths = random_encoder(0), random_features(2, 31, 0), torch.tensor([31, 20])
    hard, _ = encoder(x, lengths)
    cold, _ = encoder(x, lengths, temperature=1e-4)
    warm, _ = encoder(x, lengths, temperature=1.0)
    torch.testing.assert_close(cold[0], hard[0], atol=1e-4, rtol=1e-4)
    assert (warm[0] - hard[0]).abs().max() > 1e-2
