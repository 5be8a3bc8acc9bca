"""Search that can be taken up again whenever more audio has been heard, and the greedy way to do it.

EOT means "wait for audio": it ends the work on a chunk and is never stored. When new audio comes, the newest
tokens are scored again, and one that no longer holds is decoded anew (CarelessWhisper, arXiv 2508.12301,
section 4: the result stays what decoding the longer audio from the start would give).
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from asr.biasing import Hotwords
from asr.checkpoint import Vocabulary
from asr.decoder import Decoder, DecoderState
from asr.device import upload
from asr.encoder import FRAMES_PER_SECOND
from kernels.peaks import log_sum_exp, peaks

#: Runs of tokens that stand in a row more often than this are loops and not speech, as "no, no, no, no" may be.
MAX_REPEATS = 3  # of a phrase
MAX_WORD_REPEATS = 8  # of one or two tokens
MAX_HASTY_REPEATS = 1  # of either, put out faster than anybody speaks
FASTEST = 12  # tokens per second
LONGEST_LOOP = 8  # tokens
FED_AGAIN = 3  # tokens of a prefix


@dataclass(frozen=True)
class Hypothesis:
    """What one stream has been heard to say; `tokens[:stable]` are never revised again."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    frames: tuple[int, ...]  # encoder frames heard when each token was first put out
    stable: int


@dataclass
class Row:
    """Search state of one stream, changed in place by a search's `step`."""

    prefix: tuple[int, ...]  # special tokens and prompt, in front of `tokens`
    tokens: list[int] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    stable: int = 0
    hotwords: Hotwords | None = None

    def begin(self, prefix: tuple[int, ...], settled: Sequence[int], hotwords: Hotwords | None) -> None:
        """Makes the row equal to a fresh one that begins with these settled tokens."""
        self.cut(0)
        for token in settled:
            self.push(token, 0.0, 0.0, 0)
        self.prefix, self.stable, self.hotwords = prefix, len(settled), hotwords

    def cut(self, length: int) -> None:
        for column in (self.tokens, self.logits, self.logprobs, self.frames):
            del column[length:]

    def push(self, token: int, logit: float, logprob: float, frame: int) -> None:
        self.tokens.append(token)
        self.logits.append(logit)
        self.logprobs.append(logprob)
        self.frames.append(frame)

    def hypothesis(self) -> Hypothesis:
        return Hypothesis(tuple(self.tokens), tuple(self.logprobs), tuple(self.frames), self.stable)


class Score(NamedTuple):
    """What the decoder makes of a token."""

    token: int
    logit: float  # as the stream's listener would have it
    logprob: float  # without the favour of hotwords


@dataclass(frozen=True)
class Judged:
    """What the decoder makes of one position."""

    best: list[Score]  # what should stand there, the likeliest first
    asked: Score  # a token that is asked about
    wait: Score  # EOT
    normaliser: float


@dataclass(frozen=True)
class Asked:
    """A position to be judged: behind `said`, where `token` may stand."""

    hotwords: Hotwords | None
    said: Sequence[int]
    token: int


@dataclass(frozen=True)
class SearchState:
    rows: Sequence[Row]
    decoder: DecoderState


