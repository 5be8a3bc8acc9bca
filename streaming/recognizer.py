"""What the engine drives, and the causal Whisper as one: samples -> mel -> encoder -> search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from asr.audio import SAMPLE_RATE, Samples, samples_in
from asr.beam import StreamSearch
from asr.biasing import UNGUIDED, Guidance
from asr.checkpoint import Whisper
from asr.device import upload
from asr.encoder import EncoderState
from asr.limits import SAMPLES_PER_FRAME
from asr.mel import LogMel, MelState
from asr.search import Hypothesis, SearchState, tokens_in
from asr.timing import TimedWord, calibration, timed_words, upper_heads
from asr.transducer.schedule import Waits
from asr.words import Words
from streaming.final_pass import Rescoring
from streaming.session import SessionOptions

#: Silence that a window must have heard behind its last word, beside the delay at which words are due: a model says
#: a word a little after its end, and what stands behind it only when there was a pause.
FLUSH_MS = 500
SPARE_TOKENS = 6  # of one step, beside those that may be said in its audio: a loop must end


S = TypeVar("S")


class Recognizer(Protocol[S]):
    """A model over windows of at most 30 s, many streams at once; it knows nothing of utterances.

    A row of the state holds a window: `reset` opens it, `step` feeds it, and it ends with `flush`, after which only
    `settle`, `said` and `words` may be asked of it.
    """

    @property
    def vocabulary(self) -> Words:
        """What the tokens of its hypotheses mean."""
        ...

    @property
    def rescores(self) -> bool:
        """Whether `rescoring` knows better than the search."""
        ...

    def guidance(self, options: SessionOptions, second: Guidance) -> Guidance:
        """How a session wants to be decoded; `second` is what its second pass is told, in the base model's tokens."""
        ...

    def init_state(self, rows: int) -> S: ...

    def reset(
        self,
        state: S,
        rows: Tensor,
        chunk: int,
        tokens: list[list[int]] | None = None,
        guidance: Sequence[Guidance] | None = None,
    ) -> None:
        """Fresh windows for `rows`, with chunks of `chunk` encoder frames, beginning with settled `tokens`."""
        ...

    def phase(self, state: S, row: int) -> tuple[int, ...]:
        """Rows with equal phases may step together."""
        ...

    def step(self, samples: Tensor, state: S, rows: Tensor) -> tuple[list[Hypothesis], S]:
        """Hears (B, n) samples of `rows` (B,), which are in the same phase, and says what each has heard so far."""
        ...

    def flush(self, state: S, row: int, guidance: Guidance, behind: int) -> list[Hypothesis]:
        """Lets the last words out of a window that ends, whatever comes in its place.

        Args:
            behind: samples that the window has heard beyond those whose words must come out.

        Returns:
            What was said, step by step.
        """
        ...

    def settle(self, state: S, row: int) -> Hypothesis:
        """Declares everything that `row` has said final."""
        ...

    def said(self, state: S, row: int) -> Hypothesis:
        """What `row` has said so far."""
        ...

    def carried(self, said: Hypothesis, n_kept: int) -> tuple[int, ...]:
        """The tokens that a window begins with which hears again what stands behind the first `n_kept` of `said`."""
        ...

    def words(self, state: S, row: int, samples: Samples) -> list[TimedWord]:
        """The words of `row` with times from the start of its window, whose audio is `samples` (n,)."""
        ...

    def rescoring(self, state: S, row: int, samples: Samples) -> Rescoring | None:
        """A choice from all that `row` may have said, taken before it settles and made later, in any thread: `words`.

        None where the search's own choice stands.
        """
        ...

    def waits(self, state: S, row: int) -> Waits | None:
        """How long the frames of `row` waited for others, once its window has ended; None where none is scheduled."""
        ...


@dataclass(frozen=True)
class WhisperState:
    """One row per stream."""

    mel: MelState
    encoder: EncoderState
    search: SearchState


