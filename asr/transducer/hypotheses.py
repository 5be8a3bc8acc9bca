"""What a stream may have said: hypotheses in pieces, which of them go on, and the many that they stand for."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from asr.biasing import Hotwords
from asr.search import Hypothesis
from asr.transducer.joiner import CONTEXT

MERGED = 4  # equal newest pieces; CONTEXT would do, were no alignment late

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TransducerHypothesis(Hypothesis):
    """A hypothesis of pieces. `logprobs` are among pieces, without blank: when to speak is no doubt about a word."""

    # Features of 40 ms whose frames said the pieces; `frames` tells when that was possible.
    at: tuple[int, ...]
    score: float  # log-probability of the text so far, with what hotwords have added


@dataclass(frozen=True)
class Said:
    """A piece put out."""

    token: int
    logprob: float
    frame: int
    at: int


@dataclass(frozen=True)
class Rival:
    """What might have been said in place of a hypothesis' pieces from `first` on and before `behind`."""

    first: int
    behind: int
    path: tuple[Said, ...]


@dataclass(frozen=True)
class Branch:
    """A hypothesis: what it says beyond its row's settled pieces."""

    score: float
    newest: tuple[int, ...]  # MERGED pieces, blank where there were none yet
    path: tuple[Said, ...] = ()
    bonus: Floats | None = None  # (V,) of hotwords
    rivals: Mapping[tuple[int, int, tuple[int, ...]], tuple[float, Rival]] = field(default_factory=dict)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(said.token for said in self.path)

    @property
    def context(self) -> tuple[int, ...]:
        return self.newest[-CONTEXT:]

    def saying(self, said: Said, score: float, bonus: Floats | None) -> "Branch":
        """This hypothesis and one piece more."""
        return Branch(score, (*self.newest[1:], said.token), (*self.path, said), bonus, self.rivals)

    def standing_for(self, loser: "Branch", n_settled: int) -> "Branch":
        """This hypothesis, which goes on as a worse one would; it remembers where that differs, and what it costs."""
        tokens, others = self.tokens, loser.tokens
        n_same = common(tokens, others)
        n_end = common(tokens[n_same:][::-1], others[n_same:][::-1])
        rival = Rival(
            n_settled + n_same, n_settled + len(tokens) - n_end, loser.path[n_same : len(others) - n_end]
        )
        key = (rival.first, rival.behind, tuple(said.token for said in rival.path))
        cost = self.score - loser.score
        if key in self.rivals and self.rivals[key][0] <= cost:
            return self
        return replace(self, rivals={**self.rivals, key: (cost, rival)})


@dataclass
class TransducerRow:
    """Search state of one stream: columns of settled pieces, and hypotheses of what follows, best first."""

    blank: int
    width: int = 1
    hotwords: Hotwords | None = None
    n_frames: int = 0  # searched
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    live: list[Branch] = field(default_factory=list)

    def begin(self, settled: Iterable[int], width: int, hotwords: Hotwords | None) -> None:
        """Makes the row equal to a fresh one that begins with these settled pieces."""
        for column in (self.tokens, self.logprobs, self.frames, self.at):
            column.clear()
        self.width, self.hotwords, self.n_frames = width, hotwords, 0
        self.record(Said(token, 0.0, 0, 0) for token in settled)
        newest = ((self.blank,) * MERGED + tuple(self.tokens))[-MERGED:]
        self.live = [Branch(0.0, newest, bonus=self.bonus(()))]

    def record(self, path: Iterable[Said]) -> None:
        for said in path:
            self.tokens.append(said.token)
            self.logprobs.append(said.logprob)
            self.frames.append(said.frame)
            self.at.append(said.at)

    def publish(self, branches: Iterable[Branch]) -> None:
        """Goes on with these; what all of them say is settled."""
        best_first = sorted(branches, key=lambda branch: -branch.score)
        n = common(*(branch.tokens for branch in best_first))
        self.record(best_first[0].path[:n])
        self.live = [replace(branch, path=branch.path[n:]) for branch in best_first]

    def bonus(self, path: tuple[int, ...]) -> Floats | None:
        """What hotwords add to the (V,) logits of what follows settled pieces and `path`."""
        if self.hotwords is None:
            return None
        bonus: Floats = self.hotwords.favour(torch.zeros(self.blank + 1), [*self.tokens, *path]).numpy()
        return bonus

    def hypothesis(self) -> TransducerHypothesis:
        return self._whole(self.live[0].path, self.live[0].score)

    def n_best(self, most: int) -> list[TransducerHypothesis]:
        """The likeliest texts, best first: of hypotheses that go on, and of those that they stand for."""
        known = [sorted(branch.rivals.values(), key=lambda rival: rival[0]) for branch in self.live]
        # A text is a live hypothesis and the rivals put into it, of which later ones come at higher cost.
        heap: list[tuple[float, int, tuple[int, ...]]] = [(-b.score, i, ()) for i, b in enumerate(self.live)]
        heapq.heapify(heap)
        found: dict[tuple[int, ...], TransducerHypothesis] = {}
        while heap and len(found) < most:
            loss, i, chosen = heapq.heappop(heap)
            taken = [known[i][k][1] for k in chosen]
            hypothesis = self._with(self.live[i], taken, -loss)
            found.setdefault(hypothesis.tokens, hypothesis)
            for k in range(chosen[-1] + 1 if chosen else 0, len(known[i])):
                cost, rival = known[i][k]
                if all(rival.behind < other.first or other.behind < rival.first for other in taken):
                    heapq.heappush(heap, (loss + cost, i, (*chosen, k)))
        return list(found.values())

    def _with(self, branch: Branch, rivals: list[Rival], score: float) -> TransducerHypothesis:
        columns = zip(self.tokens, self.logprobs, self.frames, self.at, strict=True)
        path = [*(Said(*column) for column in columns), *branch.path]
        for rival in sorted(rivals, key=lambda rival: -rival.first):
            path[rival.first : rival.behind] = rival.path
        whole = TransducerRow(self.blank)
        whole.record(path)
        return replace(whole._whole((), score), stable=len(self.tokens) if not rivals else 0)

    def _whole(self, path: tuple[Said, ...], score: float) -> TransducerHypothesis:
        return TransducerHypothesis(
            tokens=(*self.tokens, *(said.token for said in path)),
            logprobs=(*self.logprobs, *(said.logprob for said in path)),
            frames=(*self.frames, *(said.frame for said in path)),
            stable=len(self.tokens),
            at=(*self.at, *(said.at for said in path)),
            score=score,
        )


def common(*texts: tuple[int, ...]) -> int:
    """How many tokens all texts begin with."""
    return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))))


def added_up(branches: Iterable[Branch]) -> list[Branch]:
    """Alignments with the same pieces as one hypothesis: probabilities add up, the likeliest one tells the times."""
    by_text: dict[tuple[int, ...], Branch] = {}
    for branch in branches:
        text = branch.tokens
        if text in by_text:
            better = max(by_text[text], branch, key=lambda branch: branch.score)
            branch = replace(better, score=float(np.logaddexp(by_text[text].score, branch.score)))
        by_text[text] = branch
    return list(by_text.values())


def merged(branches: Iterable[Branch], n_settled: int) -> list[Branch]:
    """Best first, one for all that have the same newest pieces and so go on alike."""
    kept: dict[tuple[int, ...], Branch] = {}
    for branch in sorted(branches, key=lambda branch: -branch.score):
        better = kept.get(branch.newest)
        kept[branch.newest] = better.standing_for(branch, n_settled) if better else branch
    return list(kept.values())
