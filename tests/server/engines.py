"""What the processes of engines are told to build; torch is loaded by those that compute with it, and by no other."""

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from streaming.session import Session, SessionOptions

if TYPE_CHECKING:
    from streaming.engine import Engine


class Nothing(ValueError):
    """That is not what it is called where it is caught."""


def build(slots: int) -> "Engine":
    import torch

    from streaming.engine import Engine
    from streaming.recognizer import WhisperRecognizer
    from tests.conftest import random_whisper

    torch.set_num_threads(1)
    return Engine(WhisperRecognizer(random_whisper(0)), random_whisper(0), "tiny", slots)


def build_picky(slots: int) -> "Engine":
    """Of whose sessions one cannot be opened."""
    engine = build(slots)
    open_any = engine.open

    def open_one(options: SessionOptions, **how: Any) -> Session:
        if options.prompt == "worse":
            raise KeyError(options.prompt)
        return open_any(options, **how)

    engine.open = open_one  # type: ignore[method-assign]
    return engine


def build_nothing() -> "Engine":
    raise Nothing("there are no weights: fetch some")


class Unportable(Exception):
    """Pickle would make it anew of its message alone."""

    def __init__(self, message: str, lock: object) -> None:
        super().__init__(message)
        self.lock = lock


def build_unportable() -> "Engine":
    raise Unportable("the disk is gone", threading.Lock())


def build_for_ever() -> "Engine":
    """Tells its number before it hangs."""
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


def die() -> NoReturn:
    os._exit(3)
