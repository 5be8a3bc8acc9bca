"""What the tests of all dialects need: the terms of a server, and a look at what is sent."""

import json
from collections.abc import Iterable

from server.dialects import Dialect, Send, Step, Terms
from streaming.events import Closed, Endpoint, Event, Fault, Final, Partial, Word

TERMS = Terms("tiny.en", 300, "full", max_frame_bytes=2**20, max_backlog_s=5, idle_timeout_s=10)
HELLO = (Word("Hello,", 100, 400, 0.9), Word("Bob.", 450, 800, 0.7))
AGAIN = (Word("Again!", 1100, 1500, 0.8),)


def final(words: tuple[Word, ...] = HELLO, utterance: int = 0, audio_ms: int = 900) -> Final:
    text = " ".join(word.text for word in words)
    return Final(utterance, text, words, words[0].start_ms, words[-1].end_ms, audio_ms)


def partial(words: tuple[Word, ...] = HELLO, stable: int = 0, utterance: int = 0, ms: int = 600) -> Partial:
    return Partial(utterance, " ".join(word.text for word in words), stable, ms, words)


def messages(steps: Iterable[Step]) -> list[dict]:
    """What is sent, parsed."""
    return [json.loads(step.frame) for step in steps if isinstance(step, Send)]


def kinds(steps: Iterable[Step]) -> list[str]:
    return [message["type"] for message in messages(steps)]


def render(dialect: Dialect, *events: Event) -> list[Step]:
    return [step for event in events for step in dialect.render(event)]


#: A conversation of two utterances, the second of which is cut by the end of the audio.
TALK: tuple[Event, ...] = (
    partial(HELLO[:1], ms=600),
    partial(HELLO, stable=6, ms=900),
    Endpoint(0, 900),
    final(),
    partial(AGAIN, utterance=1, ms=1500),
    Endpoint(1, 1600),
    final(AGAIN, 1, 1600),
    Closed(1600, 2, 3),
)
TROUBLE = Fault("internal", "the model broke: reconnect", fatal=True)
