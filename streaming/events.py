"""What a conversation says: the one vocabulary that every dialect and every front end translates.

Times are integer milliseconds on the session's timeline. Events of one session come in order: all partials
of an utterance, then its final; an utterance's final precedes the next one's partials.
"""

from dataclasses import dataclass

LONGEST_TIMELINE_MS = 10**12  # 31 years: where a client may resume at the latest; a session goes on beyond it
LONGEST_REPLAY_MS = 12_000  # before a final's end any context and lead, behind it what lies behind a cut
MAX_CARRIED_CHARS = 500


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
class Bookmark:
    """Where a new session goes on behind a final, as the one that told it would have.

    Its audio begins at `from_ms`. The final's last words were said in the first `said_ms`; the second pass hears them
    again in front of the next utterance. From there to `audio_ms` it is silence that may lead that. What lies between
    `audio_ms` and `heard_ms` was heard already, behind the cut where a full window turned in mid-speech.

    Raises:
        ValueError: with one clear line.
    """

    audio_ms: int  # the final's
    from_ms: int
    heard_ms: int
    carried: str = ""  # words behind the cut that were settled
    said: str = ""  # the final's last words, if there is a second pass
    said_ms: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.from_ms <= self.from_ms + self.said_ms <= self.audio_ms <= self.heard_ms):
            raise ValueError("0 <= from_ms <= from_ms + said_ms <= audio_ms <= heard_ms must hold")
        n_ms = max(self.audio_ms - self.from_ms, self.heard_ms - self.audio_ms)
        n_chars = max(len(self.carried), len(self.said))
        if n_ms > LONGEST_REPLAY_MS or n_chars > MAX_CARRIED_CHARS:
            raise ValueError(
                f"a bookmark spans {LONGEST_REPLAY_MS} ms before audio_ms and as many behind it, "
                f"and texts of {MAX_CARRIED_CHARS} characters at most"
            )

    @classmethod
    def at(cls, audio_ms: int) -> "Bookmark":
        """Where nothing is known of what was before."""
        return cls(audio_ms, audio_ms, audio_ms)


@dataclass(frozen=True)
class Final:
    """An utterance that is finished: its words never change again. Empty utterances have no final."""

    utterance: int
    text: str
    words: tuple[Word, ...]
    start_ms: int
    end_ms: int
    audio_ms: int  # audio safely finished
    bookmark: Bookmark | None = None  # how to resume behind it


@dataclass(frozen=True)
class Endpoint:
    """The speaker paused (or the client asked): the utterance ended at `audio_ms`; its final follows."""

    utterance: int
    audio_ms: int


@dataclass(frozen=True)
class Finalized:
    """The end that the client asked for at `audio_ms` is carried out; all that was said before it is final."""

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


Event = Partial | Final | Endpoint | Finalized | Closed | Fault
