"""The largest of many scores, and their sum: what a search asks of a vocabulary of 50 000 tokens, again and again.

torch's `max` with indices is not vectorised on a CPU, and `nonzero` looks at every element: 42 and 70 us a row of
50 000. Here scores are folded into some thirty rows, whose maxima cost one pass over memory, and only the few columns
that matter are looked at one by one: 10 us each.
"""

from functools import cache

import torch
from torch import Tensor

_LEAST_FOLDS = 16
_LEAST_WIDTH = 256  # below, folding costs more than it saves


def peaks(x: Tensor, most: int = 1) -> tuple[Tensor, Tensor]:
    """(n, V) -> the `most` largest of each row (n, most), best first, and where they are, int64; of equals, any."""
    folds = _folds(x.shape[-1])
    if x.device.type != "cpu" or folds == 1:
        return _largest(x, most)
    folded, width = x.unflatten(-1, (folds, -1)), x.shape[-1] // folds
    _, columns = _largest(folded.amax(-2), most)  # which hold them all
    held = folded[torch.arange(len(x))[:, None], :, columns]  # (n, most, folds)
    values, at = _largest(held.flatten(1), most)
    return values, at % folds * width + columns.gather(1, at // folds)


def near_peaks(x: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """(n, V) -> (rows, columns), (m,) int64 each, of all that is less than `margin` below the largest of its row."""
    folds = _folds(x.shape[-1])
    folded, width = x.unflatten(-1, (folds, -1)), x.shape[-1] // folds
    maxima = folded.amax(-2)
    least = maxima.amax(-1, keepdim=True) - margin
    row, column = (maxima > least).nonzero(as_tuple=True)
    which, fold = (folded[row, :, column] > least[row]).nonzero(as_tuple=True)
    return row[which], fold * width + column[which]


def log_sum_exp(x: Tensor, at: Tensor) -> Tensor:
    """(n, V) -> (n,) logarithms of the sums of exponentials; `at` (n,) points at a finite element of each row."""
    if x.device.type != "cpu":
        return x.logsumexp(-1)
    # torch's log_softmax takes half the time of its logsumexp, and a row at a time stays in a core's cache.
    return torch.stack([row[i] - row.log_softmax(-1)[i] for row, i in zip(x, at.tolist(), strict=True)])


def _largest(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    values, indices = x.max(-1, keepdim=True) if most == 1 else x.topk(most)
    return values, indices


@cache
def _folds(n: int) -> int:
    """The least number of equal parts of `n` that is worth folding into, or 1."""
    return next((k for k in range(_LEAST_FOLDS, n // _LEAST_WIDTH + 1) if n % k == 0), 1)
