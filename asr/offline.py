"""The unmodified model over a whole utterance: the second pass, and the yardstick.

Whisper decodes well only what is padded with silence to its full window of 30 s. In place of some of that silence an
utterance may stand behind what was said before it: its words are given, and are not decoded again.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from asr.audio import SAMPLE_RATE, Samples
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
MOST_CONTEXT_TOKENS = 96  # with a prompt and MAX_TOKENS of words they fit into the decoder's 448


@dataclass(frozen=True)
class Context:
    """What was said just before an utterance, and its audio."""

    samples: Samples  # (n,)
    text: str


NO_CONTEXT = Context(np.zeros(0, np.float32), "")


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
    def transcribe(
        self,
        samples: Tensor,
        guidance: Guidance = UNGUIDED,
        draft: str = "",
        context: Context = NO_CONTEXT,
    ) -> list[TimedWord]:
        """(n,) samples, at most 30 s -> words with times in seconds; empty where the model is not sure of any.

        Args:
            draft: what it will likely say, which makes greedy search quicker and changes nothing (asr/draft.py).
            context: what was said before; left out where the window has no room for it, or nothing follows on it.
        """
        said = self.model.vocabulary.encode(context.text) if context.text else []
        room = WINDOW_SECONDS * SAMPLE_RATE - len(samples)
        words: list[TimedWord] = []
        if said and len(said) <= MOST_CONTEXT_TOKENS and len(context.samples) <= room:
            words = self._transcribe(samples, guidance, draft, context.samples, tuple(said))
        return words or self._transcribe(samples, guidance, draft, NO_CONTEXT.samples, ())

    def _transcribe(
        self, samples: Tensor, guidance: Guidance, draft: str, before: Samples, context: tuple[int, ...]
    ) -> list[TimedWord]:
        """The words of `samples` (n,), which stand behind others (m,), in which the tokens `context` were said."""
        self.search.reset(
            self._state,
            self._row,
            prefixes=[(*guidance.prompt, *self.model.vocabulary.prefix, *context)],
            hotwords=[guidance.hotwords],
            widths=[guidance.beam],
        )
        samples, begin_s = torch.cat([torch.from_numpy(before), samples]), len(before) / SAMPLE_RATE
        features = self.features(samples)
        if guidance.beam == 1:
            tokens = self.model.vocabulary.encode(draft) if draft else []
            said = self._drafted.follow(features, tokens, self._state, self._row, MAX_TOKENS)
        else:
            (said,), _ = self.search.step(features, self._state, self._row, MAX_TOKENS)
        if not said.tokens or sum(said.logprobs) / len(said.logprobs) < MIN_LOGPROB:
            return []
        heard = self.model.decoder.heard(self._state.decoder, 0)
        words = timed_words(
            self.model,
            heard,
            list(said.tokens),
            max(1, len(samples) // SAMPLES_PER_FRAME),
            samples=samples,
            context=context,
            calibrate=calibration(self.model.dims, "full"),
        )
        return [
            replace(word, start=max(0.0, word.start - begin_s), end=max(0.0, word.end - begin_s))
            for word in words
        ]
