"""The unmodified model over a whole utterance: the second pass, and the yardstick.

Whisper decodes well only what is padded with silence to its full window of 30 s.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from asr.audio import SAMPLE_RATE
from asr.beam import StreamSearch
from asr.biasing import UNGUIDED, Guidance
from asr.checkpoint import Whisper
from asr.draft import DraftedSearch
from asr.limits import SAMPLES_PER_FRAME
from asr.mel import LogMel
from asr.timing import TimedWord, calibration, timed_words

WINDOW_SECONDS = 30
MAX_TOKENS = 224  # as openai-whisper
MIN_LOGPROB = -1.0  # openai-whisper's threshold: below it the text is a guess


class OfflineDecoder:
    """Decodes one utterance at a time with full context.

    Args:
        model: the unmodified model, in the type that it shall compute in.
    """

    def __init__(self, model: Whisper) -> None:
        self.model = model
        self.mel = LogMel(model.device)
        vocabulary = model.vocabulary
        suppress = tuple(vocabulary.tokenizer.non_speech_tokens)
        self.search = StreamSearch(model.decoder, vocabulary, suppress=suppress)
        self._drafted = DraftedSearch(model.decoder, vocabulary, suppress=suppress)
        self._state = self.search.init_state(1)
        self._row = torch.tensor([0])

    @torch.no_grad()
    def features(self, samples: Tensor) -> Tensor:
        """(n,) samples, at most 30 s -> (1, T, d) features of them and the silence behind them."""
        window = WINDOW_SECONDS * SAMPLE_RATE
        assert len(samples) <= window
        mel = self.mel.offline(pad(samples, (0, window - len(samples)))[None].to(self.model.device))
        return self.model.encoder(mel)

    @torch.no_grad()
    def transcribe(self, samples: Tensor, guidance: Guidance = UNGUIDED, draft: str = "") -> list[TimedWord]:
        """(n,) samples, at most 30 s -> words with times in seconds; empty where the model is not sure of any.

        Args:
            draft: what it will likely say, which makes greedy search quicker and changes nothing (asr/draft.py).
        """
        self.search.reset(
            self._state,
            self._row,
            prefixes=[(*guidance.prompt, *self.model.vocabulary.prefix)],
            hotwords=[guidance.hotwords],
            widths=[guidance.beam],
        )
        features = self.features(samples)
        if guidance.beam == 1:
            tokens = self.model.vocabulary.encode(draft) if draft else []
            said = self._drafted.follow(features, tokens, self._state, self._row, MAX_TOKENS)
        else:
            (said,), _ = self.search.step(features, self._state, self._row, MAX_TOKENS)
        if not said.tokens or sum(said.logprobs) / len(said.logprobs) < MIN_LOGPROB:
            return []
        heard = self.model.decoder.heard(self._state.decoder, 0)
        return timed_words(
            self.model,
            heard,
            list(said.tokens),
            max(1, len(samples) // SAMPLES_PER_FRAME),
            samples=samples,
            calibrate=calibration(self.model.dims, "full"),
        )
