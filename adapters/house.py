"""What the commands of this room share: the front door's help, the base model's option, the device."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

Base = Annotated[
    str, typer.Option("--model", help="Base model: tiny.en, base.en or the path of a checkpoint.")
]


class House(Protocol):
    """What the front door hands to a command that lives in a room (asr_stream.py)."""

    def writable_folder(self, path: Path) -> Path: ...
    def progress(self, what: str) -> AbstractContextManager[Any]: ...
    def print_result(self, *parts: Any) -> None: ...
    def interruption(self) -> AbstractContextManager[Any]: ...


def device() -> str:
    """Where to train: this process's GPU, if there is one."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
