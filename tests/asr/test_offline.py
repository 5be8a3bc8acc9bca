"""The unmodified model over whole utterances: the words of a president, and OpenAI's own decoding."""

import pytest
import torch
import whisper
from torch.nn.functional import pad
from whisper.audio import N_SAMPLES, log_mel_spectrogram

from asr.audio import read_audio
from asr.checkpoint import Whisper
from asr.offline import OfflineDecoder
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
