"""Beam search that is taken up again whenever more audio has been heard.

How hypotheses of different lengths are compared. A hypothesis is a text *and* the decision to wait after it. The
probabilities of all texts, each with its wait, add up to one, so they may be compared as they are: a short text
does not win for being short, because it pays for waiting where a word was due, and a long one pays for every word
that was not. What is left is the known bias of such models against length (probability is split at every token
among ways to go on that mean the same). It is mended as by Murray and Chiang (WMT 2018): every decision, waiting
too, may cost `ALLOWANCE`. Unlike an average over the length this does not depend on how much was said before, and
does not lift a hallucination that is sure of itself over a silence that is not.

What is published. Tokens settle when every hypothesis has them and they are older than the newest `unsettled`, or
at the latest when they are older than `contested`: then hypotheses that contradict the best one are dropped. What
has settled never changes.

What is computed. The audio's keys and values exist once per stream. Each hypothesis has a text row; all rows of a
stream share what has settled, and a new hypothesis copies what is younger than that alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor

from asr.biasing import Hotwords
from asr.cache import KVCache
from asr.checkpoint import Vocabulary
from asr.decoder import Decoder
from asr.device import upload
from asr.limits import MAX_BEAM
from asr.search import (
    Asked,
    GreedySearch,
    Hypothesis,
    Judged,
    Row,
    Score,
    Search,
    SearchState,
    hasty_tokens,
    is_loop,
)

ALLOWANCE = 0.1  # nats that a decision may cost
MARGIN = 4.0  # nats behind the best at which a hypothesis is given up
CONTESTED = 6  # tokens on which a beam may disagree


@dataclass(frozen=True)
class _Said:
    """An unsettled token of a hypothesis."""

    score: Score
    gain: float  # what it adds to the hypothesis' score
    frame: int

    @property
    def token(self) -> int:
        return self.score.token


@dataclass(frozen=True)
class _Branch:
    """A hypothesis: what it says beyond the settled tokens, and the text row with its keys and values."""

    row: int
    path: tuple[_Said, ...] = ()
    wait: float = 0.0  # what waiting adds to the score; 0 while it is open
    ahead: Judged | None = None  # what may follow, while it is open

    @property
    def score(self) -> float:
        return sum(said.gain for said in self.path) + self.wait

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(said.token for said in self.path)


@dataclass
class BeamRow(Row):
    """A stream with several hypotheses; the columns hold the best one."""

    width: int = 1
    text_rows: tuple[int, ...] = ()  # of the decoder's state, at least `width`
    open: list[_Branch] = field(default_factory=list)  # best first
    waiting: list[_Branch] = field(default_factory=list)
    fixed: dict[int, int] = field(
        default_factory=dict
    )  # text row: leading entries that never change any more

    def begin(self, prefix: tuple[int, ...], settled: Sequence[int], hotwords: Hotwords | None) -> None:
        super().begin(prefix, settled, hotwords)
        self.open, self.waiting, self.fixed = [_Branch(self.text_rows[0])], [], {}

    @property
    def settled(self) -> list[int]:
        return self.tokens[: self.stable]

    def publish(self, unsettled: int, contested: int) -> None:
        """Puts the best hypothesis into the columns, settles what is due and drops what contradicts it."""
        branches = sorted([*self.waiting, *self.open], key=lambda branch: -branch.score)
        best, paths = branches[0], [branch.tokens for branch in branches]
        self.cut(self.stable)
        for said in best.path:
            self.push(*said.score, frame=said.frame)
        n_agreed = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*paths, strict=False))))
        n = max(0, min(n_agreed, len(best.path) - unsettled), len(best.path) - contested)
        self.stable += n
        kept = (b for b, tokens in zip(branches, paths, strict=True) if tokens[:n] == paths[0][:n])
        self.open = [_Branch(branch.row, branch.path[n:]) for branch in kept]
        self.waiting = []


@dataclass(frozen=True)
class _Candidate:
    """A way for a hypothesis to go on: to say something, or (None) to wait."""

    score: float
    branch: _Branch
    said: _Said | None
    wait: float = 0.0  # what waiting adds to the score


class BeamSearch(Search):
    """Beam search, each stream with a width of its own; with width 1 it decides as `GreedySearch` does.

    Args:
        width: of streams that are not told otherwise when they are reset, and the most that one may have.
        contested: tokens that may stay unsettled while hypotheses disagree about them.
        others: as `Search`.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        width: int,
        unsettled: int = 2,
        contested: int = CONTESTED,
        suppress: tuple[int, ...] = (),
        paced: bool = False,
    ) -> None:
        super().__init__(decoder, vocabulary, unsettled=unsettled, suppress=suppress, paced=paced)
        self.width = self._usual_width = width
        self.contested = max(contested, unsettled)

    def init_state(self, rows: int) -> SearchState:
        decoder = self.decoder.init_state(rows)
        spare = self.width - 1
        beams = []
        for slot in range(rows):
            first = rows + slot * spare
            beam = BeamRow(self.vocabulary.prefix, text_rows=(slot, *range(first, first + spare)))
            beam.width = self._usual_width
            beam.begin(self.vocabulary.prefix, (), None)
            beams.append(beam)
        return SearchState(beams, replace(decoder, text=decoder.text.with_rows(rows * self.width)))

    def reset(
        self,
        state: SearchState,
        rows: Tensor,
        tokens: list[list[int]] | None = None,
        prefixes: list[tuple[int, ...]] | None = None,
        hotwords: Sequence[Hotwords | None] | None = None,
        widths: list[int] | None = None,
    ) -> None:
        for i, beam in enumerate(_beams(state, rows)):
            beam.width = widths[i] if widths else self._usual_width
            assert 1 <= beam.width <= self.width
            state.decoder.text.free(torch.tensor(beam.text_rows))
        super().reset(state, rows, tokens, prefixes, hotwords)

    def step(
        self, features: Tensor, state: SearchState, rows: Tensor, max_tokens: int, replaced: int = 0
    ) -> tuple[list[Hypothesis], SearchState]:
        self.decoder.listen(features, state.decoder, rows, replaced)
        beams = _beams(state, rows)
        self._rescore(beams, state, rows)
        plausible = self._plausible(features.shape[1] - replaced)
        for _ in range(max_tokens):
            if not self._extend(beams, state, rows, plausible):
                break
        for beam in beams:
            beam.publish(self.unsettled, self.contested)
        return self.hypotheses(state, rows), state

    def settle(self, state: SearchState, rows: Tensor) -> list[Hypothesis]:
        for beam in _beams(state, rows):
            beam.stable = len(beam.tokens)
            beam.open = [_Branch(beam.open[0].row)]
        return super().settle(state, rows)

    def _rescore(self, beams: list[BeamRow], state: SearchState, rows: Tensor) -> None:
        """Scores every hypothesis' unsettled tokens under the new audio, and cuts those that fell."""
        cache, feeds, text_rows, audio_rows, starts = state.decoder.text, [], [], [], []
        for beam, slot in zip(beams, rows.tolist(), strict=True):
            base = len(beam.prefix) + beam.stable
            for branch in beam.open:
                # The logits that judge the first unsettled token come from the position before it.
                start = self._first_fed(beam, int(cache.lengths[branch.row]))
                cache.lengths[branch.row] = beam.fixed[branch.row] = start
                feeds.append([*beam.prefix, *beam.settled, *branch.tokens][start:])
                text_rows.append(branch.row)
                audio_rows.append(slot)
                starts.append(base - 1 - start)
        logits = self._feed(feeds, starts, state, torch.tensor(text_rows), torch.tensor(audio_rows))
        asked = [
            Asked(beam.hotwords, [*beam.settled, *branch.tokens[:n]], token)
            for beam in beams
            for branch in beam.open
            for n, token in enumerate([*branch.tokens, self.vocabulary.eot])
        ]
        judged = iter(self._judge(logits, asked, _most(beams)))
        for beam in beams:
            held: dict[tuple[int, ...], _Branch] = {}  # cut back, two may have become one
            for branch in beam.open:
                places = [next(judged) for _ in range(len(branch.path) + 1)]
                path = _holding(branch.path, places, beam.width)
                cache.lengths[branch.row] -= len(branch.path) - len(path)
                branch = replace(branch, path=path, ahead=places[len(path)])
                held.setdefault(branch.tokens, branch)
            beam.open = sorted(held.values(), key=lambda branch: -branch.score)

    def _extend(self, beams: list[BeamRow], state: SearchState, rows: Tensor, plausible: int) -> bool:
        """Lets every open hypothesis wait or say one token more; False once all wait."""
        slots = {slot: beam for slot, beam in zip(rows.tolist(), beams, strict=True) if beam.open}
        for slot, beam in slots.items():
            frame = int(state.decoder.audio.lengths[slot])
            known = {branch.tokens for branch in (*beam.open, *beam.waiting)}
            ways = [way for branch in beam.open for way in self._ways(beam, branch, known, frame, plausible)]
            self._choose(beam, ways, state.decoder.text)
        going = [(slot, branch) for slot, beam in slots.items() for branch in beam.open]
        if not going:
            return False
        feeds = [[branch.path[-1].token] for _, branch in going]
        text_rows = torch.tensor([branch.row for _, branch in going])
        audio_rows = torch.tensor([slot for slot, _ in going])
        logits = self._feed(feeds, [0] * len(feeds), state, text_rows, audio_rows)
        eot = self.vocabulary.eot
        texts = [(slots[slot], [*slots[slot].settled, *branch.tokens]) for slot, branch in going]
        asked = [Asked(beam.hotwords, text, eot) for beam, text in texts]
        judged = iter(self._judge(logits, asked, _most(beams)))
        for beam in slots.values():
            beam.open = [replace(branch, ahead=next(judged)) for branch in beam.open]
        return True

    def _ways(
        self, beam: BeamRow, branch: _Branch, known: set[tuple[int, ...]], frame: int, plausible: int
    ) -> list[_Candidate]:
        """How a hypothesis may go on, to one that is not `known`.

        One whose best way would be a loop, or that is full, can only wait.
        """
        own, ahead = branch.tokens, branch.ahead
        assert ahead is not None
        text = [*beam.settled, *own]
        wait = _gain(ahead.wait, ahead)
        ways = [_Candidate(branch.score + wait, branch, None, wait)]
        hasty = hasty_tokens([said.frame for said in branch.path], frame, plausible)
        if self._full(len(text)) or is_loop([*text, ahead.best[0].token], hasty):
            return ways
        for best in ahead.best[: beam.width + 1]:
            token = best.token
            if token == ahead.wait.token or is_loop([*text, token], hasty) or (*own, token) in known:
                continue
            said = _Said(best, _gain(best, ahead), frame)
            ways.append(_Candidate(branch.score + said.gain, branch, said))
        return ways

    def _choose(self, beam: BeamRow, candidates: list[_Candidate], cache: KVCache) -> None:
        """Keeps the best candidates; the first of a hypothesis goes on in its text row, the others in copies."""
        best = sorted(candidates, key=lambda candidate: -candidate.score)[: beam.width - len(beam.waiting)]
        bar = max([best[0].score, *(branch.score for branch in beam.waiting)]) - MARGIN
        kept = [candidate for candidate in best if candidate.score >= bar]
        kept.sort(key=lambda candidate: candidate.said is not None)  # one that waits needs its row as it is
        used = {branch.row for branch in (*beam.waiting, *(candidate.branch for candidate in kept))}
        free = sorted(set(beam.text_rows) - used, key=lambda row: beam.fixed.get(row, 0))
        beam.open, taken, sources, targets = [], set[int](), list[int](), list[int]()
        for candidate in kept:
            branch = candidate.branch
            if branch.row in taken:
                sources.append(branch.row)
                branch = replace(branch, row=free.pop())
                targets.append(branch.row)
            taken.add(branch.row)
            if candidate.said is None:
                beam.waiting.append(replace(branch, wait=candidate.wait))
            else:
                beam.open.append(replace(branch, path=(*branch.path, candidate.said)))
        if sources:
            starts = [beam.fixed.get(row, 0) for row in targets]
            cache.copy(torch.tensor(sources), torch.tensor(targets), torch.tensor(starts))
            beam.fixed |= {row: beam.fixed[source] for source, row in zip(sources, targets, strict=True)}


