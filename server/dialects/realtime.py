"""OpenAI's Realtime protocol for transcription, `GET /v1/realtime?intent=transcription`.

https://platform.openai.com/docs/guides/realtime-transcription. Client events: session.update, and
input_audio_buffer.append, commit and clear; audio is base64 of PCM (24 kHz, or the rate that it is said to have) or
of G.711 at 8 kHz. With turn detection every utterance is an item of the conversation; without it (null) an item is
what stands between two commits. Deltas cannot be taken back, so they are of settled words only; `completed` has the
last word, and an extension: `words`, with times and confidences. Every name of a model is taken, the server has one.
"""

import base64
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from server.dialects import Close, Lifecycle, Send, Step, Terms, authorization, is_text, json_object, offered
from server.dialects.g711 import alaw_to_s16le
from server.dialects.marks import Marks
from streaming.events import Closed, Endpoint, Event, Fault, Final, Partial, Word
from streaming.session import SessionOptions

FORMATS = {"audio/pcm": ("s16le", 24_000), "audio/pcmu": ("mulaw", 8_000), "audio/pcma": ("s16le", 8_000)}
DELAYS_MS = {"minimal": 0, "low": 160, "medium": 320, "high": 480, "xhigh": 600}
LOGPROBS = "item.input_audio_transcription.logprobs"
EVENTS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
)
KEY_PREFIX = "openai-insecure-api-key."
LOWEST_CONFIDENCE = 1e-9  # for logarithms


