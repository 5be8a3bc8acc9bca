"""The contract of every stage that audio flows through: streaming is a pure step.

`step` over everything at once *is* the offline mode. State is passed in and returned; it has one row per stream,
and `rows` says which streams step now, so that streams out of step with each other share one model.
"""

from typing import Protocol, TypeVar

from torch import Tensor

S = TypeVar("S")


class Streamable(Protocol[S]):
    """Satisfied structurally: by LogMel and Encoder in asr/, by VoiceActivity and Recognizer here."""

    @property
    def stride(self) -> int:
        """Input frames per output frame."""
        ...

    @property
    def lookahead(self) -> int:
        """Input frames beyond its own that an output waits for."""
        ...

    def init_state(self, rows: int) -> S:
        """Fresh state for `rows` streams."""
        ...

    def step(self, x: Tensor, state: S, rows: Tensor) -> tuple[Tensor, S]:
        """New input (B, ..., n) of `rows` (B,) -> whatever output it completes, and the state."""
        ...
