"""OpenAI's Realtime protocol for transcription, `GET /v1/realtime?intent=transcription`.

https://platform.openai.com/docs/guides/realtime-transcription. Client events: session.update, and
input_audio_buffer.append, commit and clear; audio is base64 of PCM (24 kHz, or the rate that it is said to have) or
of G.711 at 8 kHz. With turn detection every utterance is an item of the conversation; without it (null) an item is
what stands between two commits. Deltas cannot be taken back, so they are of settled words only; `completed` has the
last word, and an extension: `words`, with times and confidences. Every name of a model is taken, the server has one.
"""

import base64
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from server.dialects import Close, Lifecycle, Send, Step, Terms, json_object, offered
from server.dialects.g711 import alaw_to_s16le
from server.dialects.marks import Marks
from server.dialects.openai import OpenAi, error_body, word_logprobs
from server.dialects.realtime_session import Invalid, RealtimeSession
from streaming.events import Closed, Endpoint, Event, Fault, Final, Finalized, Partial, Word
from streaming.session import SessionOptions

EVENTS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
)
KEY_PREFIX = "openai-insecure-api-key."


@dataclass(frozen=True)
class Mistake(Fault):
    """A Fault that says which parameter of which event is wrong."""

    param: str | None = None
    event_id: str | None = None