class Invalid(ValueError):
    """A client's mistake, and the parameter that it is in."""

    def __init__(self, param: str | None, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


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


class OpenAi:
    """How OpenAI's clients show their key, and how they are refused."""

    key_place: ClassVar[str] = "header Authorization: Bearer KEY"

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        return authorization(headers, "bearer")

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        return {"error": error_body(code, message)}


@dataclass
class Realtime(Lifecycle, OpenAi):
    """One conversation in OpenAI's protocol."""

    subprotocols: ClassVar[tuple[str, ...]] = ("realtime",)
    key_place: ClassVar[str] = f"{OpenAi.key_place}, or the WebSocket subprotocols realtime, {KEY_PREFIX}KEY"

    terms: Terms
    form: dict[str, Any] = field(default_factory=lambda: {"type": "audio/pcm", "rate": 24_000}, init=False)
    detects: bool = field(default=True, init=False)  # turns: else the client commits
    include: list[str] = field(default_factory=list, init=False)
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
        return [self._send("session.created", session=self._session())]

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
                return [*self._settle(carried_out), *self._partial(event)]
            case Endpoint():
                return self._endpoint(event)
            case Final():
                return [*self._final(event), *self._settle(carried_out)]
            case Closed():
                self.finished = True
                settled = self._settle(carried_out)
                return [*settled, *self._complete_all(event.audio_ms), self.farewell]
        param, event_id = (event.param, event.event_id) if isinstance(event, Mistake) else (None, None)
        error = self._send("error", error=error_body(event.code, event.message, param, event_id))
        self.finished |= event.fatal
        return [error, Close.after(event)] if event.fatal else [error]

    def progress(self, audio_ms: int) -> list[Step]:
        return self._settle(self.marks.progress(audio_ms))

    # -- what the client wants

    def _obey(self, message: dict[str, Any]) -> list[Step]:
        """Raises Invalid."""
        match message.get("type"):
            case "session.update":
                self._update(message.get("session"))
                return [self._send("session.updated", session=self._session())]
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
        if self.form["type"] == "audio/pcma":
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
        return [self._committed(item), *asked]

    def _clear(self) -> list[Step]:
        cleared = self._send("input_audio_buffer.cleared")
        if not self.marks.fresh:
            return [cleared]
        item = self._newest()
        asked = self.marks.ask()
        item.end_ms, item.kept = self.marks.received_ms, False
        return [cleared, *asked]

    def _update(self, session: object) -> None:
        """Takes over what is there, all or nothing. Raises Invalid."""
        given = _object("session", session, ("type", "audio", "include"))
        if given.get("type", "transcription") != "transcription":
            raise Invalid("session.type", "this server only transcribes: use type transcription")
        include = given.get("include") or []
        if not isinstance(include, list) or any(each != LOGPROBS for each in include):
            raise Invalid("session.include", f"include knows {LOGPROBS}")
        audio = _object("session.audio", given.get("audio") or {}, ("input", "output"))
        names = ("format", "noise_reduction", "transcription", "turn_detection")
        wishes = _object("session.audio.input", audio.get("input") or {}, names)
        form = _form(wishes["format"]) if wishes.get("format") else self.form
        changes = _transcription(wishes["transcription"]) if wishes.get("transcription") else {}
        encoding, rate = FORMATS[form["type"]]
        changes |= {"encoding": encoding, "sample_rate": form.get("rate", rate)}
        try:
            options = replace(self.options, **changes)
        except ValueError as error:
            raise Invalid("session.audio.input", str(error)) from None
        if self.opened and (options, form) != (self.options, self.form):
            raise Invalid("session.audio.input", "format and transcription are set before any audio")
        if "turn_detection" in wishes:
            self.detects = _detects(wishes["turn_detection"])
        if "include" in given:
            self.include = include
        if not self.opened:
            self.options, self.form, self.marks = options, form, Marks(options)

    # -- what the session says

    def _partial(self, event: Partial) -> list[Step]:
        item = self._first()
        steps: list[Step] = []
        if item.utterance not in (-1, event.utterance) and item.committed and item.end_ms is None:
            steps += self._complete(event.audio_ms)  # its final said nothing
            item = self._first()
        item.utterance = event.utterance
        start_ms = event.words[0].start_ms if event.words else self.told_ms
        return [*steps, *self._start(item, start_ms), *self._delta(item, event.text[: event.stable])]

    def _endpoint(self, event: Endpoint) -> list[Step]:
        if not self.detects:
            return []
        item = self._first()
        return [*self._stop(item, event.audio_ms), *([self._committed(item)] if item.open else [])]

    def _final(self, event: Final) -> list[Step]:
        item = self._first()
        steps = [*self._start(item, event.start_ms), *self._delta(item, event.text)]
        item.finals.append(event)
        item.told = ""
        if item.end_ms is not None or not (self.detects or item.committed):
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
        if item.started or item.committed or not (self.detects and item.kept):
            return []
        item.started = True
        at = self.marks.client_ms(start_ms)
        return [self._send("input_audio_buffer.speech_started", audio_start_ms=at, item_id=item.id)]

    def _stop(self, item: Item, end_ms: int) -> list[Step]:
        if not (item.started and item.kept):
            return []
        item.started = False
        at = self.marks.client_ms(end_ms)
        return [self._send("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=item.id)]

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
        seconds = (self.marks.client_ms(audio_ms) - self.marks.client_ms(self.told_ms)) / 1000
        self.told_ms = audio_ms
        if not item.kept:
            return []
        words = [word for final in item.finals for word in final.words]
        usage = {"type": "duration", "seconds": round(max(0.0, seconds), 3)}
        logprobs = {"logprobs": word_logprobs(words)} if LOGPROBS in self.include else {}
        text = " ".join(final.text for final in item.finals)
        timed = [self._word(word) for word in words]
        return [self._of(item, "completed", transcript=text, usage=usage, words=timed, **logprobs)]

    def _of(self, item: Item, what: str, **fields: object) -> Send:
        kind = f"conversation.item.input_audio_transcription.{what}"
        return self._send(kind, item_id=item.id, content_index=0, **fields)

    def _word(self, word: Word) -> dict[str, object]:
        start, end = (self.marks.client_ms(ms) / 1000 for ms in (word.start_ms, word.end_ms))
        return {"word": word.text, "start": start, "end": end, "confidence": word.confidence}

    def _session(self) -> dict[str, object]:
        transcription: dict[str, object] = {
            "model": self.terms.model,
            "language": "en",
            "prompt": self.options.prompt,
        }
        if self.options.hotwords:
            transcription["keywords"] = list(self.options.hotwords)
        return {
            "id": f"sess_{self.session}",
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": self.form,
                    "noise_reduction": None,
                    "transcription": transcription,
                    "turn_detection": {"type": "server_vad"} if self.detects else None,
                }
            },
            "include": self.include,
        }

    def _send(self, kind: str, **fields: object) -> Send:
        self.n_sent += 1
        event_id = f"event_{self.session}_{self.n_sent}"
        return Send(json.dumps({"type": kind, "event_id": event_id, **fields}, separators=(",", ":")))


def error_body(
    code: str, message: str, param: str | None = None, event_id: str | None = None
) -> dict[str, object]:
    """OpenAI's description of an error."""
    kind = "server_error" if code in ("internal", "full", "draining") else "invalid_request_error"
    code = "invalid_api_key" if code == "bad_key" else code
    body: dict[str, object] = {"message": message, "type": kind, "code": code, "param": param}
    return body if event_id is None else body | {"event_id": event_id}


def word_logprobs(words: Sequence[Word]) -> list[dict[str, object]]:
    """OpenAI has logarithms of tokens' probabilities; ours are words'."""
    return [
        {
            "token": word.text,
            "bytes": list(word.text.encode()),
            "logprob": round(math.log(max(word.confidence, LOWEST_CONFIDENCE)), 4),
        }
        for word in words
    ]


def _object(path: str, value: object, known: tuple[str, ...]) -> dict[str, Any]:
    """Raises Invalid for what is no object, or holds something else than what is known."""
    if not isinstance(value, dict):
        raise Invalid(path, f"{path} must be an object", "invalid_type")
    if unknown := sorted(set(value) - set(known)):
        name = f"{path}.{unknown[0][:40]}"
        raise Invalid(name, f"unknown parameter: {path} knows {', '.join(known)}", "unknown_parameter")
    return value


def _form(value: object) -> dict[str, Any]:
    """The format of the audio. Raises Invalid."""
    path = "session.audio.input.format"
    given = _object(path, value, ("type", "rate"))
    if given.get("type") not in tuple(FORMATS):
        raise Invalid(f"{path}.type", f"the type must be one of {', '.join(FORMATS)}")
    if given["type"] != "audio/pcm":
        return {"type": given["type"]}
    rate = given.get("rate") or 24_000
    if not isinstance(rate, int) or isinstance(rate, bool):
        raise Invalid(f"{path}.rate", "the rate must be an integer, in Hz", "invalid_type")
    return {"type": "audio/pcm", "rate": rate}


def _transcription(value: object) -> dict[str, Any]:
    """The part of SessionOptions that stands under `transcription`. Raises Invalid."""
    path = "session.audio.input.transcription"
    given = _object(path, value, ("model", "language", "languages", "prompt", "keywords", "delay"))
    options: dict[str, Any] = {}
    languages = given.get("languages") or []
    for language in [given.get("language"), *(languages if isinstance(languages, list) else [languages])]:
        if language is not None and (not is_text(language) or language.split("-")[0].lower() != "en"):
            raise Invalid(f"{path}.language", "this server knows English only: use en")
    if given.get("prompt") is not None:
        if not is_text(given["prompt"]):
            raise Invalid(f"{path}.prompt", "the prompt must be a text", "invalid_type")
        options["prompt"] = given["prompt"]
    if given.get("keywords") is not None:
        keywords = given["keywords"]
        if not isinstance(keywords, list) or not all(map(is_text, keywords)):
            raise Invalid(f"{path}.keywords", "keywords must be a list of texts", "invalid_type")
        options["hotwords"] = tuple(keywords)
    if given.get("delay") is not None:
        if given["delay"] not in tuple(DELAYS_MS):
            raise Invalid(f"{path}.delay", f"the delay must be one of {', '.join(DELAYS_MS)}")
        options["delay_ms"] = DELAYS_MS[given["delay"]]
    return options


def _detects(value: object) -> bool:
    """Whether turns are detected; how, is the server's. Raises Invalid."""
    if value is None:
        return False
    if not isinstance(value, dict) or value.get("type", "server_vad") not in ("server_vad", "semantic_vad"):
        raise Invalid("session.audio.input.turn_detection", "use the type server_vad, or null for commits")
    return True
