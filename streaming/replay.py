"""What a session that goes on with a lost one hears again, before anything new (streaming/events.Bookmark)."""

import numpy as np

from asr.audio import Samples, samples_in
from asr.search import Hypothesis
from asr.words import Words
from streaming.events import Bookmark

SLACK = samples_in(100)  # what a client that counts at another rate may lack, by rounding
MOST_CARRIED = 128  # tokens that a bookmark may bring: more than are said in what lies behind a cut


class Replay:
    """Gathers what the lost session had heard behind its last final, to be heard at once, as that one did.

    Attributes:
        missing: samples of it that are still to come.
        n_finished: how many of its first samples belong to the final.
        n_lead: how many of those, the last ones, are silence that may lead the next utterance.
        said: the words of the final in the samples that belong to it.
        carried: the words behind a cut that had settled.
    """

    def __init__(self, bookmark: Bookmark) -> None:
        self.missing = samples_in(bookmark.heard_ms - bookmark.from_ms)
        self.n_finished = samples_in(bookmark.audio_ms - bookmark.from_ms)
        self.n_lead = self.n_finished - samples_in(bookmark.said_ms)
        self.said, self.carried = bookmark.said, bookmark.carried
        self._come: list[Samples] = []

    def gather(self, samples: Samples, ending: bool) -> tuple[Samples | None, Samples]:
        """Takes in (n,) samples, at most those that are missing.

        Args:
            ending: the client ends here. If more than rounding is still missing then, it was elsewhere: all is new.

        Returns:
            What is to be heard again, once it is complete, and what is to be heard as any other audio.
        """
        self._come.append(samples)
        self.missing -= len(samples)
        if self.missing and not ending:
            return None, samples[:0]
        missing, self.missing = self.missing, 0
        all_of_it, self._come = np.concatenate(self._come), []
        if missing > SLACK:
            return None, all_of_it
        return np.pad(all_of_it, (0, missing)), samples[:0]


def settled_tokens(text: str, vocabulary: Words) -> Hypothesis:
    """`text` as if it had been said and had settled; nothing of one that is longer than anybody says there."""
    tokens = vocabulary.encode(text) if text else []
    n = len(tokens) if len(tokens) <= MOST_CARRIED else 0
    return Hypothesis(tuple(tokens[:n]), (0.0,) * n, (0,) * n, stable=n)
