"""Greedy and beam search over a transducer, taken up again whenever frames are finished.

The frames of a step meet the joiner in one matrix product, and what a context adds is remembered: the predictor is a
function of the newest two pieces, of which speech uses few. The rest is additions on the CPU, which waits for a GPU
but once a step. Runs of frames in which nothing can be said, most of them, are passed in one go.

A beam (width 2 and more) searches by modified adaptive expansion (Kim et al., "Accelerating RNN Transducer Inference
via Adaptive Expansion Search", 2020): in a frame each hypothesis is followed by the pieces within GAMMA nats of its
best way, up to STEPS times. In place of the paper's prefix search, alignments that end a frame with the same pieces
are added up, so a score is the probability of a text over all alignments that stayed in the beam. What texts make
likely (asr/transducer/language.py) counts here alone: greedy search cannot take back a silence, and would say less.

A stateless predictor forgets: hypotheses that differ further back than it sees go on alike for ever, and would fill
the beam. Where the newest MERGED pieces are equal, only the better one goes on, and remembers the other for `n_best`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.biasing import Hotwords
from asr.search import Hypothesis
from asr.transducer.hypotheses import (
    MERGED,
    Branch,
    Floats,
    Said,
    TransducerHypothesis,
    TransducerRow,
    added_up,
    merged,
)
from asr.transducer.joiner import CONTEXT, Joiner, Predictor
from asr.transducer.language import Language
from asr.transducer.pieces import Pieces
from asr.transducer.trunk import STACK

MOST_PIECES = 10  # that greedy search puts out at one frame
STEPS = 2  # pieces that a beam's hypothesis may gain at one frame
GAMMA = 4.0  # nats behind its best way at which a hypothesis is not followed; 2.3 in the paper
MARGIN = 6.0  # nats behind the best hypothesis at which one is given up
BETA = 2  # hypotheses beyond the width that may go on within a frame
BLOCK = 32  # frames looked at together
REMEMBERED = 16_384  # contexts: 17 MB with 256 pieces


@dataclass(frozen=True)
class TransducerSearchState:
    rows: Sequence[TransducerRow]


class TransducerSearch:
    """Decodes many streams, each with a width of its own, from frames that come raggedly.

    Args:
        predictor, joiner: whose weights do not change any more.
        pieces: what may be said.
        language: what texts make likely, if that is to count.
        gamma, margin, steps: see GAMMA, MARGIN and STEPS.
    """

    def __init__(
        self,
        predictor: Predictor,
        joiner: Joiner,
        pieces: Pieces,
        language: Language | None = None,
        *,
        gamma: float = GAMMA,
        margin: float = MARGIN,
        steps: int = STEPS,
    ) -> None:
        self.joiner = joiner
        self.pieces = pieces
        self.gamma = gamma
        self.margin = margin
        self.steps = steps
        self.blank = pieces.wait
        self._contexts = _Contexts(predictor, joiner)
        self._texts = _Texts(language, self._contexts) if language else None

    def init_state(self, rows: int) -> TransducerSearchState:
        fresh = [TransducerRow(self.blank) for _ in range(rows)]
        for row in fresh:
            row.begin((), 1, None)
        return TransducerSearchState(fresh)

    def reset(
        self,
        state: TransducerSearchState,
        rows: Tensor,
        tokens: list[list[int]] | None = None,
        widths: list[int] | None = None,
        hotwords: Sequence[Hotwords | None] | None = None,
    ) -> None:
        """Makes `rows` equal to fresh ones that begin with the given settled `tokens`.

        Args:
            tokens: what was said before the frames to come. A transducer says all that it hears: where frames say
                these pieces, too, they are said twice.
            widths: hypotheses of each row, 1 (greedy) unless told.
            hotwords: what each row favours.
        """
        for i, row in enumerate(rows.tolist()):
            width = widths[i] if widths else 1
            assert width >= 1
            state.rows[row].begin(tokens[i] if tokens else (), width, hotwords[i] if hotwords else None)

    @torch.no_grad()
    def step(
        self, frames: Tensor, counts: Tensor, heard: Tensor, state: TransducerSearchState, rows: Tensor
    ) -> list[Hypothesis]:
        """Hears encoded frames and says what they say.

        Args:
            frames: (B, M, width), newly encoded, of `rows`.
            counts: (B,) on the host, how many each row has got, any number up to M.
            heard: (B, M) int64 on the host, the newest feature that had come when each frame was finished.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows stepping.
        """
        streams = [state.rows[row] for row in rows.tolist()]
        if not frames.shape[1]:
            return self.hypotheses(state, rows)
        n, times = counts.numpy(), STACK * (heard.numpy() + 1)
        logits: Floats = self.joiner.of_frames(frames).float().cpu().numpy()
        logits[..., self.pieces.unspoken] = -np.inf
        greedy = np.array([stream.width == 1 for stream in streams])
        for start in range(0, frames.shape[1], BLOCK):
            block, left = slice(start, start + BLOCK), (n - start).clip(0, BLOCK)
            some = np.flatnonzero(greedy & (left > 0))
            self._greedy([streams[i] for i in some], logits[some, block], left[some], times[some, block])
            for i in np.flatnonzero(~greedy & (left > 0)):
                self._beam(streams[i], logits[i, block][: left[i]], times[i, block])
        return self.hypotheses(state, rows)

    def hypotheses(self, state: TransducerSearchState, rows: Tensor) -> list[Hypothesis]:
        """What `rows` have said so far."""
        return [state.rows[row].hypothesis() for row in rows.tolist()]

    def n_best(self, state: TransducerSearchState, row: int, most: int) -> list[TransducerHypothesis]:
        """What `row` may have said, up to `most` texts, the likeliest first; with width 1 there is one."""
        return state.rows[row].n_best(most)

    def settle(self, state: TransducerSearchState, rows: Tensor) -> list[Hypothesis]:
        """Declares everything decoded so far final, at the end of an utterance."""
        for row in rows.tolist():
            state.rows[row].publish(state.rows[row].live[:1])
        return self.hypotheses(state, rows)

    # -- one hypothesis a stream, all streams at once

    def _greedy(
        self,
        streams: list[TransducerRow],
        logits: Floats,
        counts: NDArray[np.int64],
        times: NDArray[np.int64],
    ) -> None:
        """Every round takes each stream to where it says its next piece; logits (B, F, V), times (B, F)."""
        numbers = np.arange(logits.shape[1])
        at, n_here = np.zeros_like(counts), np.zeros_like(counts)  # the next frame, and pieces said there
        going = np.arange(len(streams))
        while len(going):
            branches = [streams[i].live[0] for i in going]
            logprobs, favoured = self._ways(logits[going], branches)
            choice = favoured.argmax(-1)  # (G, F)
            full = n_here[going] >= MOST_PIECES
            choice[full, at[going[full]]] = self.blank
            ahead = (numbers >= at[going, None]) & (numbers < counts[going, None])
            speaks = ahead & (choice != self.blank)
            stops = np.where(speaks.any(1), speaks.argmax(1), counts[going])
            waits = np.where(ahead & (numbers < stops[:, None]), logprobs[..., self.blank], 0).sum(1)
            for k, (i, stop) in enumerate(zip(going.tolist(), stops.tolist(), strict=True)):
                stream, branch, score = streams[i], branches[k], branches[k].score + float(waits[k])
                if stop == counts[i]:
                    stream.live = [replace(branch, score=score)]
                else:
                    token = int(choice[k, stop])
                    said = self._said(logprobs[k, stop], token, int(times[i, stop]), stream.n_frames + stop)
                    stream.record([said])
                    score += float(favoured[k, stop, token])
                    stream.live = [replace(branch.saying(said, score, stream.bonus(())), path=())]
                    n_here[i] = n_here[i] + 1 if stop == at[i] else 1
                at[i] = stop
            going = going[at[going] < counts[going]]
        for stream, n in zip(streams, counts.tolist(), strict=True):
            stream.n_frames += n

    # -- several hypotheses of one stream

    def _beam(self, stream: TransducerRow, logits: Floats, times: NDArray[np.int64]) -> None:
        """Takes a stream's hypotheses through its frames; logits (F, V), times (F,)."""
        branches, at = stream.live, 0
        while at < len(logits):
            logprobs, favoured = self._ways(logits[None, at:], branches, self._texts)
            waits = logprobs[..., self.blank]  # (n, F)
            silent = (favoured[..., : self.blank].max(-1) < waits - self.gamma).all(0)
            n = len(silent) if silent.all() else int(silent.argmin())
            passed = waits[:, :n].sum(1).tolist()
            branches = [replace(b, score=b.score + wait) for b, wait in zip(branches, passed, strict=True)]
            at += n
            if at < len(logits):
                ended = self._frame(stream, branches, logits[at], int(times[at]), stream.n_frames + at)
                kept = merged(ended, len(stream.tokens))[: stream.width]
                branches = [branch for branch in kept if branch.score >= kept[0].score - self.margin]
                at += 1
        stream.n_frames += len(logits)
        stream.publish(branches)

    def _frame(
        self, stream: TransducerRow, branches: list[Branch], logits: Floats, time: int, number: int
    ) -> list[Branch]:
        """All ways through a frame, logits (V,), at which hypotheses may speak."""
        ended: list[Branch] = []
        speaking = branches
        for step in range(self.steps + 1):
            logprobs, favoured = (x[:, 0] for x in self._ways(logits[None, None], speaking, self._texts))
            near = favoured >= favoured.max(-1, keepdims=True) - self.gamma
            for branch, wait, may in zip(speaking, logprobs[:, self.blank], near[:, self.blank], strict=True):
                if may or step == self.steps:
                    ended.append(replace(branch, score=branch.score + float(wait)))
            if step == self.steps:
                break
            near[:, self.blank] = False
            of, tokens = near.nonzero()
            if not len(of):
                break
            scores = np.array([branch.score for branch in speaking])[of] + favoured[of, tokens]
            best = np.argsort(-scores, kind="stable")[: stream.width + BETA]
            following = []
            for i in best.tolist():
                branch, token = speaking[of[i]], int(tokens[i])
                said = self._said(logprobs[of[i]], token, time, number)
                bonus = stream.bonus((*branch.tokens, token))
                following.append(branch.saying(said, float(scores[i]), bonus))
            speaking = following
        return added_up(ended)

    # -- both

    def _ways(
        self, logits: Floats, branches: list[Branch], texts: "_Texts | None" = None
    ) -> tuple[Floats, Floats]:
        """Frames' logits (n | 1, F, V) and n hypotheses -> (n, F, V) log-probabilities, and with hotwords' bonus.

        Where texts count, they are in both, which then do not add up to one.
        """
        logprobs = _log_softmax(logits + self._contexts([branch.context for branch in branches])[:, None])
        if texts is not None:
            logprobs = logprobs + texts([branch.newest for branch in branches])[:, None]
        if all(branch.bonus is None for branch in branches):
            return logprobs, logprobs
        none = np.zeros(self.blank + 1, np.float32)
        bonus = np.stack([none if branch.bonus is None else branch.bonus for branch in branches])
        return logprobs, logprobs + bonus[:, None]

    def _said(self, logprobs: Floats, token: int, frame: int, at: int) -> Said:
        """A piece chosen by the (V,) log-probabilities of all ways."""
        return Said(token, float(_log_softmax(logprobs[: self.blank])[token]), frame, at)