@dataclass
class Item:
    """A piece of the conversation: what is said between two commits, the client's or the voice detection's."""

    id: str
    end_ms: int | None = None  # where the client ended it
    kept: bool = True  # not cleared
    committed: bool = False
    started: bool = False  # the client knows that somebody speaks
    utterance: int = -1
    told: str = ""  # deltas of the current utterance
    deltas: int = 0
    finals: list[Final] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether more audio may belong to it."""
        return self.kept and not self.committed


@dataclass
class Realtime(Lifecycle, OpenAi):
    """One conversation in OpenAI's protocol."""

    subprotocols: ClassVar[tuple[str, ...]] = ("realtime",)
    key_place: ClassVar[str] = f"{OpenAi.key_place}, or the WebSocket subprotocols realtime, {KEY_PREFIX}KEY"

    terms: Terms
    setting: RealtimeSession = field(init=False)
    marks: Marks = field(init=False)
    session: str = field(default="", init=False)
    n_sent: int = field(default=0, init=False)
    n_items: int = field(default=0, init=False)
    items: deque[Item] = field(
        default_factory=deque, init=False
    )  # not yet completed; events are of the first
    previous: str | None = field(default=None, init=False)  # committed before
    told_ms: int = field(default=0, init=False)  # audio up to here was in completed items

    def __post_init__(self) -> None:
        self.setting = RealtimeSession(self.options, delays=self.terms.delay_ms is not None)
        self.marks = Marks(self.options)

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        hidden = (name[len(KEY_PREFIX) :] for name in offered(headers) if name.startswith(KEY_PREFIX))
        return OpenAi.key(headers, query) or next(hidden, "")

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> "Realtime":
        if query.get("intent", "transcription") != "transcription":
            raise ValueError("this server only transcribes: use intent=transcription")
        return cls(SessionOptions(**terms.options(), sample_rate=24_000), terms)

    def greet(self, session: str) -> list[Step]:
        self.session = session
        return [self._send("session.created", session=self.setting.told(session, self.terms.model))]

    def receive(self, frame: str | bytes) -> list[Step]:
        """Mistakes are told, and the conversation goes on."""
        if self.finished:
            return []
        event_id = None
        try:
            if isinstance(frame, bytes):
                raise Invalid(None, "audio must come as base64 in input_audio_buffer.append", "invalid_type")
            try:
                message = json_object(frame)
            except ValueError as error:
                raise Invalid(None, str(error), "invalid_json") from None
            event_id = message["event_id"] if isinstance(message.get("event_id"), str) else None
            return self._obey(message)
        except Invalid as wrong:
            return [Mistake(wrong.code, str(wrong), fatal=False, param=wrong.param, event_id=event_id)]

    def render(self, event: Event) -> list[Step]:
        carried_out = self.marks.heard(event)
        match event:
            case Partial():
                return self._partial(event)
            case Endpoint():
                return self._endpoint(event)
            case Final():
                return [*self._final(event), *self._settle(carried_out)]
            case Finalized():
                return self._settle(carried_out)
            case Closed():
                self.finished = True
                settled = self._settle(carried_out)
                return [*settled, *self._complete_all(event.audio_ms), self.farewell]
        param, event_id = (event.param, event.event_id) if isinstance(event, Mistake) else (None, None)
        error = self._send("error", error=error_body(event.code, event.message, param, event_id))
        self.finished |= event.fatal
        return [error, Close.after(event)] if event.fatal else [error]

    # -- what the client wants

    def _obey(self, message: dict[str, Any]) -> list[Step]:
        """Raises Invalid."""
        match message.get("type"):
            case "session.update":
                return self._update(message.get("session"))
            case "input_audio_buffer.append":
                return self._append(message.get("audio"))
            case "input_audio_buffer.commit":
                return self._commit()
            case "input_audio_buffer.clear":
                return self._clear()
        raise Invalid("type", f"unknown type of event: use {', '.join(EVENTS)}")

    def _append(self, audio: object) -> list[Step]:
        try:
            data = base64.b64decode(audio, validate=True) if isinstance(audio, str) else None
        except ValueError:
            data = None
        if data is None:
            raise Invalid("audio", "audio must be base64")
        if self.setting.form["type"] == "audio/pcma":
            data = alaw_to_s16le(data)
        return [*self.open(), self.marks.receive(data)] if data else []

    def _commit(self) -> list[Step]:
        if not self.marks.fresh:
            raise Invalid(
                None, "the buffer holds no audio since the last commit", "input_audio_buffer_commit_empty"
            )
        item = self._newest()
        asked = self.marks.ask()
        item.end_ms = self.marks.received_ms
        return [self._committed(item), asked]

    def _clear(self) -> list[Step]:
        cleared = self._send("input_audio_buffer.cleared")
        if not self.marks.fresh:
            return [cleared]
        item = self._newest()
        asked = self.marks.ask()
        item.end_ms, item.kept = self.marks.received_ms, False
        return [cleared, asked]

    def _update(self, session: object) -> list[Step]:
        """Raises Invalid."""
        wanted = self.setting.updated(session)
        if not self.opened:
            self.options, self.marks = wanted.options, Marks(wanted.options)
        elif (wanted.options, wanted.form) != (self.setting.options, self.setting.form):
            raise Invalid("session.audio.input", "format, transcription and pause are set before any audio")
        self.setting = wanted
        return [self._send("session.updated", session=wanted.told(self.session, self.terms.model))]

    # -- what the session says

    def _partial(self, event: Partial) -> list[Step]:
        item = self._first()
        steps: list[Step] = []
        if item.utterance not in (-1, event.utterance) and item.committed and item.end_ms is None:
            steps += self._complete(event.audio_ms)  # its final said nothing
            item = self._first()
        item.utterance = event.utterance
        if not event.text:
            return [*steps, *self._take_back(item, event.audio_ms)]
        start_ms = event.words[0].start_ms if event.words else self.told_ms
        return [*steps, *self._start(item, start_ms), *self._delta(item, event.text[: event.stable])]

    def _take_back(self, item: Item, audio_ms: int) -> list[Step]:
        """None of the words was said, and no final may follow: a turn that was told of ends here, empty."""
        stopped = self._stop(item, audio_ms)
        if not (stopped and item.open and self.setting.detects):
            return stopped
        return [*stopped, self._committed(item), *self._complete(audio_ms)]

    def _endpoint(self, event: Endpoint) -> list[Step]:
        if not self.setting.detects:
            return []
        item = self._first()
        return [*self._stop(item, event.audio_ms), *([self._committed(item)] if item.open else [])]

    def _final(self, event: Final) -> list[Step]:
        item = self._first()
        steps = [*self._start(item, event.start_ms), *self._delta(item, event.text)]
        item.finals.append(event)
        item.told = ""
        if item.end_ms is not None or not (self.setting.detects or item.committed):
            return steps  # more may follow
        steps += self._stop(item, event.audio_ms)
        if item.open:
            steps.append(self._committed(item))
        return [*steps, *self._complete(event.audio_ms)]

    def _settle(self, carried_out: int) -> list[Step]:
        """Completes items up to the ends that the client asked for."""
        steps: list[Step] = []
        while carried_out and self.items:
            asked_for = self.items[0].end_ms
            steps += self._complete(self.marks.received_ms if asked_for is None else asked_for)
            carried_out -= asked_for is not None
        return steps

    def _complete_all(self, audio_ms: int) -> list[Step]:
        steps: list[Step] = []
        while self.items:
            steps += self._stop(self.items[0], audio_ms)
            if self.items[0].open:
                steps.append(self._committed(self.items[0]))
            steps += self._complete(audio_ms)
        return steps

    # -- items

    def _first(self) -> Item:
        """The item that the session speaks of."""
        return self.items[0] if self.items else self._add()

    def _newest(self) -> Item:
        """The item that the newest audio belongs to."""
        return self.items[-1] if self.items and self.items[-1].open else self._add()

    def _add(self) -> Item:
        self.n_items += 1
        self.items.append(Item(f"item_{self.session}_{self.n_items}"))
        return self.items[-1]

    def _start(self, item: Item, start_ms: int) -> list[Step]:
        if item.started or item.committed or not (self.setting.detects and item.kept):
            return []
        item.started = True
        return [self._send("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=item.id)]

    def _stop(self, item: Item, end_ms: int) -> list[Step]:
        if not (item.started and item.kept):
            return []
        item.started = False
        return [self._send("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item.id)]

    def _committed(self, item: Item) -> Send:
        item.committed = True
        previous, self.previous = self.previous, item.id
        return self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)

    def _delta(self, item: Item, settled: str) -> list[Step]:
        """What of the settled text is new; nothing if the settled words are others now."""
        new = settled[len(item.told) :]
        if not item.kept or not new or not settled.startswith(item.told):
            return []
        gap = " " if item.deltas and not item.told else ""
        item.told, item.deltas = settled, item.deltas + 1
        return [self._of(item, "delta", delta=gap + new)]

    def _complete(self, audio_ms: int) -> list[Step]:
        """The first item is over; it bears the audio that no other item has borne."""
        item = self.items.popleft()
        seconds = (audio_ms - self.told_ms) / 1000
        self.told_ms = audio_ms
        if not item.kept:
            return []
        words = [word for final in item.finals for word in final.words]
        usage = {"type": "duration", "seconds": round(max(0.0, seconds), 3)}
        logprobs = {"logprobs": word_logprobs(words)} if self.setting.logprobs else {}
        text = " ".join(final.text for final in item.finals)
        timed = [self._word(word) for word in words]
        return [self._of(item, "completed", transcript=text, usage=usage, words=timed, **logprobs)]

    def _of(self, item: Item, what: str, **fields: object) -> Send:
        kind = f"conversation.item.input_audio_transcription.{what}"
        return self._send(kind, item_id=item.id, content_index=0, **fields)

    def _word(self, word: Word) -> dict[str, object]:
        start, end = word.start_ms / 1000, word.end_ms / 1000
        return {"word": word.text, "start": start, "end": end, "confidence": word.confidence}

    def _send(self, kind: str, **fields: object) -> Send:
        self.n_sent += 1
        event_id = f"event_{self.session}_{self.n_sent}"
        return Send(json.dumps({"type": kind, "event_id": event_id, **fields}, separators=(",", ":")))
