"""What texts make likely: n-grams as they are asked for, on disk, and in the search."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.ancat.language import learn_language
from asr.transducer.language import (
    LANGUAGE,
    LANGUAGE_CONFIG,
    Language,
    Weights,
    code_of,
    load_language,
    save_language,
)
from asr.transducer.search import TransducerSearch
from tests.asr.transducer.spelling import Model, begun, frame, hear, noise, obedient, piece_id, whimsical

EVERY = (1, 1, 1, 1, 1)
FAR = Weights(texts=1.0, own=0.0, piece=0.0)


def language(model: Model, *texts: str, weights: Weights = FAR) -> Language:
    return learn_language(texts, model.pieces, weights, seen=EVERY)


def search(model: Model, of: Language | None) -> TransducerSearch:
    return TransducerSearch(model.predictor, model.joiner, model.pieces, of)


def test_what_follows_is_a_distribution_whatever_stands_before() -> None:
    model = obedient()
    learnt = language(model, "the mat sat on the old hat", "an ant sat on it")
    for before in product((model.blank, 3, 5, 9), repeat=3):
        probabilities = learnt.probabilities(before)
        assert probabilities.sum() == pytest.approx(1, abs=2e-3)
        assert (probabilities > 0).all()


def test_the_longest_known_context_tells_most() -> None:
    model = obedient()
    learnt = language(model, "sat on the mat", "sat on the mat", "hat on the hat")
    ids = model.pieces.encode("sat on the")
    following = model.pieces.encode("sat on the mat")[len(ids)]
    known = learnt.probabilities(ids[-4:])
    assert known.argmax() == following
    assert known[following] > learnt.probabilities(ids[-1:])[following] > 0
    unheard = [piece_id(model, "_it"), piece_id(model, "_it"), ids[-1]]
    assert learnt.probabilities(unheard) == pytest.approx(learnt.probabilities(ids[-1:]))


def test_codes_tell_contexts_apart() -> None:
    codes = {code_of(pieces, 4) for pieces in product(range(5), repeat=3)}
    assert len(codes) == 5**3


def test_it_lies_beside_a_head(tmp_path: Path) -> None:
    model = obedient()
    learnt = language(model, "the mat sat on the old hat", weights=Weights(0.5, 0.25, 1.0))
    save_language(learnt, tmp_path / "new", model.pieces)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {LANGUAGE, LANGUAGE_CONFIG}
    again = load_language(tmp_path / "new", len(model.pieces))
    assert again.weights == learnt.weights
    assert again.context == learnt.context == 4
    for before in ([model.blank] * 4, model.pieces.encode("the mat")):
        assert again.probabilities(before) == pytest.approx(learnt.probabilities(before))


def test_texts_decide_in_a_beam_what_sounds_alike() -> None:
    """Two pieces are as likely by their sound; what is said before tells which one is meant."""
    model = obedient()
    first, one, other = (piece_id(model, piece) for piece in ("_h", "at", "ad"))
    frames = torch.stack([frame(model, _h=9), frame(model), frame(model, at=9, ad=9.1), frame(model)])
    learnt = language(model, *["the hat"] * 5, "mad", weights=Weights(0.5, 0.0, 1.0))
    for texts, width, expected in ((None, 4, other), (learnt, 1, other), (learnt, 4, one)):
        of = search(model, texts)
        said = hear(of, begun(of, width), frames)
        assert said.tokens == (first, expected)
    alone = hear(search(model, None), begun(search(model, None), 4), frames)
    assert said.logprobs[1] > alone.logprobs[1]  # and so it is surer of it


def test_what_texts_add_leaves_blank_alone() -> None:
    model = whimsical(0)
    learnt = language(model, "the mat sat on the hat", weights=Weights(0.5, 0.25, 1.0))
    own = np.log(np.full(len(model.pieces), 1 / len(model.pieces), np.float32))
    added = learnt.added([model.blank] * 4, own)
    expected = 0.5 * np.log(learnt.probabilities([model.blank] * 4)) - 0.25 * own + 1.0
    assert added[:-1] == pytest.approx(expected)
    assert added[-1] == 0


def test_any_cutting_says_the_same() -> None:
    """What texts add hangs on the newest pieces, which go with a stream from step to step."""
    model, frames = whimsical(1, wait=1.0), noise(40, 1)
    learnt = language(model, "the mat sat on the old hat", "an ant sat on it", weights=Weights(0.5, 0.3, 0.4))
    whole, cut = search(model, learnt), search(model, learnt)
    expected = hear(whole, begun(whole, 4), frames)
    state = begun(cut, 4)
    for piece in frames.split([1, 7, 0, 20, 12]):
        said = hear(cut, state, piece)
    assert len(expected.tokens) > 3
    assert said.tokens == expected.tokens
    assert said.at == expected.at
    assert said.score == pytest.approx(expected.score, abs=1e-3)
