"""Models for tests: a tiny random Whisper for everything but meaning, tiny.en for what needs real words."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import whisper
from hypothesis import settings
from torch import Tensor

from asr.audio import read_audio
from asr.checkpoint import Whisper, load
from asr.weights import Dims, fetch

SAMPLES = Path(__file__).parent.parent / "samples"

TINY = Dims(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=64,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51_864,
    n_text_ctx=448,
    n_text_state=64,
    n_text_head=2,
    n_text_layer=2,
)


settings.register_profile("asr-stream", deadline=None)  # tests are not timed: the machine may be busy
settings.load_profile("asr-stream")


def pytest_configure(config: pytest.Config) -> None:
    """Cores are shared among the suite's processes; what others' packages warn of is none of our errors."""
    if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of what tests start
        torch.set_num_threads(threads)
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.load.*:DeprecationWarning")  # silero-vad
    config.addinivalue_line("filterwarnings", "ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests under the marker `gpu` run where a GPU is; elsewhere they are left out."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def random_whisper(seed: int) -> Whisper:
    """A Whisper that says nonsense, but nonsense that depends on the audio, and that often waits for more."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Whisper(TINY, [(1, 0), (1, 1)])
        with torch.no_grad():
            decoder = model.decoder
            decoder.token_embedding.weight.normal_(0, 0.2)
            decoder.positional_embedding.normal_(0, 0.2)
            decoder.token_embedding.weight[50_256] *= 3  # EOT often wins, and as often does not
            for block in decoder.blocks:
                block.cross_attn.query.weight.mul_(8)
                block.cross_attn.key.weight.mul_(8)
                block.cross_attn.out.weight.mul_(20)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[int], Whisper]:
    """Random Whispers for tests that change them; the same seed gives the same weights."""
    return random_whisper


@pytest.fixture(scope="session")
def tiny() -> Whisper:
    """A random Whisper that nobody changes."""
    return random_whisper(0)


@pytest.fixture(scope="session")
def tiny_en() -> Whisper:
    return load("tiny.en")


@pytest.fixture(scope="session")
def openai_tiny_en() -> whisper.model.Whisper:
    """The same weights in OpenAI's own modules: the anchor outside of this project."""
    return whisper.load_model(str(fetch("tiny.en")), device="cpu").eval()


@pytest.fixture(scope="session")
def jfk() -> Tensor:
    """(n,) samples: 11 s of an American president."""
    return torch.from_numpy(read_audio(SAMPLES / "jfk.wav"))