class Search(ABC):
    """Decoding that goes on whenever audio comes, batched over streams that are out of step.

    Args:
        decoder: the scorer.
        vocabulary: names EOT and the prefix of every hypothesis.
        unsettled: how many of the newest tokens may still be revised.
        suppress: tokens that are never put out; all special tokens but EOT always belong to them.
        paced: a step hears the audio that is new, and nobody repeats a thing within a moment. Otherwise it may be
            all of an utterance.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        unsettled: int = 2,
        suppress: tuple[int, ...] = (),
        paced: bool = False,
    ) -> None:
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.unsettled = unsettled
        self.paced = paced
        self._device = decoder.ln.weight.device
        self._suppress = torch.tensor(suppress, dtype=torch.int64).to(self._device)

    def init_state(self, rows: int) -> SearchState:
        fresh = [Row(self.vocabulary.prefix) for _ in range(rows)]
        return SearchState(fresh, self.decoder.init_state(rows))

    def reset(
        self,
        state: SearchState,
        rows: Tensor,
        tokens: list[list[int]] | None = None,
        prefixes: list[tuple[int, ...]] | None = None,
        hotwords: Sequence[Hotwords | None] | None = None,
    ) -> None:
        """Makes `rows` equal to fresh ones that begin with the given settled `tokens`.

        Args:
            prefixes: what stands in front of each row's tokens, instead of the vocabulary's prefix.
            hotwords: what each row favours.
        """
        self.decoder.reset(state.decoder, rows)
        for i, row in enumerate(rows.tolist()):
            prefix = prefixes[i] if prefixes else self.vocabulary.prefix
            state.rows[row].begin(prefix, tokens[i] if tokens else (), hotwords[i] if hotwords else None)

    @abstractmethod
    def step(
        self, features: Tensor, state: SearchState, rows: Tensor, max_tokens: int, replaced: int = 0
    ) -> tuple[list[Hypothesis], SearchState]:
        """Hears new features and decodes until every stream waits for audio.

        Args:
            features: (B, T, d) encoder frames of `rows`; the first `replaced` of them take the place of the
                newest that were heard, the others are new.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) rows stepping.
            max_tokens: bound of new tokens per stream; what is left over is decoded with the next audio.
        """

    def hypotheses(self, state: SearchState, rows: Tensor) -> list[Hypothesis]:
        """What `rows` have said so far."""
        return [state.rows[row].hypothesis() for row in rows.tolist()]

    def settle(self, state: SearchState, rows: Tensor) -> list[Hypothesis]:
        """Declares everything decoded so far final, at the end of an utterance."""
        for row in rows.tolist():
            state.rows[row].stable = len(state.rows[row].tokens)
        return self.hypotheses(state, rows)

    def _feed(
        self,
        feeds: list[list[int]],
        starts: list[int],
        state: SearchState,
        rows: Tensor,
        audio_rows: Tensor | None = None,
    ) -> Tensor:
        """Runs the decoder over rows of different numbers of tokens, and tells what follows those from `starts` on.

        Returns:
            (n, V) logits with EOT the last id, those of the first row first.
        """
        longest = max(map(len, feeds))
        padded = torch.tensor([feed + [0] * (longest - len(feed)) for feed in feeds])
        counts = torch.tensor([len(feed) for feed in feeds])
        hidden = self.decoder.hidden(padded, state.decoder, rows, audio_rows, counts)
        asked = [
            i * longest + j
            for i, (feed, start) in enumerate(zip(feeds, starts, strict=True))
            for j in range(start, len(feed))
        ]
        hidden = hidden.flatten(0, 1)[upload(torch.tensor(asked), self._device)]
        logits = self.decoder.project(hidden).float()[:, : self.vocabulary.eot + 1]
        logits[:, self._suppress] = -torch.inf
        return logits

    def _judge(self, logits: Tensor, asked: Sequence[Asked], most: int = 1) -> list[Judged]:
        """What (n, V) logits say of n positions, and which `most` tokens are the likeliest there."""
        favoured = Hotwords.favoured(logits, [(place.hotwords, place.said) for place in asked])
        _, best = peaks(favoured, most)
        named = upload(torch.tensor([[place.token, self.vocabulary.eot] for place in asked]), self._device)
        tokens = torch.cat([named, best], dim=1)
        columns = (
            log_sum_exp(logits, best[:, 0])[:, None],
            tokens.to(logits.dtype),  # exact: float32 counts to 16 million
            favoured.gather(1, tokens),
            logits.gather(1, tokens),
        )
        judged = []
        for normaliser, *row in torch.cat(columns, dim=1).tolist():  # all at once: a GPU is waited for here
            n = 2 + most
            scores = [
                Score(int(token), logit, own - normaliser)
                for token, logit, own in zip(row[:n], row[n : 2 * n], row[2 * n :], strict=True)
            ]
            judged.append(Judged(scores[2:], scores[0], scores[1], normaliser))
        return judged

    @staticmethod
    def _first_fed(row: Row, n_fed: int) -> int:
        """Where feeding begins when new audio has come: at the newest settled token, which judges the next.

        Until something has settled the prefix hears the audio again, but not the prompt in front of it.
        """
        n = len(row.prefix)
        return min(n_fed, n + row.stable - 1 if row.stable else max(0, n - FED_AGAIN))

    def _plausible(self, n_frames: int) -> int:
        """How many tokens a step may put out that hears so many new frames, before repetitions are doubted."""
        return tokens_in(n_frames) if self.paced else self.decoder.dims.n_text_ctx

    def _full(self, n_tokens: int) -> bool:
        # Half of the context, as openai-whisper: beside another row this one may be padded by as many tokens.
        # A prompt takes nothing from that: it stands in the other half, and its row is fed alone.
        return 2 * (len(self.vocabulary.prefix) + n_tokens) >= self.decoder.dims.n_text_ctx


class GreedySearch(Search):
    """Greedy decoding with the stability check."""

    def step(
        self, features: Tensor, state: SearchState, rows: Tensor, max_tokens: int, replaced: int = 0
    ) -> tuple[list[Hypothesis], SearchState]:
        self.decoder.listen(features, state.decoder, rows, replaced)
        waiting = self._rescore(state, rows)
        plausible = self._plausible(features.shape[1] - replaced)
        for _ in range(max_tokens):
            waiting = self._extend(waiting, state, plausible)
            if not waiting:
                break
        for row in rows.tolist():  # whatever comes, these will not be looked at again
            stream = state.rows[row]
            stream.stable = max(stream.stable, len(stream.tokens) - self.unsettled)
        return self.hypotheses(state, rows), state

    def _rescore(self, state: SearchState, rows: Tensor) -> dict[int, Judged]:
        """Feeds the unsettled tokens again; returns what is made of each row's next token."""
        cache = state.decoder.text
        feeds, starts = [], []
        for row in rows.tolist():
            stream = state.rows[row]
            start = self._first_fed(stream, int(cache.lengths[row]))
            cache.lengths[row] = start
            feeds.append([*stream.prefix, *stream.tokens][start:])
            # The logits that judge the first unsettled token come from the position before it.
            starts.append(len(stream.prefix) + stream.stable - 1 - start)
        logits = self._feed(feeds, starts, state, rows)
        streams = [state.rows[row] for row in rows.tolist()]
        asked = [
            Asked(stream.hotwords, stream.tokens[:n], token)
            for stream in streams
            for n, token in enumerate([*stream.tokens, self.vocabulary.eot])
            if n >= stream.stable
        ]
        judged = iter(self._judge(logits, asked))
        waiting = {}
        for row, stream in zip(rows.tolist(), streams, strict=True):
            *unsettled, waiting[row] = [next(judged) for _ in range(stream.stable, len(stream.tokens) + 1)]
            for j, place in enumerate(unsettled, stream.stable):
                if place.asked.logit < stream.logits[j] and place.best[0].token != stream.tokens[j]:
                    cache.lengths[row] -= len(stream.tokens) - j
                    stream.cut(j)
                    waiting[row] = place
                    break
                _, stream.logits[j], stream.logprobs[j] = place.asked
        return waiting

    def _extend(self, waiting: dict[int, Judged], state: SearchState, plausible: int) -> dict[int, Judged]:
        """Appends one token to every row whose best continuation is not EOT.

        Args:
            plausible: how many tokens may be said in the audio that is new.
        """
        going = []
        for row, place in waiting.items():
            stream, best = state.rows[row], place.best[0]
            if best.token == self.vocabulary.eot or self._full(len(stream.tokens)):
                continue
            frame = int(state.decoder.audio.lengths[row])
            if is_loop([*stream.tokens, best.token], hasty_tokens(stream.frames, frame, plausible)):
                continue
            stream.push(*best, frame=frame)
            going.append(row)
        if not going:
            return {}
        streams = [state.rows[row] for row in going]
        feeds = [stream.tokens[-1:] for stream in streams]
        logits = self._feed(feeds, [0] * len(going), state, torch.tensor(going))
        asked = [Asked(stream.hotwords, stream.tokens, self.vocabulary.eot) for stream in streams]
        return dict(zip(going, self._judge(logits, asked), strict=True))


def tokens_in(n_frames: int) -> int:
    """How many tokens may be said in so many encoder frames."""
    return FASTEST * n_frames // FRAMES_PER_SECOND


def hasty_tokens(frames: Sequence[int], now: int, plausible: int) -> int:
    """How many of the newest tokens were put out at once, with one more; 0 while that is `plausible`.

    Args:
        frames: when each token was put out, not decreasing.
        now: that of the one more.
    """
    n = 1 + len(frames) - bisect_left(frames, now)
    return n if n > plausible else 0


def is_loop(tokens: list[int], hasty: int = 0) -> bool:
    """Whether the newest tokens repeat what stands before them too often.

    Args:
        hasty: how many of them were put out faster than anybody speaks, where a repetition is hardly speech.
    """
    for n in range(1, LONGEST_LOOP + 1):
        times = 1 + (MAX_WORD_REPEATS if n <= 2 else MAX_REPEATS)
        if n * (1 + MAX_HASTY_REPEATS) <= hasty:
            times = 1 + MAX_HASTY_REPEATS
        if len(tokens) >= n * times and tokens[-n * times :] == tokens[-n:] * times:
            return True
    return False
