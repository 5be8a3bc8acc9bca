"""What a conversation says: the one vocabulary that every dialect and every front end translates.

Times are integer milliseconds on the session's timeline. Events of one session come in order: all partials
of an utterance, then its final; an utterance's final precedes the next one's partials.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A recognised word; `text` has no surrounding space and carries its punctuation."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float  # 0..1


@dataclass(frozen=True)
class Partial:
    """The words of the current utterance so far; `text[:stable]` is not revised by its later partials.

    Two exceptions by design: the second pass may word the final otherwise, and where a full window turns in
    mid-speech, the words after the cut move to the head of the next utterance.
    """

    utterance: int
    text: str
    stable: int  # characters
    audio_ms: int  # audio decoded so far
    words: tuple[Word, ...] = ()  # times are approximate until the final


@dataclass(frozen=True)
class Final:
    """An utterance that is finished: its words never change again. Empty utterances have no final."""

    utterance: int
    text: str
    words: tuple[Word, ...]
    start_ms: int
    end_ms: int
    audio_ms: int  # audio safely finished: a resuming client replays from here


@dataclass(frozen=True)
class Endpoint:
    """The speaker paused (or the client asked): the utterance ended at `audio_ms`; its final follows."""

    utterance: int
    audio_ms: int


@dataclass(frozen=True)
class Closed:
    """The last event of a session that ended well."""

    audio_ms: int
    utterances: int
    words: int


@dataclass(frozen=True)
class Fault:
    """Something went wrong; after a fatal fault nothing follows."""

    code: str  # stable, machine-readable: "bad_audio", "slow_reader", "internal", ...
    message: str  # says what to do
    fatal: bool


Event = Partial | Final | Endpoint | Closed | Fault
