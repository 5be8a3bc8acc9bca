"""The engine's side of a session: where its audio is, what was heard, and what the client was shown."""

from dataclasses import dataclass, field

from asr.audio import milliseconds
from asr.biasing import Guidance
from streaming import policy
from streaming.context import Heard
from streaming.replay import Replay
from streaming.session import Session
from streaming.utterance import Utterances


@dataclass
class Stream:
    """The engine's side of a session."""

    session: Session
    row: int
    utterances: Utterances
    guidance: Guidance  # of the recogniser
    second_guidance: Guidance  # of the second pass
    replay: Replay
    before: Heard = field(default_factory=Heard)  # the utterance that has ended last
    utterance: int = 0
    shown: policy.Shown = field(default_factory=policy.Shown)
    received: int = 0  # samples taken from the session; the window may have heard silence beyond them

    @property
    def heard(self) -> int:
        """How much of the session's audio the model has heard, in samples."""
        return min(self.utterances.now, self.received)

    @property
    def delay_s(self) -> float:
        """How long after its end a word is due."""
        return self.guidance.delay_s or 0.0

    @property
    def full_pass(self) -> bool:
        """Whether the second pass hears its utterances again, whole."""
        return self.session.options.final_pass == "full"

    @property
    def wanted(self) -> int:
        """How many samples are taken next."""
        return min(self.replay.missing, self.utterances.chunk) or self.utterances.chunk

    def ms(self, position: int) -> int:
        """A sample position on the session's timeline."""
        return self.session.options.start_ms + milliseconds(position)
