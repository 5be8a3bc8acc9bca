"""Tiny random transducers: they say nonsense, but nonsense that depends on the audio, and wait now and then."""

from functools import cache

import torch

from asr.checkpoint import Whisper
from asr.transducer.encoder import EncoderDims
from asr.transducer.model import Transducer
from asr.transducer.trunk import STACK, Trunk
from tests.asr.transducer.random_models import unsettle
from tests.asr.transducer.spelling import pieces_for
from tests.conftest import random_whisper

WAIT = 16.0  # logit of blank, which one piece or two reach at some frames


def random_transducer(base: Whisper, seed: int) -> Transducer:
    """A random head on the encoder of `base`, which becomes its own."""
    pieces, width = pieces_for(), 40
    dims = EncoderDims(STACK * base.dims.n_audio_state, width, heads=2, layers=2, span=6, left=12)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transducer(Trunk(base.encoder), pieces, dims).eval().requires_grad_(False)
        unsettle(model.encoder)
        model.joiner.of_frames.weight.normal_()
        model.joiner.of_frames.bias[model.blank] = WAIT
    # Neither word beginnings nor other pieces touch each other: what it says at a frame has an end.
    starts = torch.tensor(pieces.starts_word)
    model.predictor.embedding.weight.copy_(torch.eye(model.blank + 1, width))
    model.predictor.mix.weight.zero_()
    model.predictor.mix.weight[:, -width:] = 10 * torch.eye(width)
    model.joiner.of_contexts.weight.zero_()
    model.joiner.of_contexts.weight[:-1, : model.blank] = -3.0 * (starts[:, None] == starts)
    return model


@cache
def tiny_transducer() -> Transducer:
    """One that nobody changes."""
    base = random_whisper(0)
    for convolution in (base.encoder.conv1, base.encoder.conv2):
        convolution.weight.mul_(6)  # beside its positions the audio counts
    return random_transducer(base, 0)
