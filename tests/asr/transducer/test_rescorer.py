"""One pass over a tree of texts gives each the probability that it has alone; and the weight decides."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from asr.checkpoint import Whisper
from asr.transducer.hypotheses import TransducerHypothesis
from asr.transducer.rescorer import Rescorer, tree_of
from kernels.int8_linear import padded
from tests.asr.test_layers import Rows
from tests.asr.transducer.spelling import pieces_for

TEXTS = ("he had a map", "he had a map of it", "he sat", "a mat", "")


def heard(model: Whisper, n_frames: int = 70) -> Tensor:
    """Frames as a trunk makes them."""
    frames = torch.randn(1, n_frames, model.dims.n_audio_state, generator=torch.Generator().manual_seed(1))
    return model.encoder.ln_post(frames)


def alone(model: Whisper, frames: Tensor, text: str) -> float:
    """What the decoder thinks of one text, token after token."""
    vocabulary = model.vocabulary
    said = [*(vocabulary.encode(text) if text else []), vocabulary.eot]
    tokens = [*vocabulary.prefix, *said[:-1]]
    causal = torch.ones(1, 1, len(tokens), len(tokens), dtype=torch.bool).tril()
    hidden = model.decoder(torch.tensor([tokens]), frames, torch.arange(len(tokens))[None], causal, None)
    logprobs = model.decoder.project(hidden)[0, :, : vocabulary.eot + 1].log_softmax(-1)
    return float(logprobs[len(vocabulary.prefix) - 1 :].gather(1, torch.tensor(said)[:, None]).sum())


def hypotheses(*scored: tuple[str, float]) -> list[TransducerHypothesis]:
    pieces = pieces_for()
    tokens = [tuple(pieces.encode(text)) for text, _ in scored]
    return [
        TransducerHypothesis(said, (0.0,) * len(said), (0,) * len(said), len(said), (0,) * len(said), score)
        for said, (_, score) in zip(tokens, scored, strict=True)
    ]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:2], TEXTS[:3], TEXTS[2:]])
def test_a_tree_scores_each_text_as_alone(tiny: Whisper, texts: Sequence[str]) -> None:
    """Up to what all texts begin with, which is the same for all."""
    frames = heard(tiny)
    own = torch.tensor([alone(tiny, frames, text) for text in texts])
    together = torch.tensor(Rescorer(tiny.decoder, tiny.vocabulary, 0.5).logprobs(frames, texts))
    assert own.max() - own.min() > 1
    torch.testing.assert_close(together - together[0], own - own[0], rtol=0, atol=2e-3)


def test_texts_share_what_they_begin_with() -> None:
    tree = tree_of([(7, 1, 2), (7, 1, 3, 2), (7, 1)])
    assert (tree.tokens, tree.depths) == ([7, 1, 2, 3, 2], [0, 1, 2, 2, 3])
    assert tree.paths == [(0, 1, 2), (0, 1, 3, 4), (0, 1)]
    assert [row.nonzero().flatten().tolist() for row in tree.mask] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 3, 4],
    ]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_decides_between_the_two(tiny: Whisper, weight: float) -> None:
    frames, scored = heard(tiny), [("he sat", -1.0), ("a mat", -2.0), ("he had a map", -3.0)]
    own = [alone(tiny, frames, text) for text, _ in scored]
    best = max(range(3), key=lambda i: (1 - weight) * scored[i][1] + weight * own[i])
    choices = hypotheses(*scored)
    assert (
        Rescorer(tiny.decoder, tiny.vocabulary, weight).best(frames, choices, pieces_for()) is choices[best]
    )


def test_where_nothing_tells_them_apart_the_transducer_chooses(tiny: Whisper) -> None:
    rescorer, frames = Rescorer(tiny.decoder, tiny.vocabulary, 0.9), heard(tiny)
    assert rescorer.logprobs(frames, ["a mat", "a mat"]) == [0.0, 0.0]
    longest = ["a mat", "a mat " * tiny.dims.n_text_ctx]
    assert rescorer.logprobs(frames, longest) == [0.0, 0.0]
    (only,) = hypotheses(("a mat", -1.0))
    assert rescorer.best(frames, [only], pieces_for()) is only


def test_utterances_of_any_length_meet_few_shapes(make_tiny: Callable[[int], Whisper]) -> None:
    """It serves in bfloat16, where every number of rows costs memory (asr/layers.py)."""
    model = make_tiny(3)
    model.decoder.bfloat16()
    rescorer = Rescorer(model.decoder, model.vocabulary, 0.5)
    with Rows() as rows:
        for n in range(1, 30):
            rescorer.logprobs(heard(model, 13 * n).bfloat16(), ["a mat" * n, "a map" * n])
    assert rows.met <= {padded(n) for n in range(1, 512)} | {300, 600}
    assert len(rows.met) > 5
