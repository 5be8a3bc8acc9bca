"""The losses against what they stand for: sums over all alignments, and the latency that a schedule has."""

from itertools import product

import pytest
import torch
from torch import Tensor

from adapters.ancat.losses import ctc_loss, guess_loss, latency, rnnt_loss
from adapters.ancat.train import hard_latency
from asr.transducer.joiner import Joiner, Predictor
from tests.asr.transducer.random_models import DIMS, random_encoder

PIECES, WIDTH = 5, 8


def parts(seed: int = 0) -> tuple[Joiner, Predictor, Tensor]:
    torch.manual_seed(seed)
    return Joiner(WIDTH, PIECES), Predictor(PIECES, WIDTH), torch.randn(2, 7, WIDTH, requires_grad=True)


def slow_rnnt(joiner: Joiner, predictor: Predictor, frames: Tensor, tokens: Tensor) -> Tensor:
    """-log P(tokens | frames) of one row, node by node over the whole vocabulary."""
    n_frames, n = len(frames), len(tokens)
    contexts = predictor(predictor.contexts(tokens[None]))[0]
    reached: dict[tuple[int, int], Tensor] = {(0, 0): torch.zeros(())}
    for t, u in product(range(n_frames), range(n + 1)):
        ways = []
        if t:
            ways.append(reached[t - 1, u] + joiner(frames[t - 1], contexts[u])[PIECES])
        if u:
            ways.append(reached[t, u - 1] + joiner(frames[t], contexts[u - 1])[tokens[u - 1]])
        if ways:
            reached[t, u] = torch.logsumexp(torch.stack(ways), 0)
    return -(reached[n_frames - 1, n] + joiner(frames[-1], contexts[n])[PIECES])


def test_rnnt_is_the_sum_over_all_alignments_with_gradients() -> None:
    joiner, predictor, frames = parts()
    lengths, tokens, n_tokens = (
        torch.tensor([7, 4]),
        torch.tensor([[1, 1, 4], [0, 3, 0]]),
        torch.tensor([3, 2]),
    )
    inputs = [frames, *joiner.parameters(), *predictor.parameters()]
    loss = rnnt_loss(joiner, predictor, frames, lengths, tokens, n_tokens)
    found = torch.autograd.grad(loss, inputs)
    slow = [
        slow_rnnt(joiner, predictor, frames[row, : lengths[row]], tokens[row, : n_tokens[row]])
        for row in range(2)
    ]
    expected = (slow[0] + slow[1]) / 5
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not found[0][1, 4:].any(), "what lies beyond a row's end teaches nothing"


def test_ctc_is_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 4, 3), torch.tensor([[0, 0], [1, 0]])  # blank is 2
    lengths, n_tokens = torch.tensor([4, 3]), torch.tensor([2, 1])
    total = 0.0
    for row, said in enumerate(([0, 0], [1])):
        logprobs = logits[row, : lengths[row]].log_softmax(-1)
        likely = 0.0
        for path in product(range(3), repeat=int(lengths[row])):
            heard = [p for i, p in enumerate(path) if p != 2 and (i == 0 or path[i - 1] != p)]
            if heard == said:
                likely += float(sum(logprobs[t, p] for t, p in enumerate(path)).exp())
        total -= float(torch.tensor(likely).log())
    assert ctc_loss(logits, lengths, tokens, n_tokens).item() == pytest.approx(total / 3, rel=1e-5)


def test_guesses_are_asked_of_frames_that_have_one() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, -100, 0], [-100, -100, 2]])
    logprobs = logits.log_softmax(-1)
    expected = -(logprobs[0, 0, 3] + logprobs[0, 2, 0] + logprobs[1, 2, 2]) / 3
    torch.testing.assert_close(guess_loss(logits, labels), expected)
    assert guess_loss(logits, torch.full((2, 3), -100)).item() == 0


def test_the_latency_that_is_priced_is_the_true_one() -> None:
    encoder = random_encoder(0).requires_grad_(True)
    x = torch.randn(3, 40, DIMS.features, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([40, 9, 25])
    _, schedule = encoder(x, lengths)
    priced, true = latency(schedule.rights, lengths), hard_latency(schedule, lengths)
    assert priced.item() == pytest.approx(true, rel=1e-5)
    assert 1 < true < DIMS.span * DIMS.layers
    alone = [hard_latency(encoder(x[b : b + 1, :n], torch.tensor([n]))[1], torch.tensor([n])) * n
             for b, n in enumerate(lengths.tolist())]  # fmt: skip
    assert true == pytest.approx(sum(alone) / int(lengths.sum()), rel=1e-5)
    priced.backward()
    assert all((layer.scheduler.own.bias.grad > 0).any() for layer in encoder.layers)
