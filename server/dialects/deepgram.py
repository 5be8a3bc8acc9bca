"""Deepgram's protocol for live audio, `GET /v1/listen`: https://developers.deepgram.com/reference/listen-live.

Query: encoding (linear16, linear32, mulaw, alaw), sample_rate, channels (mixed down), interim_results, punctuate or
smart_format (else words are plain), endpointing (the pause in ms; false: no speech_final), utterance_end_ms,
vad_events, keyterm and keywords. Every name of a model is taken, the server has one; other parameters are ignored,
but for those that a client must be able to rely on. Client texts: KeepAlive, Finalize, CloseStream, Configure
(keyterms, before audio). Server texts: Results, SpeechStarted, UtteranceEnd, ConfigureSuccess, ConfigureFailure,
Metadata, Error.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, uuid5

from server.dialects import (
    Close,
    Lifecycle,
    Send,
    Step,
    Terms,
    authorization,
    is_text,
    json_object,
    offered,
    plain,
)
from server.dialects.g711 import alaw_to_s16le
from server.dialects.marks import Marks
from streaming.events import Closed, Endpoint, Event, Fault, Final, Finalized, Partial, Word
from streaming.session import PAUSE_MS, SessionOptions

ENCODINGS = {"linear16": "s16le", "linear32": "f32le", "mulaw": "mulaw", "alaw": "s16le"}
TELEPHONE_HZ = 8_000
RELIED_ON = ("callback", "multichannel", "redact")  # ignoring these would break a promise
CHANNEL = [0, 1]  # the first of one
SHORTEST_GAP_MS = 1_000  # of utterance_end_ms
ERROR_CODES = {"bad_key": "INVALID_AUTH", "full": "TOO_MANY_REQUESTS", "draining": "SERVICE_UNAVAILABLE"}


@dataclass
class Deepgram(Lifecycle):
    """One conversation in Deepgram's protocol."""

    subprotocols: ClassVar[tuple[str, ...]] = ("token", "bearer")
    key_place: ClassVar[str] = "header Authorization: Token KEY, or the WebSocket subprotocols token, KEY"

    terms: Terms
    alaw: bool = False
    interim: bool = False
    punctuated: bool = False
    endpointing: bool = True
    vad_events: bool = False
    utterance_end_ms: int | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))  # to be told, never compared
    request_id: str = field(default="", init=False)
    marks: Marks = field(init=False)
    said_ms: int = field(default=0, init=False)  # up to here results are final
    begun: int = field(default=-1, init=False)  # the newest utterance that SpeechStarted told of
    ended: int = field(default=-1, init=False)  # the newest utterance that ended with a pause or a Finalize
    last_word_ms: int | None = field(default=None, init=False)  # until UtteranceEnd has told of it

    def __post_init__(self) -> None:
        self.marks = Marks(self.options)
        self._sha256 = hashlib.sha256()

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        scheme, *keys = offered(headers)
        return authorization(headers, "token", "bearer") or (
            keys[0] if keys and scheme in Deepgram.subprotocols else ""
        )

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        return {"err_code": ERROR_CODES.get(code, "Bad Request"), "err_msg": message}

    @classmethod
    def parse(cls, query: Mapping[str, str], terms: Terms) -> "Deepgram":
        """Raises ValueError for what would make results wrong; other unknown parameters are ignored."""
        for name in RELIED_ON:
            if query.get(name, "false").lower() != "false":
                raise ValueError(f"{name} is not supported here: leave it out")
        if query.get("language", "en").split("-")[0].lower() != "en":
            raise ValueError(f"language {query['language'][:40]!r} is not supported: use en")
        interim = _flag(query, "interim_results")
        return cls(
            SessionOptions(**terms.options() | _format(query) | _hotwords(query, terms) | _pause(query)),
            terms,
            alaw=query["encoding"] == "alaw",
            interim=interim,
            punctuated=_flag(query, "punctuate") or _flag(query, "smart_format"),
            endpointing=query.get("endpointing", "true").lower() != "false",
            vad_events=_flag(query, "vad_events"),
            utterance_end_ms=_gap(query, interim),
        )

    def greet(self, session: str) -> list[Step]:
        self.request_id = session
        return []

    def receive(self, frame: str | bytes) -> list[Step]:
        """An empty binary frame ends the stream, as it did before there was CloseStream."""
        if self.finished:
            return []
        if isinstance(frame, bytes):
            if not frame:
                return self.finish()
            self._sha256.update(frame)
            return [*self.open(), self.marks.receive(alaw_to_s16le(frame) if self.alaw else frame)]
        try:
            message = json_object(frame)
        except ValueError as error:
            return [_mistake(f"{error}; audio goes into binary frames")]
        match message.get("type"):
            case "KeepAlive":
                return []
            case "Finalize":
                return [self.marks.ask()] if self.opened else [self._nothing(from_finalize=True)]
            case "Configure":
                return [self._configure(message.get("keyterms"))]
            case "CloseStream":
                return self.finish()
        return [_mistake('a text frame needs the "type" KeepAlive, Finalize, Configure or CloseStream')]

    def render(self, event: Event) -> list[Step]:
        carried_out = self.marks.heard(event)
        match event:
            case Partial():
                return [*self._begin(event), *self._interim(event)]
            case Endpoint():
                self.ended = event.utterance
                return []
            case Final():
                results = self._final(event, from_finalize=carried_out > 0)
                return [*self._begin(event), results, *self._answers(carried_out - 1)]
            case Finalized():
                return self._answers(carried_out)
            case Closed():
                self.finished = True
                return [*self._answers(carried_out), self._metadata(event), self.farewell]
        error = _message("Error", variant=event.code, description=event.message, message=event.message)
        self.finished |= event.fatal
        return [error, Close.after(event)] if event.fatal else [error]

    def progress(self, audio_ms: int) -> list[Step]:
        gap, last = self.utterance_end_ms, self.last_word_ms
        if gap is None or last is None or self.marks.speaking or audio_ms < last + gap:
            return []
        self.last_word_ms = None
        return [_message("UtteranceEnd", channel=CHANNEL, last_word_end=_seconds(last))]

    def _begin(self, event: Partial | Final) -> list[Step]:
        """SpeechStarted, once an utterance, if it was asked for."""
        if not self.vad_events or event.utterance <= self.begun:
            return []
        self.begun = event.utterance
        start_ms = event.words[0].start_ms if event.words else self.said_ms
        return [_message("SpeechStarted", channel=CHANNEL, timestamp=_seconds(start_ms))]

    def _interim(self, event: Partial) -> list[Step]:
        return [self._results(event.text, event.words, event.audio_ms)] if self.interim else []

    def _final(self, event: Final, *, from_finalize: bool) -> Send:
        results = self._results(
            event.text,
            event.words,
            event.audio_ms,
            is_final=True,
            speech_final=self.endpointing and event.utterance <= self.ended,
            from_finalize=from_finalize,
        )
        self.said_ms, self.last_word_ms = event.audio_ms, event.end_ms
        return results

    def _answers(self, n: int) -> list[Step]:
        """To as many Finalize after which there was nothing more to say."""
        return [self._nothing(from_finalize=True) for _ in range(n)]

    def _nothing(self, *, from_finalize: bool) -> Send:
        return self._results("", (), self.said_ms, is_final=True, from_finalize=from_finalize)

    def _results(
        self,
        text: str,
        words: Sequence[Word],
        audio_ms: int,
        *,
        is_final: bool = False,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> Send:
        """The words heard since the newest final results, up to `audio_ms`."""
        start = _seconds(self.said_ms)
        confidence = sum(word.confidence for word in words) / len(words) if words else 0.0
        alternative = {
            "transcript": text if self.punctuated else " ".join(map(plain, text.split())),
            "confidence": round(confidence, 4),
            "words": [self._word(word) for word in words],
        }
        model = self.terms.model
        return _message(
            "Results",
            channel_index=CHANNEL,
            start=start,
            duration=round(max(0.0, _seconds(audio_ms) - start), 3),
            is_final=is_final,
            speech_final=speech_final,
            from_finalize=from_finalize,
            channel={"alternatives": [alternative]},
            metadata={
                "request_id": self.request_id,
                "model_uuid": str(uuid5(NAMESPACE_URL, model)),
                "model_info": {"name": model, "version": "1", "arch": "whisper"},
            },
        )

    def _word(self, word: Word) -> dict[str, object]:
        told: dict[str, object] = {
            "word": plain(word.text),
            "start": _seconds(word.start_ms),
            "end": _seconds(word.end_ms),
            "confidence": word.confidence,
        }
        return told | {"punctuated_word": word.text} if self.punctuated else told

    def _configure(self, keyterms: object) -> Step:
        """New keyterms, while the session is not open; None keeps those that there are."""
        told: dict[str, object] = {"request_id": self.request_id}
        if keyterms is None:
            return _message("ConfigureSuccess", **told)
        if self.opened:
            failure = {"code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED", "description": "send it before any audio"}
            return _message("ConfigureFailure", **told, **failure)
        if not isinstance(keyterms, list) or not all(map(is_text, keyterms)):
            return _mistake("keyterms must be a list of texts")
        try:
            self.options = replace(self.options, hotwords=tuple(keyterms))
        except ValueError as error:
            return _mistake(str(error))
        return _message("ConfigureSuccess", **told, keyterms=list(self.options.hotwords))

    def _metadata(self, event: Closed) -> Send:
        return _message(
            "Metadata",
            transaction_key="deprecated",
            request_id=self.request_id,
            sha256=self._sha256.hexdigest(),
            created=self.created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            duration=_seconds(event.audio_ms),
            channels=1,
        )


def _seconds(ms: int) -> float:
    return ms / 1000


def _message(kind: str, **fields: object) -> Send:
    return Send(json.dumps({"type": kind, **fields}, separators=(",", ":")))


def _mistake(message: str) -> Fault:
    """In a text frame: the stream of audio goes on."""
    return Fault("SchemaError", message, fatal=False)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "false").lower() == "true"


