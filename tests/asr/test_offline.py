"""The unmodified model over whole utterances: the words of a president, and OpenAI's own decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import whisper
from torch.nn.functional import pad
from whisper.audio import N_SAMPLES, log_mel_spectrogram

from asr.audio import SAMPLE_RATE, read_audio
from asr.biasing import UNGUIDED
from asr.checkpoint import Whisper
from asr.offline import MOST_CONTEXT_TOKENS, WINDOW_SECONDS, Context, OfflineDecoder
from tests.conftest import SAMPLES

JFK = (
    "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"
)


@pytest.fixture(scope="module")
def offline(tiny_en: Whisper) -> OfflineDecoder:
    return OfflineDecoder(tiny_en)


@pytest.mark.parametrize("clip", ["jfk.wav", "austen-0870.flac"])
def test_equals_openai_whisper(
    offline: OfflineDecoder, openai_tiny_en: whisper.model.Whisper, clip: str
) -> None:
    samples = torch.from_numpy(read_audio(SAMPLES / clip))
    mel = log_mel_spectrogram(pad(samples, (0, N_SAMPLES - len(samples))))
    greedy = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
    expected = whisper.decode(openai_tiny_en, mel, greedy)
    words = offline.transcribe(samples)
    assert " ".join(word.text for word in words) == expected.text
    if clip == "jfk.wav":
        assert [word.text.strip(",.").lower() for word in words] == JFK.lower().split()
        asks = [word.end for word in words if word.text.startswith("ask")]
        assert asks == pytest.approx([3.8, 8.5], abs=0.5)
        assert words[-1].end == pytest.approx(10.4, abs=0.5)
        assert all(0 < word.confidence <= 1 for word in words)


def test_words_that_the_model_does_not_believe_are_none(tiny: Whisper) -> None:
    """A random model spreads its odds over all tokens."""
    assert OfflineDecoder(tiny).transcribe(torch.zeros(1600)) == []


SPLIT_S = 3.3  # in the pause behind "my fellow Americans"


@pytest.mark.parametrize("beam", [1, 3])
def test_an_utterance_is_understood_by_what_was_said_before_it(offline: OfflineDecoder, beam: int) -> None:
    """Its own words alone, at their own times."""
    samples = torch.from_numpy(read_audio(SAMPLES / "jfk.wav"))
    at = int(SPLIT_S * SAMPLE_RATE)
    before, after = samples[:at], samples[at:]
    context = Context(before.numpy(), "And so my fellow Americans,")
    guidance = replace(UNGUIDED, beam=beam)
    words = offline.transcribe(after, guidance, draft="ask not what", context=context)
    assert " ".join(word.text for word in words).startswith("ask not what your country can do for you")
    asks = [word.end for word in words if word.text.startswith("ask")]
    assert asks == pytest.approx([3.8 - SPLIT_S, 8.5 - SPLIT_S], abs=0.3)
    assert all(word.end > word.start >= 0 for word in words)
    assert offline.transcribe(after, guidance)[:2] != words[:2]


def test_without_room_or_use_context_is_left_out(offline: OfflineDecoder) -> None:
    samples = torch.from_numpy(read_audio(SAMPLES / "austen-0870.flac"))
    alone = offline.transcribe(samples)
    too_long = Context(np.zeros(WINDOW_SECONDS * SAMPLE_RATE - len(samples) + 1, np.float32), "before")
    too_much = Context(np.zeros(SAMPLE_RATE, np.float32), "word " * (MOST_CONTEXT_TOKENS + 1))
    assert alone
    for context in (too_long, too_much):
        assert offline.transcribe(samples, context=context) == alone
    everything = Context(np.zeros(SAMPLE_RATE, np.float32), " ".join(word.text for word in alone))
    assert offline.transcribe(samples, context=everything)  # else a client's own context could hide words
