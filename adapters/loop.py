"""What training loops have in common: processes, the way down, batches drawn ahead, checkpoints."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

K = TypeVar("K")
T = TypeVar("T")

PATIENCE = timedelta(days=1)  # one process may write the features of all clips while the others wait


@dataclass(frozen=True)
class Team:
    """The processes that train one model together; alone unless torchrun has started several."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Self:
        """The team that torchrun describes in the environment, if it does."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(int(os.environ.get("RANK", "0")), size)

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes files and tells people."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        self.mean(0.0)

    def mean(self, *values: float) -> list[float]:
        """Of each value over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return (sums / self.size).tolist()

    def shares(self, *counts: int) -> list[float]:
        """What a process's mean over `counts` items is to be multiplied by, so that the mean over the processes is
        that over all their items."""
        return [own / (mean or 1.0) for own, mean in zip(counts, self.mean(*counts), strict=True)]

    def average(self, weights: Sequence[nn.Parameter]) -> None:
        """Gives every process the mean of all gradients; a weight that has none in one process counts as 0 there."""
        if self.size == 1:
            return
        having = torch.tensor([float(weight.grad is not None) for weight in weights])
        dist.all_reduce(having)
        some = [weight for weight, n in zip(weights, having.tolist(), strict=True) if n]
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in some]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = (together / self.size).split([weight.numel() for weight in some])
        for weight, part in zip(some, parts, strict=True):
            weight.grad = part.view_as(weight)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process what the first one has, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def descend(
    team: Team,
    loss: Tensor,
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
) -> float:
    """One step of all processes, unless it would go nowhere; returns the gradient's norm before it is clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    team.average(weights)
    norm = float(nn.utils.clip_grad_norm_(weights, clip_norm))
    if math.isfinite(norm):
        optimizer.step()
    return norm


def share_of_rate(step: int, steps: int, warmup: int, least: float) -> float:
    """Of the peak learning rate: linear warm-up, then a cosine down to `least`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def drawn_ahead(keys: Iterable[K], draw: Callable[[K], T]) -> Iterator[T]:
    """`draw(key)` of every key, each drawn in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as ahead:
        coming: Future[T] | None = None
        for key in keys:
            this, coming = coming, ahead.submit(draw, key)
            if this is not None:
                yield this.result()
        if coming is not None:
            yield coming.result()


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole or not at all."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)