class WhisperRecognizer:
    """The causal Whisper. It says a word some time after its end, as it is asked to."""

    stride = 1
    lookahead = 0
    rescores = False

    def __init__(self, model: Whisper, *, unsettled: int = 2) -> None:
        self.model = model
        self.mel = LogMel(model.device)
        vocabulary = model.vocabulary
        suppress = tuple(vocabulary.tokenizer.non_speech_tokens)
        self.search = StreamSearch(model.decoder, vocabulary, unsettled=unsettled, suppress=suppress)

    @property
    def vocabulary(self) -> Words:
        return self.model.vocabulary

    @staticmethod
    def guidance(options: SessionOptions, second: Guidance) -> Guidance:
        return replace(second, delay_s=options.delay_ms / 1000)

    def init_state(self, rows: int) -> WhisperState:
        encoder = self.model.encoder.init_state(rows)
        return WhisperState(self.mel.init_state(rows), encoder, self.search.init_state(rows))

    def reset(
        self,
        state: WhisperState,
        rows: Tensor,
        chunk: int,
        tokens: list[list[int]] | None = None,
        guidance: Sequence[Guidance] | None = None,
    ) -> None:
        self.mel.reset(state.mel, rows)
        self.model.encoder.reset(state.encoder, rows, chunk)
        guidance = guidance or [UNGUIDED] * len(rows)
        self.search.reset(
            state.search,
            rows,
            tokens,
            prefixes=[guide.streaming_prefix(self.model.vocabulary) for guide in guidance],
            hotwords=[guide.hotwords for guide in guidance],
            widths=[guide.beam for guide in guidance],
        )

    def phase(self, state: WhisperState, row: int) -> tuple[int, ...]:
        return self.model.encoder.phase(state.encoder, row)

    @torch.no_grad()
    def step(
        self, samples: Tensor, state: WhisperState, rows: Tensor
    ) -> tuple[list[Hypothesis], WhisperState]:
        mel, _ = self.mel.step(upload(samples, self.model.device), state.mel, rows)
        features, replaced, _ = self.model.encoder.step(mel, state.encoder, rows)
        if not features.shape[1]:
            return self.search.hypotheses(state.search, rows), state
        bound = SPARE_TOKENS + tokens_in(features.shape[1] - replaced)
        hypotheses, _ = self.search.step(features, state.search, rows, bound, replaced)
        return hypotheses, state

    def flush(self, state: WhisperState, row: int, guidance: Guidance, behind: int) -> list[Hypothesis]:
        """Feeds the silence at which the last words are due."""
        missing = samples_in(FLUSH_MS) + round((guidance.delay_s or 0) * SAMPLE_RATE) - behind
        silence = torch.zeros(1, int(state.encoder.chunk[row]) * SAMPLES_PER_FRAME)
        n_steps = max(0, -(-missing // silence.shape[1]))
        return [self.step(silence, state, torch.tensor([row]))[0][0] for _ in range(n_steps)]

    def settle(self, state: WhisperState, row: int) -> Hypothesis:
        return self.search.settle(state.search, torch.tensor([row]))[0]

    def said(self, state: WhisperState, row: int) -> Hypothesis:
        return state.search.rows[row].hypothesis()

    @staticmethod
    def carried(said: Hypothesis, n_kept: int) -> tuple[int, ...]:
        """What has settled is not said again, and the audio behind it is understood better with it."""
        return said.tokens[n_kept : max(n_kept, said.stable)]

    @torch.no_grad()
    def words(self, state: WhisperState, row: int, samples: Samples) -> list[TimedWord]:
        said = state.search.rows[row]
        return timed_words(
            self.model,
            self.model.decoder.heard(state.search.decoder, row),
            list(said.tokens),
            int(state.search.decoder.audio.lengths[row]),
            samples=samples,
            prefix=said.prefix,
            heads=upper_heads(self.model.dims),
            calibrate=calibration(self.model.dims, "none"),
        )

    @staticmethod
    def rescoring(state: WhisperState, row: int, samples: Samples) -> None:
        """Nothing to choose: its decoder has judged the hypotheses all along."""

    @staticmethod
    def waits(state: WhisperState, row: int) -> None:
        """Nothing is scheduled: words come when they are due."""
