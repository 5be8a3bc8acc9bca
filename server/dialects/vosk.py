"""The protocol of vosk-server, `GET /vosk`: https://alphacephei.com/vosk/server.

Client texts: {"config": {sample_rate (8000), words, phrase_list}} before any audio, {"reset": 1}, {"eof": 1}; audio
is 16-bit PCM in binary frames. Every frame of audio, every reset and the eof has exactly one answer, since clients
wait for it: the words of the current utterance as "partial", or what has become final since the last answer as
"text", with times and confidences as "result". A frame is answered when all of it is decoded but for an incomplete
chunk. There are no messages of errors: the socket is closed with a reason.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from server.dialects import (
    Close,
    Lifecycle,
    Send,
    Step,
    Terms,
    authorization,
    is_text,
    json_object,
    plain,
)
from server.dialects.marks import Marks
from streaming.events import Closed, Event, Fault, Final, Partial, Word
from streaming.session import SessionOptions

DEFAULT_HZ = 8_000  # vosk-server's own
RESAMPLING_MS = 150  # what a resampler may hold back


@dataclass(frozen=True)
class Owed:
    """An answer that the client waits for: to audio up to `audio_ms`, or to a reset."""

    audio_ms: int = 0
    to_reset: bool = False


@dataclass
class Vosk(Lifecycle):
    """One conversation in vosk's protocol."""

    subprotocols: ClassVar[tuple[str, ...]] = ()
    key_place: ClassVar[str] = "query token=KEY, or header Authorization: Bearer KEY"

    words: bool = True
    marks: Marks = field(init=False)
    partial: str = field(default="", init=False)
    finals: list[Final] = field(default_factory=list, init=False)  # not yet told
    owed: deque[Owed] = field(default_factory=deque, init=False)
    decoded_ms: int = field(default=0, init=False)
    resets: int = field(default=0, init=False)  # carried out and not yet answered

    def __post_init__(self) -> None:
        self.marks = Marks(self.options)

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        return authorization(headers, "bearer") or query.get("token", "")

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        return {"error": message, "code": code}

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> "Vosk":
        return cls(SessionOptions(**terms.options(), sample_rate=DEFAULT_HZ))

    def greet(self, session: str) -> list[Step]:
        return []

    def receive(self, frame: str | bytes) -> list[Step]:
        if self.finished:
            return []
        if isinstance(frame, bytes):
            steps = [*self.open(), self.marks.receive(frame)] if frame else []
            self.owed.append(Owed(self.marks.received_ms))
            return [*steps, *self._answers()]
        try:
            message = json_object(frame)
            if "config" in message:
                return self._configure(message["config"])
        except ValueError as error:
            return [Fault("bad_text", str(error), fatal=True)]
        if message.get("eof"):
            return self.finish()
        if message.get("reset"):
            self.owed.append(Owed(to_reset=True))
            if self.opened:
                return [self.marks.ask()]
            self.resets += 1
            return self._answers()
        return [Fault("bad_type", "a text frame must be a config, eof or reset", fatal=True)]

    def render(self, event: Event) -> list[Step]:
        self.resets += self.marks.heard(event)
        match event:
            case Partial():
                self.partial = event.text
            case Final():
                self.partial = ""
                self.finals.append(event)
            case Closed():
                self.finished = True
                self.decoded_ms = self.marks.received_ms
                return [*self._answers(), self._result(), self.farewell]
            case Fault(fatal=True):
                self.finished = True
                return [Close.after(event)]
        return self._answers()

    def progress(self, audio_ms: int) -> list[Step]:
        self.decoded_ms = audio_ms
        return self._answers()

    def _configure(self, config: object) -> list[Step]:
        """Raises ValueError with one line for the client."""
        if self.opened:
            raise ValueError("config must come before any audio: connect again")
        if not isinstance(config, dict):
            raise ValueError("config must be an object, such as {'sample_rate': 16000}")
        rate = config.get("sample_rate", self.options.sample_rate)
        phrases = config.get("phrase_list", list(self.options.hotwords))
        if not isinstance(rate, int | float) or rate != rate // 1:
            raise ValueError("sample_rate must be a whole number")
        if not isinstance(phrases, list) or not all(map(is_text, phrases)):
            raise ValueError("phrase_list must be a list of texts")
        hotwords = tuple(
            phrase for phrase in phrases if phrase != "[unk]"
        )  # vosk's own sign for anything else
        self.options = replace(self.options, sample_rate=int(rate), hotwords=hotwords)
        self.words = bool(config.get("words", self.words))
        self.marks = Marks(self.options)
        return []

    def _answers(self) -> list[Step]:
        """Those that are due, in the order of the questions."""
        steps: list[Step] = []
        while self.owed and self._due(self.owed[0]):
            answered = self.owed.popleft()
            self.resets -= answered.to_reset
            steps.append(self._result() if answered.to_reset or self.finals else self._words_so_far())
        return steps

    def _due(self, owed: Owed) -> bool:
        if owed.to_reset:
            return self.resets > 0
        held_ms = RESAMPLING_MS if self.options.sample_rate != SessionOptions.sample_rate else 0
        return owed.audio_ms < self.decoded_ms + self.options.chunk_ms + held_ms or not self.opened

    def _words_so_far(self) -> Send:
        return _send(partial=_plain(self.partial))

    def _result(self) -> Send:
        """All that became final since the last answer; it may be nothing."""
        words = [word for final in self.finals for word in final.words]
        text = _plain(" ".join(final.text for final in self.finals))
        self.finals = []
        if not self.words or not words:
            return _send(text=text)
        return _send(result=[self._word(word) for word in words], text=text)

    def _word(self, word: Word) -> dict[str, object]:
        start, end = word.start_ms / 1000, word.end_ms / 1000
        return {"conf": word.confidence, "end": end, "start": start, "word": plain(word.text)}


def _plain(text: str) -> str:
    return " ".join(map(plain, text.split()))


def _send(**fields: object) -> Send:
    return Send(json.dumps(fields, separators=(",", ":")))
