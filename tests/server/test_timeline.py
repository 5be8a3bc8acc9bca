"""Several connections, one story."""

from server.timeline import Timeline
from streaming.events import Closed, Endpoint, Fault, Final, Finalized, Partial, Word


def final(utterance: int, text: str) -> Final:
    words = tuple(Word(word, 0, 1, 1.0) for word in text.split())
    return Final(utterance, text, words, 0, 1, 1)


def test_utterances_are_numbered_through_and_counted():
    timeline = Timeline()
    timeline.reconnected()
    assert timeline.tell(final(0, "one two")) == final(0, "one two")
    timeline.reconnected()
    assert timeline.tell(final(0, "three")) == final(1, "three")
    assert timeline.tell(Closed(900, 1, 1)) == Closed(900, 2, 3)


def test_what_is_heard_again_is_not_told_again():
    timeline = Timeline()
    assert timeline.tell(Partial(0, "one", 0, 300)) is not None
    assert timeline.tell(Partial(0, "one two", 0, 600)) is not None
    assert timeline.tell(Endpoint(0, 600)) is not None
    assert timeline.tell(Finalized(600)) == Finalized(600)
    timeline.reconnected()
    assert timeline.tell(Partial(0, "one", 0, 300)) is None
    assert timeline.tell(Endpoint(0, 610)) is None
    assert timeline.tell(Finalized(600)) is None
    assert timeline.tell(Finalized(700)) == Finalized(700)
    assert timeline.tell(final(0, "one two")) == final(0, "one two")
    assert timeline.tell(Partial(1, "three", 0, 900)) == Partial(1, "three", 0, 900)


def test_faults_pass():
    fault = Fault("gap", "audio was lost", fatal=False)
    assert Timeline().tell(fault) is fault
