"""When each word of a reference was spoken, by the unmodified model: the clock of delays where data has none.

The reference is teacher-forced over the model's features of the whole clip (asr/timing.py). A clip longer than
Whisper's window is recognised piece by piece instead: words of the reference that were recognised take their
times from there, and the others are spread evenly between them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from asr import timing
from asr.audio import SAMPLE_RATE, Samples
from asr.limits import SAMPLES_PER_FRAME
from asr.offline import WINDOW_SECONDS, OfflineDecoder
from eval.baselines import transcribe_whole
from eval.datasets import TimedWord
from eval.wer import matching_words, normalize

MOST_TOKENS = 200  # of a reference that is aligned in one go; the decoder's context holds 448


@torch.no_grad()
def align(decoder: OfflineDecoder, samples: Samples, text: str) -> tuple[TimedWord, ...]:
    """The words of `text`, which is said in `samples` (n,) of 16 kHz, each with its start and end in seconds."""
    text = _natural_case(" ".join(text.split()))
    tokens = decoder.model.vocabulary.tokenizer.encode(f" {text}") if text else []
    if not tokens:
        return ()
    if len(samples) > WINDOW_SECONDS * SAMPLE_RATE or len(tokens) > MOST_TOKENS:
        return _spread(text.split(), transcribe_whole(decoder, samples), len(samples) / SAMPLE_RATE)
    window = WINDOW_SECONDS * SAMPLE_RATE
    audio = pad(torch.from_numpy(samples), (0, window - len(samples)))[None]
    features = decoder.model.encoder(decoder.mel.offline(audio.to(decoder.model.device)))
    heard = decoder.model.decoder.keys_values(features)
    n_frames = max(1, len(samples) // SAMPLES_PER_FRAME)
    words = timing.timed_words(decoder.model, heard, tokens, n_frames)
    return tuple(TimedWord(word.text, round(word.start, 3), round(word.end, 3)) for word in words)


def _spread(
    reference: Sequence[str], recognised: Sequence[timing.TimedWord], length_s: float
) -> tuple[TimedWord, ...]:
    """Times of the reference's words: those of the recognised words that match, evenly between them elsewhere."""
    keys = [normalize(word) for word in reference]
    pairs = matching_words(keys, [normalize(word.text) for word in recognised])
    # Fixed points: (words of the reference before it, seconds); a matching word fixes its start and its end.
    fixed = [(0, 0.0)]
    for i, j in pairs:
        fixed += [(i, recognised[j].start), (i + 1, recognised[j].end)]
    fixed.append((len(reference), length_s))
    known = {i: (recognised[j].start, recognised[j].end) for i, j in pairs}
    counts, seconds = zip(*fixed, strict=True)
    # The pause between two matching neighbours is two points of the same count: np.interp takes the later one.
    spread = np.interp(np.arange(len(reference) + 1), counts, seconds)
    return tuple(
        TimedWord(word, *(round(float(s), 3) for s in known.get(i, (spread[i], spread[i + 1]))))
        for i, word in enumerate(reference)
    )


def _natural_case(text: str) -> str:
    """LibriSpeech writes everything in capitals, which the model never saw."""
    if text != text.upper():
        return text
    return " ".join(
        word.capitalize() if word == "i" or word.startswith("i'") else word for word in text.lower().split()
    )