def _format(query: Mapping[str, str]) -> dict[str, Any]:
    """What the audio is; a guess would turn a wrong one into nonsense."""
    encoding = query.get("encoding", "")
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}: containers are not decoded here")
    default = str(TELEPHONE_HZ) if encoding in ("mulaw", "alaw") else ""
    return {
        "encoding": ENCODINGS[encoding],
        "sample_rate": _integer("sample_rate", query.get("sample_rate", default)),
        "channels": _integer("channels", query.get("channels", "1")),
    }


def _hotwords(query: Mapping[str, str], terms: Terms) -> dict[str, tuple[str, ...]]:
    """keyterm=WORDS or keywords=WORD:BOOST, each as often as wanted; the boosts are another model's."""
    keywords = [word.rpartition(":")[0] or word for word in _several(query, "keywords")]
    return {"hotwords": (*_several(query, "keyterm"), *keywords) or terms.hotwords}


def _several(query: Mapping[str, str], name: str) -> list[str]:
    """All values of a parameter, where the query can tell."""
    values: Callable[[str], list[str]] | None = getattr(query, "getlist", None)
    return values(name) if values else [query[name]] if name in query else []


def _pause(query: Mapping[str, str]) -> dict[str, Any]:
    """endpointing=MS, brought within what there is here; the server's own pause for true and false."""
    text = query.get("endpointing", "true").lower()
    if text in ("true", "false"):
        return {}
    least, most = PAUSE_MS
    return {"pause_ms": min(max(_integer("endpointing", text), least), most)}


def _gap(query: Mapping[str, str], interim: bool) -> int | None:
    if "utterance_end_ms" not in query:
        return None
    gap = _integer("utterance_end_ms", query["utterance_end_ms"])
    if gap < SHORTEST_GAP_MS or not interim:
        raise ValueError(f"utterance_end_ms must be {SHORTEST_GAP_MS} or more, with interim_results=true")
    return gap


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be an integer, not {text[:40]!r}") from None
