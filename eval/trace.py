"""What happened while one utterance was recognised: everything that is measured is computed from this.

A time that was not measured is NaN here, as every number that is computed from it, and null in files.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from asr.transducer.schedule import Waits
from streaming.events import Closed, Endpoint, Event, Fault, Final, Finalized, Partial, Word

_EVENTS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Partial, Final, Endpoint, Finalized, Closed, Fault)
}


@dataclass(frozen=True)
class Step:
    """One arrival of audio (or its end) and what the recogniser answered to it."""

    audio_ms: float  # audio that had arrived
    compute_s: float  # how long the answer took; NaN where many were recognised at once
    events: tuple[Event, ...]

    @property
    def finishes(self) -> bool:
        """Whether an utterance was finished, which may have taken a second pass, or the session."""
        return any(isinstance(event, Final | Closed) for event in self.events)


@dataclass(frozen=True)
class Trace:
    """The steps of one utterance in order; the last one is the flush after all audio."""

    utterance_id: str
    audio_s: float
    steps: tuple[Step, ...]
    cpu_s: float = math.nan  # of all threads, unlike the wall clock of the steps
    waits: Waits | None = None  # of a model with a schedule

    @property
    def compute_s(self) -> float:
        return sum(step.compute_s for step in self.steps)

    @property
    def finals(self) -> list[Final]:
        return [event for step in self.steps for event in step.events if isinstance(event, Final)]

    @property
    def streaming_text(self) -> str:
        """What was shown last of each utterance before its final: the text without a second pass."""
        shown = {e.utterance: e.text for step in self.steps for e in step.events if isinstance(e, Partial)}
        return " ".join(text for text in shown.values() if text)

    @property
    def final_text(self) -> str:
        return " ".join(final.text for final in self.finals)

    def as_json(self) -> dict[str, Any]:
        """A JSON object; the words of partials are left out, being most of the bytes and approximate."""
        return {
            "id": self.utterance_id,
            "audio_s": self.audio_s,
            "cpu_s": _null_if_nan(self.cpu_s),
            **({} if self.waits is None else {"waits": asdict(self.waits)}),
            "steps": [
                {
                    "audio_ms": step.audio_ms,
                    "compute_s": _null_if_nan(step.compute_s),
                    "events": [_event_as_json(event) for event in step.events],
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Trace":
        """The inverse of `as_json`; KeyError or TypeError where something is missing."""
        steps = tuple(
            Step(
                step["audio_ms"],
                _nan_if_null(step["compute_s"]),
                tuple(_event_from_json(event) for event in step["events"]),
            )
            for step in row["steps"]
        )
        waits = (
            Waits(**{key: tuple(counts) for key, counts in row["waits"].items()}) if "waits" in row else None
        )
        return cls(row["id"], row["audio_s"], steps, _nan_if_null(row.get("cpu_s")), waits)


def _null_if_nan(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _nan_if_null(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds


def _event_as_json(event: Event) -> dict[str, Any]:
    fields = asdict(event)
    fields.pop("bookmark", None)  # nobody resumes a trace
    if isinstance(event, Partial):
        del fields["words"]
    return {"event": type(event).__name__.lower()} | fields


def _event_from_json(row: dict[str, Any]) -> Event:
    fields = {key: value for key, value in row.items() if key != "event"}
    if row["event"] == "final":
        fields["words"] = tuple(Word(**word) for word in fields["words"])
    return _EVENTS[row["event"]](**fields)
