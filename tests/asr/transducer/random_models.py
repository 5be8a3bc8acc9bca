"""Random adaptive encoders whose schedulers say yes here and no there."""

import torch

from asr.transducer.encoder import AdaptiveEncoder, EncoderDims

DIMS = EncoderDims(features=12, width=16, heads=2, layers=3, span=4, left=6)


def unsettle(encoder: AdaptiveEncoder) -> AdaptiveEncoder:
    """Makes spans vary from frame to frame, and attention listen closely, so that a wrong mask shows."""
    with torch.no_grad():
        for layer in encoder.layers:
            layer.scheduler.own.weight.normal_(0, 0.5)
            layer.scheduler.offer.weight.normal_(0, 0.5)
            layer.scheduler.own.bias.fill_(0.5)
            layer.attn.query.weight.mul_(4)
            layer.attn.value.weight.mul_(4)
    return encoder


def random_encoder(seed: int, dims: EncoderDims = DIMS) -> AdaptiveEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return unsettle(AdaptiveEncoder(dims)).eval().requires_grad_(False)
