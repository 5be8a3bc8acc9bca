"""What a client has heard, over one connection or several: one sequence of events, nothing told twice."""

from dataclasses import replace

from streaming.events import Closed, Endpoint, Event, Fault, Final, Finalized, Partial


class Timeline:
    """Joins the events of successive connections, each of which counts its utterances from 0."""

    def __init__(self) -> None:
        self._first = 0  # the number of this connection's first utterance
        self._next = 0  # the number after the last final's
        self._endpoint = -1  # the last utterance whose endpoint was told
        self._partial_ms = self._again_ms = -1  # how far the partials told go; before this connection
        self._finalized_ms = -1  # the last end that was told
        self._utterances = self._words = 0

    def reconnected(self) -> None:
        """From here on events come from a new connection, which hears again what has no final yet."""
        self._first, self._again_ms = self._next, self._partial_ms

    def tell(self, event: Event) -> Event | None:
        """The event as the whole conversation's; None if it was told before."""
        match event:
            case Fault():
                return event
            case Closed():
                return replace(event, utterances=self._utterances, words=self._words)
            case Finalized():
                told_before, self._finalized_ms = event.audio_ms <= self._finalized_ms, event.audio_ms
                return None if told_before else event
        event = replace(event, utterance=event.utterance + self._first)
        match event:
            case Partial():
                if event.audio_ms <= self._again_ms:
                    return None
                self._partial_ms = event.audio_ms
            case Endpoint():
                if event.utterance <= self._endpoint:
                    return None
                self._endpoint = event.utterance
            case Final():
                self._next = event.utterance + 1
                self._utterances += 1
                self._words += len(event.words)
        return event