class StreamSearch(BeamSearch):
    """Greedy streams and beams side by side, paced: each has the width that it is reset with, 1 unless told."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        unsettled: int = 2,
        suppress: tuple[int, ...] = (),
    ) -> None:
        super().__init__(
            decoder, vocabulary, width=MAX_BEAM, unsettled=unsettled, suppress=suppress, paced=True
        )
        self._usual_width = 1
        self._greedy = GreedySearch(decoder, vocabulary, unsettled=unsettled, suppress=suppress, paced=True)

    def step(
        self, features: Tensor, state: SearchState, rows: Tensor, max_tokens: int, replaced: int = 0
    ) -> tuple[list[Hypothesis], SearchState]:
        wide = torch.tensor([beam.width > 1 for beam in _beams(state, rows)])
        if not wide.any():
            return self._greedy.step(features, state, rows, max_tokens, replaced)
        ones, others = (~wide).nonzero()[:, 0], wide.nonzero()[:, 0]
        if len(ones):
            theirs = features[upload(ones, self._device)]
            self._greedy.step(theirs, state, rows[ones], max_tokens, replaced)
        super().step(features[upload(others, self._device)], state, rows[others], max_tokens, replaced)
        return self.hypotheses(state, rows), state


def _most(beams: Sequence[BeamRow]) -> int:
    """How many ways a hypothesis may go on: of as many as its beam is wide, and one more where one is to wait."""
    return 1 + max(beam.width for beam in beams)


def _gain(score: Score, place: Judged) -> float:
    """What a decision adds to the score of a hypothesis."""
    return score.logit - place.normaliser + ALLOWANCE


def _holding(path: Sequence[_Said], places: Sequence[Judged], width: int) -> tuple[_Said, ...]:
    """The unsettled tokens as judged anew, up to one that fell and left the `width` best of its place."""
    held: list[_Said] = []
    for said, place in zip(path, places, strict=False):
        asked = place.asked
        if asked.logit < said.score.logit and place.best[width - 1].logit > asked.logit:
            break
        held.append(replace(said, score=asked, gain=_gain(asked, place)))
    return tuple(held)


def _beams(state: SearchState, rows: Tensor) -> list[BeamRow]:
    return [cast("BeamRow", state.rows[row]) for row in rows.tolist()]
