"""The one place that knows the order: samples -> mel -> encoder -> search."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.audio import Samples
from asr.beam import StreamSearch
from asr.biasing import UNGUIDED, Guidance
from asr.checkpoint import Whisper
from asr.encoder import FRAMES_PER_SECOND, EncoderState
from asr.mel import LogMel, MelState
from asr.search import Hypothesis, SearchState
from asr.timing import TimedWord, calibration, timed_words, upper_heads

#: Bounds on the tokens of one step: nobody speaks faster, and a loop must end.
TOKENS_PER_SECOND = 12
SPARE_TOKENS = 6


@dataclass(frozen=True)
class RecognizerState:
    mel: MelState
    encoder: EncoderState
    search: SearchState


class Recognizer:
    """The causal model over windows of at most 30 s, many streams at once; it knows nothing of utterances."""

    stride = 1
    lookahead = 0

    def __init__(self, model: Whisper, *, unsettled: int = 2) -> None:
        self.model = model
        self.mel = LogMel(model.device)
        vocabulary = model.vocabulary
        suppress = tuple(vocabulary.tokenizer.non_speech_tokens)
        self.search = StreamSearch(model.decoder, vocabulary, unsettled=unsettled, suppress=suppress)

    def init_state(self, rows: int) -> RecognizerState:
        encoder = self.model.encoder.init_state(rows)
        return RecognizerState(self.mel.init_state(rows), encoder, self.search.init_state(rows))

    def reset(
        self,
        state: RecognizerState,
        rows: Tensor,
        chunk: int,
        tokens: list[list[int]] | None = None,
        guidance: list[Guidance] | None = None,
    ) -> None:
        """Fresh windows for `rows`, with chunks of `chunk` encoder frames, beginning with settled `tokens`."""
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

    def phase(self, state: RecognizerState, row: int) -> tuple[int, ...]:
        """Rows with equal phases may step together."""
        return self.model.encoder.phase(state.encoder, row)

    @torch.no_grad()
    def step(
        self, samples: Tensor, state: RecognizerState, rows: Tensor
    ) -> tuple[list[Hypothesis], RecognizerState]:
        """Hears (B, n) samples of `rows` (B,), which are in the same phase, and says what each has heard so far."""
        mel, _ = self.mel.step(samples.to(self.model.device), state.mel, rows)
        features, replaced, _ = self.model.encoder.step(mel, state.encoder, rows)
        if not features.shape[1]:
            return self.search.hypotheses(state.search, rows), state
        bound = SPARE_TOKENS + (features.shape[1] - replaced) * TOKENS_PER_SECOND // FRAMES_PER_SECOND
        hypotheses, _ = self.search.step(features, state.search, rows, bound, replaced)
        return hypotheses, state

    def settle(self, state: RecognizerState, row: int) -> Hypothesis:
        """Declares everything that `row` has said final."""
        return self.search.settle(state.search, torch.tensor([row]))[0]

    @torch.no_grad()
    def words(self, state: RecognizerState, row: int, samples: Samples) -> list[TimedWord]:
        """The words of `row` with times from the start of its window, whose audio is `samples` (n,)."""
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
