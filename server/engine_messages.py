"""What a server and the process of an engine say to each other through their pipe."""

from dataclasses import dataclass

import numpy as np

from asr.audio import Samples
from streaming.events import Event
from streaming.session import SessionOptions


@dataclass(frozen=True)
class Open:
    """What a process is told of a new session; `number` stands for it from then on."""

    number: int
    options: SessionOptions


@dataclass(frozen=True)
class Hear:
    """The next audio of a session, and what the client asked for behind it."""

    number: int
    samples: np.ndarray  # (n,) float32, 16 kHz
    finalize: bool
    finish: bool


@dataclass(frozen=True)
class Abort:
    """The client is gone."""

    number: int


@dataclass(frozen=True)
class WarmUp:
    """See `Engine.warm_up`."""

    speech: Samples
    options: SessionOptions


class Hurry:
    """See `Engine.hurry`."""


class Close:
    """Second passes under way are finished, then the process ends."""


@dataclass(frozen=True)
class Built:
    """The first that a process says: it serves, or why it does not."""

    model_name: str = ""
    final_passes: tuple[str, ...] = ()
    error: Exception | None = None


class Warm:
    """The model is warm, or as warm as it gets."""


@dataclass(frozen=True)
class News:
    """What a session says, and how far it has heard."""

    number: int
    events: list[Event]
    decoded_ms: int


@dataclass(frozen=True)
class Stepped:
    """See `Engine.stepped`."""

    seconds: float
    rows: int


@dataclass(frozen=True)
class SecondPass:
    """See `Engine.second_pass_ended`."""

    outcome: str


Request = Open | Hear | Abort | WarmUp | Hurry | Close
Report = Built | Warm | Stepped | SecondPass | list[News]
