"""What may be asked of a model, checked without it: importing torch would take 0.25 GB of a server's process."""

import re
from collections.abc import Iterable
from pathlib import Path

SAMPLES_PER_FRAME = 320  # of the encoder, 20 ms
LONGEST_DELAY_S = 0.6  # that causal models are taught
MAX_BEAM = 8
MAX_PROMPT_CHARS = 2000
MAX_HOTWORDS = 500
MAX_HOTWORD_CHARS = 60
DEFAULT_BOOST = 2.0  # nats per token
MAX_BOOST = 10.0

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def checked_hotwords(words: Iterable[str]) -> tuple[str, ...]:
    """The words without surrounding space, empty ones and repetitions; ValueError with one line for bad ones."""
    clean = tuple(dict.fromkeys(filter(None, (" ".join(word.split()) for word in words))))
    if len(clean) > MAX_HOTWORDS:
        raise ValueError(f"hotwords may be {MAX_HOTWORDS} at most, not {len(clean)}")
    for word in clean:
        if len(word) > MAX_HOTWORD_CHARS:
            raise ValueError(
                f"a hotword may have {MAX_HOTWORD_CHARS} characters, not {len(word)}: {word[:20]}..."
            )
        if not any(char.isalnum() for char in word):
            raise ValueError(f"a hotword must have a letter or digit, not {word!r}")
    return clean


def read_hotwords(given: str) -> tuple[str, ...]:
    """`one, two words` or `@FILE` with a word or phrase per line. Raises ValueError with one line."""
    if given.startswith("@"):
        try:
            return checked_hotwords(Path(given[1:]).read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise ValueError(
                f"hotwords {given}: {given[1:]} cannot be read ({error.strerror}): name a file with a word or phrase"
                " a line, or list them without @, with commas between"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{given[1:]} is no text in UTF-8: hotwords are a word or phrase per line"
            ) from error
    return checked_hotwords(given.split(","))


def checked_name(name: str) -> str:
    """`name` if it is auto, cpu, cuda or cuda:N; whether there is such a device is asked by `choose`.

    Raises:
        ValueError: it is none of these.
    """
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"no device is called {name!r}: use auto, cpu, cuda or cuda:N")
    return name
