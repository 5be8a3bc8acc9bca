"""What a client reads of a server's messages."""

import pytest

from server.dial import read_bookmark, read_event
from streaming.events import Bookmark, Closed, Endpoint, Fault, Final, Word

WORD = {"text": "so", "start_ms": 0, "end_ms": 300, "confidence": 0.5}
FINAL = {"utterance": 2, "text": "so", "words": [WORD], "start_ms": 0, "end_ms": 300, "audio_ms": 900}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"type": "final", **FINAL}, Final(2, "so", (Word("so", 0, 300, 0.5),), 0, 300, 900)),
        ({"type": "endpoint", "utterance": 2, "audio_ms": 900}, Endpoint(2, 900)),
        ({"type": "closed", "audio_ms": 9, "utterances": 1, "words": 4}, Closed(9, 1, 4)),
        ({"type": "error", "code": "x", "message": "y", "fatal": True}, Fault("x", "y", fatal=True)),
        ({"type": "ready", "protocol": 1}, None),
    ],
)
@pytest.mark.parametrize("more", [{}, {"speaker": "of a newer server"}])
def test_events_are_read_and_what_is_not_known_is_passed_over(message, event, more):
    assert read_event({**message, **more}) == event


def test_words_may_tell_more_than_is_known():
    message = {"type": "final", **FINAL, "words": [{**WORD, "speaker": 1}]}
    assert read_event(message) == read_event({"type": "final", **FINAL})


@pytest.mark.parametrize("more", [{}, {"speaker": "of a newer server"}])
def test_a_bookmark_is_read(more):
    kept = {"audio_ms": 900, "from_ms": 600, "heard_ms": 900, "carried": "so"}
    assert read_bookmark({"type": "bookmark", **kept, **more}) == Bookmark(900, 600, 900, "so")
    assert read_bookmark({"type": "final", **FINAL}) is None
