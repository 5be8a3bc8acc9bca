"""The adaptive-lookahead transducer as a recogniser: samples -> mel -> trunk -> adaptive layers -> search.

Each frame waits for as much audio as its layers decided, so words come when the schedule closes, at once where
nothing is waited for. A window that ends grants what is still waited for no longer: every frame makes do with what
has come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.audio import SAMPLE_RATE, Samples, samples_in
from asr.biasing import Guidance, Hotwords
from asr.device import handed_over, upload
from asr.mel import LogMel, MelState
from asr.search import Hypothesis
from asr.timing import TimedWord
from asr.transducer.executor import Executor, ExecutorState, Ready
from asr.transducer.model import Transducer
from asr.transducer.rescorer import MOST, Rescorer
from asr.transducer.schedule import Waits
from asr.transducer.search import TransducerHypothesis, TransducerSearchState
from asr.transducer.timing import timed_words
from asr.transducer.trunk import FRONT_END_MS, SAMPLES_PER_FEATURE, STACK, TrunkState
from asr.words import Words
from streaming.final_pass import Rescoring
from streaming.recognizer import FLUSH_MS
from streaming.session import SessionOptions

#: Samples behind the last one heard that complete the feature which it belongs to, and no feature more.
FRONT_END = SAMPLES_PER_FEATURE + round(FRONT_END_MS * SAMPLE_RATE / 1000) - 1


@dataclass(frozen=True)
class TransducerState:
    """One row per stream."""

    mel: MelState
    trunk: TrunkState
    executor: ExecutorState
    search: TransducerSearchState
    waited: Tensor  # (S, lookahead + 1) int64, frames that waited for so many


class TransducerRecognizer:
    """A transducer, whose rows may wait for different lengths of audio in one batch.

    No delay can be asked of it, and no prompt: both are for models that were taught them. Its text is in lower case,
    without punctuation.
    """

    stride = 1
    lookahead = 0

    def __init__(self, model: Transducer, rescorer: Rescorer | None = None) -> None:
        self.model = model
        self.rescorer = rescorer
        self.mel = LogMel(model.device)
        self.executor = Executor(model.encoder, model.policy)
        self.search = model.search()

    @property
    def vocabulary(self) -> Words:
        return self.model.pieces

    @property
    def rescores(self) -> bool:
        return self.rescorer is not None

    def guidance(self, options: SessionOptions, second: Guidance) -> Guidance:
        """The same beam and hotwords, the latter in pieces."""
        favoured = options.hotwords and options.hotword_boost
        hotwords = Hotwords(self.model.pieces, options.hotwords, options.hotword_boost) if favoured else None
        return Guidance(options.beam, hotwords=hotwords)

    def init_state(self, rows: int) -> TransducerState:
        return TransducerState(
            self.mel.init_state(rows),
            self.model.trunk.init_state(rows),
            self.executor.init_state(rows),
            self.search.init_state(rows),
            torch.zeros(rows, self.executor.lookahead + 1, dtype=torch.int64),
        )

    def reset(
        self,
        state: TransducerState,
        rows: Tensor,
        chunk: int = 0,
        tokens: list[list[int]] | None = None,
        guidance: Sequence[Guidance] | None = None,
    ) -> None:
        """Fresh windows for `rows`; what they compute does not depend on the size of a chunk."""
        self.mel.reset(state.mel, rows)
        self.model.trunk.reset(state.trunk, rows)
        self.executor.reset(state.executor, rows)
        state.waited[rows] = 0
        guidance = guidance or [Guidance()] * len(rows)
        self.search.reset(
            state.search,
            rows,
            tokens,
            widths=[guide.beam for guide in guidance],
            hotwords=[guide.hotwords for guide in guidance],
        )

    def phase(self, state: TransducerState, row: int) -> tuple[int, ...]:
        return int(state.mel.fill[row]), *self.model.trunk.phase(state.trunk, row)

    def step(
        self, samples: Tensor, state: TransducerState, rows: Tensor
    ) -> tuple[list[Hypothesis], TransducerState]:
        return self._step(samples, state, rows), state

    def flush(self, state: TransducerState, row: int, guidance: Guidance, behind: int) -> list[Hypothesis]:
        """Completes the front end's last feature, and lets every frame make do with what has come."""
        missing = max(0, samples_in(FLUSH_MS) - behind) + FRONT_END
        return self._step(torch.zeros(1, missing), state, torch.tensor([row]), ending=True)

    def settle(self, state: TransducerState, row: int) -> Hypothesis:
        return self.search.settle(state.search, torch.tensor([row]))[0]

    def said(self, state: TransducerState, row: int) -> Hypothesis:
        return state.search.rows[row].hypothesis()

    @staticmethod
    def carried(said: Hypothesis, n_kept: int) -> tuple[int, ...]:
        """Nothing: a transducer says again what it hears again."""
        return ()

    def words(self, state: TransducerState, row: int, samples: Samples) -> list[TimedWord]:
        said = state.search.rows[row].hypothesis()
        return self._timed(said, samples)

    def rescoring(self, state: TransducerState, row: int, samples: Samples) -> Rescoring | None:
        """Whisper's decoder weighs the beam's hypotheses over the frames that the trunk has made already."""
        rescorer, pieces = self.rescorer, self.model.pieces
        if rescorer is None:
            return None
        hypotheses = self.search.n_best(state.search, row, MOST)
        frames = handed_over(self.model.trunk.heard(state.trunk, row))
        return lambda: self._timed(rescorer.best(frames(), hypotheses, pieces), samples)

    def waits(self, state: TransducerState, row: int) -> Waits:
        """As the executor counted them, and of what the search has said."""
        said = state.search.rows[row].hypothesis()
        emitting = torch.zeros_like(state.waited[row])
        for at, heard in dict(zip(said.at, said.frames, strict=True)).items():
            emitting[heard // STACK - 1 - at] += 1
        return Waits(tuple(state.waited[row].tolist()), tuple(emitting.tolist()))

    def _timed(self, said: TransducerHypothesis, samples: Samples) -> list[TimedWord]:
        return timed_words(said, self.model.pieces, samples=samples, lateness=self.model.lateness)

    @torch.no_grad()
    def _step(
        self, samples: Tensor, state: TransducerState, rows: Tensor, *, ending: bool = False
    ) -> list[Hypothesis]:
        mel, _ = self.mel.step(upload(samples, self.model.device), state.mel, rows)
        features, _ = self.model.trunk.step(mel, state.trunk, rows)
        ready, _ = self.executor.step(features.float(), state.executor, rows, ending=ending)
        self._count(ready, state, rows)
        return self.search.step(ready.frames, ready.counts, ready.done, state.search, rows)

    @staticmethod
    def _count(ready: Ready, state: TransducerState, rows: Tensor) -> None:
        """Notes how long the frames of a step have waited."""
        ahead = torch.arange(ready.done.shape[1])
        row, i = (ahead < ready.counts[:, None]).nonzero(as_tuple=True)
        numbers = (state.executor.layers[-1].n_out[rows] - ready.counts)[:, None] + ahead
        waited = (ready.done - numbers)[row, i]
        state.waited.index_put_((rows[row], waited), torch.ones_like(waited), accumulate=True)