class _Contexts:
    """Remembers the logits of contexts, which the host computes: it would have to wait for each."""

    def __init__(self, predictor: Predictor, joiner: Joiner) -> None:
        if joiner.of_contexts.weight.device.type != "cpu":
            predictor, joiner = copy.deepcopy(predictor).cpu(), copy.deepcopy(joiner).cpu()
        self._predictor = predictor
        self._joiner = joiner
        self._known: dict[tuple[int, ...], Floats] = {}

    def __call__(self, contexts: list[tuple[int, ...]]) -> Floats:
        """CONTEXT newest pieces each -> (n, V)"""
        known = self._known
        missing = [context for context in dict.fromkeys(contexts) if context not in known]
        if missing:
            if len(known) + len(missing) > REMEMBERED:
                known = self._known = {context: known[context] for context in contexts if context in known}
            logits = self._joiner.of_contexts(self._predictor(torch.tensor(missing))).float().numpy()
            known.update(zip(missing, logits, strict=True))
        return np.stack([known[context] for context in contexts])


class _Texts:
    """Remembers what texts add behind the newest pieces."""

    def __init__(self, language: Language, contexts: _Contexts) -> None:
        assert language.context <= MERGED
        self._language = language
        self._contexts = contexts
        self._known: dict[tuple[int, ...], Floats] = {}

    def __call__(self, newest: list[tuple[int, ...]]) -> Floats:
        """MERGED newest pieces each -> (n, V)"""
        missing = [pieces for pieces in dict.fromkeys(newest) if pieces not in self._known]
        if missing:
            if len(self._known) + len(missing) > REMEMBERED:
                self._known = {pieces: self._known[pieces] for pieces in newest if pieces in self._known}
            own = _log_softmax(self._contexts([pieces[-CONTEXT:] for pieces in missing])[:, :-1])
            for pieces, logprobs in zip(missing, own, strict=True):
                self._known[pieces] = self._language.added(pieces, logprobs)
        return np.stack([self._known[pieces] for pieces in newest])


def _log_softmax(x: Floats) -> Floats:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
