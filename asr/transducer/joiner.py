"""Encoded frames x pieces said so far -> what comes next: predictor and joiner.

The joiner adds logits: log p(y | t, u) is the normalised sum of what the frame and what the text say. That is the
"simple" joiner of pruned RNN-T (Kuang et al., 2022, arXiv 2206.13236), kept as the model: its normaliser over a
whole lattice is one matrix product, so nothing of size frames x pieces x vocabulary is ever made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 2  # pieces that the predictor sees


class Predictor(nn.Module):
    """Stateless: a function of the newest CONTEXT pieces (Ghodsi et al., 2020)."""

    def __init__(self, pieces: int, width: int) -> None:
        super().__init__()
        self.blank = pieces  # the last id; as context it stands for "nothing before"
        self.embedding = nn.Embedding(pieces + 1, width)
        self.mix = nn.Linear(CONTEXT * width, width)

    def forward(self, context: Tensor) -> Tensor:
        """(..., CONTEXT) newest pieces, oldest first -> (..., width)"""
        return F.gelu(self.mix(self.embedding(context).flatten(-2)))

    def contexts(self, tokens: Tensor) -> Tensor:
        """(B, U) pieces -> (B, U + 1, CONTEXT): what stands before each of them, and behind the last."""
        return F.pad(tokens, (CONTEXT, 0), value=self.blank).unfold(1, CONTEXT, 1)


class Joiner(nn.Module):
    """Logits of frames and logits of contexts, added."""

    def __init__(self, width: int, pieces: int) -> None:
        super().__init__()
        self.of_frames = nn.Linear(width, pieces + 1)
        self.of_contexts = nn.Linear(width, pieces + 1, bias=False)

    def forward(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """(..., width) each, broadcast -> (..., pieces + 1) log-probabilities; blank is the last."""
        return (self.of_frames(frames).float() + self.of_contexts(contexts).float()).log_softmax(-1)

    def lattice(self, frames: Tensor, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities of blank and of the right piece at every point of the lattice.

        Args:
            frames: (B, T, width)
            contexts: (B, U + 1, width)
            tokens: (B, U), any valid id where a row has ended.

        Returns:
            (B, T, U + 1, 2) float32: blank, and the next piece (of no meaning at u = U).
        """
        heard = self.of_frames(frames).float()  # (B, T, V)
        said = self.of_contexts(contexts).float()  # (B, U + 1, V)
        with torch.autocast(frames.device.type, enabled=False):
            high, low = heard.amax(-1, keepdim=True), said.amax(-1, keepdim=True)
            total = (heard - high).exp() @ (said - low).exp().transpose(1, 2)  # (B, T, U + 1)
            normaliser = total.clamp_min(1e-30).log() + high + low.transpose(1, 2)
            following = F.pad(tokens, (0, 1))  # (B, U + 1)
            of_heard = heard.gather(2, following[:, None].expand(-1, heard.shape[1], -1))
            of_said = said.gather(2, following[..., None]).transpose(1, 2)
            blank = heard[..., -1:] + said[..., -1][:, None]
            return torch.stack([blank - normaliser, of_heard + of_said - normaliser], dim=-1)
