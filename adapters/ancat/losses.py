"""What the transducer is trained on: RNN-T over a lattice of two choices, CTC, and the price of waiting."""

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from asr.transducer.joiner import Joiner, Predictor
from asr.transducer.schedule import soft_completion

_BLANK, _PIECE = 0, 1  # the two choices of the lattice


def rnnt_loss(
    joiner: Joiner,
    predictor: Predictor,
    frames: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    n_tokens: Tensor,
    fast_emit: float = 0.0,
) -> Tensor:
    """Negative log-likelihood per piece (Graves, 2012).

    Every point of the lattice knows two ways on, blank and the right piece; torchaudio's recursion needs no more,
    so it is given a vocabulary of two and log-probabilities.

    Args:
        frames: (B, T, width); lengths: (B,); tokens: (B, U); n_tokens: (B,)
        fast_emit: by how much more than waiting a piece is pulled up, whatever the likelihood says (FastEmit, Yu et
            al., 2021, arXiv 2010.11148): else a transducer learns to speak late, which no schedule accounts for.
    """
    lattice = joiner.lattice(frames, predictor(predictor.contexts(tokens)), tokens)
    if fast_emit:
        piece = lattice[..., _PIECE]
        piece = piece + fast_emit * (piece - piece.detach())  # the same value, a larger gradient
        lattice = torch.stack([lattice[..., _BLANK], piece], dim=-1)
    losses = torchaudio.functional.rnnt_loss(
        lattice.float().contiguous(),
        torch.full_like(tokens, _PIECE, dtype=torch.int32),
        lengths.int(),
        n_tokens.int(),
        blank=_BLANK,
        reduction="none",
        fused_log_softmax=False,
    )
    return losses.sum() / n_tokens.sum()


def ctc_loss(logits: Tensor, lengths: Tensor, tokens: Tensor, n_tokens: Tensor) -> Tensor:
    """Negative log-likelihood per piece; logits (B, T, V), blank last."""
    logprobs = logits.float().log_softmax(-1).transpose(0, 1)
    blank = logits.shape[-1] - 1
    losses = F.ctc_loss(logprobs, tokens, lengths, n_tokens, blank, reduction="none", zero_infinity=True)
    return losses.sum() / n_tokens.sum()


def guess_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of frames with a rough alignment: it gets CTC and RNN-T off the plateau they begin on.

    Args:
        logits: (B, T, V)
        labels: (B, T), -100 for frames that nothing is known of.
    """
    known = labels.numel() - int((labels == -100).sum())
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return losses / max(1, known)


def latency(rights: list[Tensor], lengths: Tensor) -> Tensor:
    """Mean latency in frames, differentiable; equal to the true one where masks are straight-through."""
    done = soft_completion(rights)
    at = torch.arange(done.shape[1], device=done.device)
    real = at < lengths.to(done.device)[:, None]
    return ((done - at) * real).sum() / real.sum()
