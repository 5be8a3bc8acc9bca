"""The native protocol, `GET /v1/stream`: audio in binary frames, control and events as JSON texts.

Query: model, chunk_ms, delay_ms, pause_ms, sample_rate, encoding (s16le, f32le, mulaw), channels, language (en),
final_pass (full, rescore, none), words, interim, progress, resumes (booleans), beam, prompt, hotwords (separated by
commas), hotword_boost, token. Client texts: finalize, keepalive, close, resume {what a bookmark holds}, start {beam,
prompt, hotwords (a list), hotword_boost} for what is too long for a query. Server texts: ready, partial, bookmark,
final, endpoint, finalized, progress, closed, error. The session is opened at the first audio, finalize or close, so
that a resume before it can set the timeline. To resume behind a final is to send what its bookmark holds, and the
audio from its from_ms on; of a client that knows audio_ms alone, the audio from there on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, TypeGuard

from server.dialects import (
    Audio,
    Close,
    Finalize,
    Lifecycle,
    Send,
    Step,
    Terms,
    authorization,
    is_text,
)
from streaming.events import (
    LONGEST_TIMELINE_MS,
    Bookmark,
    Closed,
    Event,
    Fault,
    Final,
    Finalized,
    Partial,
)
from streaming.session import SessionOptions, no_such_pass

NUMBERS = ("chunk_ms", "delay_ms", "pause_ms", "sample_rate", "channels", "beam")
FLAGS = ("words", "interim", "progress", "resumes")
TEXTS = ("model", "language", "encoding", "final_pass", "token", "prompt", "hotwords", "hotword_boost")
# The token is checked at the door.
STARTS: dict[str, type | tuple[type, ...]] = {
    "beam": int,
    "prompt": str,
    "hotwords": list,
    "hotword_boost": (int, float),
}


@dataclass
class Native(Lifecycle):
    """One conversation in the native protocol."""

    subprotocols: ClassVar[tuple[str, ...]] = ()
    key_place: ClassVar[str] = "query token=KEY, or header Authorization: Bearer KEY"

    terms: Terms
    words: bool = False
    interim: bool = True
    reports: bool = False  # progress for every decoded chunk
    resumes: bool = False  # the client does, behind the last final, whatever ends its connection
    reported_ms: int = field(default=0, init=False)

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        return authorization(headers, "bearer") or query.get("token", "")

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        return {"type": "error", "code": code, "message": message, "fatal": True}

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> "Native":
        """Raises ValueError for a parameter, or a value of one, that is not known."""
        known = (*NUMBERS, *FLAGS, *TEXTS)
        if unknown := sorted(set(query) - set(known)):
            raise ValueError(f"unknown parameter {unknown[0]!r}: use {', '.join(sorted(known))}")
        if query.get("language", "en").split("-")[0].lower() != "en":
            raise ValueError(f"language {query['language']!r} is not supported: use en")
        if query.get("model", terms.model) != terms.model:
            raise ValueError(f"model {query['model']!r} is not served here: use {terms.model}")
        if "delay_ms" in query and terms.delay_ms is None:
            raise ValueError(f"{terms.model} has learnt when to wait: leave delay_ms out")
        numbers = {name: _number(name, query[name]) for name in NUMBERS if name in query}
        texts = {name: query[name] for name in ("encoding", "final_pass", "prompt") if name in query}
        options: dict[str, Any] = terms.options() | numbers | texts
        if "hotwords" in query:
            options["hotwords"] = tuple(query["hotwords"].split(","))
        if "hotword_boost" in query:
            options["hotword_boost"] = _decimal("hotword_boost", query["hotword_boost"])
        chosen = SessionOptions(**options)
        if chosen.final_pass not in terms.final_passes:
            raise ValueError(no_such_pass(terms.model, chosen.final_pass, terms.final_passes))
        return cls(
            chosen,
            terms,
            words=_flag("words", query.get("words", "false")),
            interim=_flag("interim", query.get("interim", "true")),
            reports=_flag("progress", query.get("progress", "false")),
            resumes=_flag("resumes", query.get("resumes", "false")),
        )

    def greet(self, session: str) -> list[Step]:
        limits = {
            "max_frame_bytes": self.terms.max_frame_bytes,
            "max_backlog_ms": round(self.terms.max_backlog_s * 1000),
            "idle_timeout_ms": round(self.terms.idle_timeout_s * 1000),
        }
        return [
            _message(
                "ready",
                session=session,
                model=self.terms.model,
                chunk_ms=self.options.chunk_ms,
                delay_ms=self.options.delay_ms,
                pause_ms=self.options.pause_ms,
                encoding=self.options.encoding,
                sample_rate=self.options.sample_rate,
                channels=self.options.channels,
                limits=limits,
            )
        ]

    def receive(self, frame: str | bytes) -> list[Step]:
        """After close, the client's or the server's, frames are ignored: they may have crossed it."""
        if self.finished:
            return []
        if isinstance(frame, bytes):
            return [*self.open(), Audio(frame)] if frame else []
        try:
            message = json.loads(frame)
        except (ValueError, RecursionError):
            return [_mistake("bad_text", "a text frame must be JSON; audio goes into binary frames")]
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            return [_mistake("bad_text", 'a text frame must be a JSON object with a text "type"')]
        match message["type"]:
            case "keepalive":
                return []
            case "finalize":
                return [*self.open(), Finalize()]
            case "close":
                return self.finish()
            case "resume":
                return self._resume(message)
            case "start":
                return self._start({key: value for key, value in message.items() if key != "type"})
        return [
            _mistake(
                "bad_type",
                f"unknown type {message['type'][:40]!r}: use start, finalize, keepalive, close or resume",
            )
        ]

    def render(self, event: Event) -> list[Step]:
        match event:
            case Partial():
                if not self.interim:
                    return []
                self.reported_ms = event.audio_ms
                return [self._event("partial", event)]
            case Final():
                bookmark = [_message("bookmark", **asdict(event.bookmark))] if event.bookmark else []
                return [*bookmark, self._event("final", event)]
            case Finalized():
                return [self._event("finalized", event)]
            case Closed():
                self.finished = True
                return [self._event("closed", event), self.farewell]
            case Fault(fatal=True):
                self.finished = True
                return [self._event("error", event), Close.after(event)]
            case Fault():
                return [self._event("error", event)]
        return [self._event("endpoint", event)]

    def progress(self, audio_ms: int) -> list[Step]:
        if not self.reports or audio_ms <= self.reported_ms:
            return []
        self.reported_ms = audio_ms
        return [_message("progress", audio_ms=audio_ms)]

    def leave(self, code: int, why: str) -> list[Step]:
        """Who resumes says the open utterance again: to end it here could cut a word in two."""
        if self.resumes and not self.finished:
            self.finished = True
            return [Close(code, why)]
        return super().leave(code, why)

    def _resume(self, message: dict[str, Any]) -> list[Step]:
        if self.opened:
            return [_mistake("bad_order", "resume must come before any audio: reconnect to resume")]
        known = message.get("audio_ms")
        held: dict[str, Any] = {
            name: message.get(name, known) for name in ("audio_ms", "from_ms", "heard_ms")
        }
        held |= {"said_ms": message.get("said_ms", 0)}
        texts = {name: message.get(name, "") for name in ("carried", "said")}
        if not (all(map(_is_integer, held.values())) and all(map(is_text, texts.values()))):
            return [_mistake("bad_text", "resume needs audio_ms, an integer, or all that a bookmark holds")]
        if held["heard_ms"] > LONGEST_TIMELINE_MS:
            return [_mistake("bad_text", f"resume: a timeline begins at {LONGEST_TIMELINE_MS} ms at most")]
        try:
            bookmark = Bookmark(**held, **texts)
        except ValueError as error:
            return [_mistake("bad_text", f"resume: {error}")]
        self.options = replace(self.options, resume=bookmark)
        self.reported_ms = self.options.start_ms
        return []

    def _start(self, wishes: dict[str, Any]) -> list[Step]:
        if self.opened:
            return [_mistake("bad_order", "start must come before any audio: reconnect to start anew")]
        for name, value in wishes.items():
            if name not in STARTS:
                return [_mistake("bad_text", f"start knows {', '.join(STARTS)}, not {name[:40]!r}")]
            texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
            if not isinstance(value, STARTS[name]) or isinstance(value, bool) or not all(map(is_text, texts)):
                return [_mistake("bad_text", f"start: {name} is of the wrong type")]
        if "hotwords" in wishes:
            wishes["hotwords"] = tuple(wishes["hotwords"])
        try:
            self.options = replace(self.options, **wishes)
        except ValueError as error:
            return [_mistake("bad_text", str(error))]
        return []

    def _event(self, kind: str, event: Event) -> Send:
        fields = asdict(event)
        fields.pop("bookmark", None)  # it has its own message, which clients may ignore
        if not self.words and isinstance(event, Partial | Final):
            del fields["words"]
        return _message(kind, **fields)


def _message(kind: str, **fields: object) -> Send:
    return Send(json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":")))


def _mistake(code: str, message: str) -> Fault:
    return Fault(code, message, fatal=True)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be an integer, not {text[:40]!r}") from None


def _decimal(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text[:40]!r}") from None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"{name} must be true or false, not {text[:40]!r}")
    return text.lower() in ("true", "1")
