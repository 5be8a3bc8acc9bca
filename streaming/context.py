"""What was said before an utterance, as its second pass hears it: the newest words of the final in front of it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asr.audio import Samples, milliseconds, samples_in
from asr.offline import NO_CONTEXT, Context
from asr.timing import TimedWord
from streaming.events import MAX_CARRIED_CHARS, Bookmark

LONGEST_MS = 12_000  # more leaves no room in the window for long utterances
BEFORE_MS = 300  # of silence in front of the first word
FORGOTTEN_MS = (
    60_000  # behind its end; clients that hear nothing keep no more audio (server/client.py, KEEP_MS)
)


class Heard:
    """An utterance that has ended. Its words are known later, but before the second pass of the next one.

    Args:
        samples: (n,) of its audio.
        start: where it began on the stream's timeline, in samples.
    """

    def __init__(self, samples: Samples = NO_CONTEXT.samples, start: int = 0) -> None:
        self.context = NO_CONTEXT
        self._samples, self._end = samples, start + len(samples)

    @classmethod
    def again(cls, samples: Samples, said: str) -> "Heard":
        """The one before a session that goes on with a lost one: samples (n,) in which its last words were said."""
        heard = cls(samples)
        if said:
            heard.context = Context(samples, said)
        return heard

    def context_of(self, start: int) -> Context:
        """What the second pass of an utterance that began at `start` hears before it."""
        return self.context if start - self._end <= samples_in(FORGOTTEN_MS) else NO_CONTEXT

    def say_nothing(self, before: "Heard") -> None:
        """Nobody spoke in it: what was said before it stands before the next one, too."""
        self.context, self._end, self._samples = before.context, before._end, NO_CONTEXT.samples

    def say(self, words: Sequence[TimedWord], bookmark: Bookmark) -> Bookmark:
        """Takes in what was said.

        Args:
            words: times in seconds from the beginning of the audio.
            bookmark: of the final that says them.

        Returns:
            One with which a session that resumes will know it, too.
        """
        length_ms = milliseconds(len(self._samples))
        kept = [word for word in words if word.start * 1000 > length_ms - LONGEST_MS]
        while len(text := " ".join(word.text for word in kept)) > MAX_CARRIED_CHARS:
            del kept[0]
        if kept:
            cut = len(kept) < len(words)  # somebody speaks in front of it
            n_lead_ms = bookmark.audio_ms - bookmark.from_ms
            begin_ms = int(kept[0].start * 1000) - (0 if cut else BEFORE_MS)
            begin_ms = min(max(begin_ms, length_ms - LONGEST_MS, 0), length_ms - n_lead_ms)
            self.context = Context(np.array(self._samples[samples_in(begin_ms) :]), text)
            said_ms = length_ms - n_lead_ms - begin_ms
            bookmark = replace(bookmark, from_ms=bookmark.from_ms - said_ms, said=text, said_ms=said_ms)
        self._samples = NO_CONTEXT.samples
        return bookmark
