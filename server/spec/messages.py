"""The messages of every dialect as JSON Schemas: the server's in full, of a client's what is heeded."""

from dataclasses import dataclass

from asr.audio import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS
from asr.limits import MAX_BEAM, MAX_BOOST, MAX_HOTWORD_CHARS, MAX_HOTWORDS, MAX_PROMPT_CHARS
from server.dialects.deepgram import CHANNEL, ENCODINGS, RELIED_ON, SHORTEST_GAP_MS
from server.dialects.realtime import EVENTS
from server.dialects.realtime_session import DELAYS_MS, FORMATS, LOGPROBS
from server.page import STEP_MS
from server.spec.schema import (
    BYTES,
    FLAG,
    INTEGER,
    NUMBER,
    SHARE,
    TEXT,
    Schema,
    array,
    between,
    fields_of,
    maybe,
    one_of,
    open_record,
    record,
)
from streaming.events import (
    LONGEST_REPLAY_MS,
    LONGEST_TIMELINE_MS,
    MAX_CARRIED_CHARS,
    Closed,
    Endpoint,
    Fault,
    Final,
    Finalized,
    Partial,
)
from streaming.session import CHUNK_MS, DELAY_MS, FINAL_PASSES, PAUSE_MS, SessionOptions

RATE = between(LOWEST_RATE, HIGHEST_RATE)
CHANNELS = between(1, MOST_CHANNELS)
HOTWORDS = array(TEXT | {"maxLength": MAX_HOTWORD_CHARS}, maxItems=MAX_HOTWORDS)
PROMPT = TEXT | {"maxLength": MAX_PROMPT_CHARS}
WORD = record(word=TEXT, start=NUMBER, end=NUMBER, confidence=SHARE)
ENGLISH = TEXT | {"pattern": "^[Ee][Nn](-.*)?$"}
SWITCH = one_of(["true", "false"])


@dataclass(frozen=True)
class Vocabulary:
    """What a dialect's client may ask for in the query, and what it and the server may say.

    Attributes:
        query, client, server: schemas by name; a client's message of bytes is audio.
    """

    query: dict[str, Schema]
    client: dict[str, Schema]
    server: dict[str, Schema]

    @property
    def messages(self) -> dict[str, Schema]:
        """Both sides': no name is used by both."""
        return self.client | self.server


def _typed(kind: str, fields: dict[str, Schema], *optional: str) -> Schema:
    return record(optional, type={"const": kind}, **fields)


def _asked(kind: str, optional: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """A client's text, in which other fields are ignored."""
    return open_record(optional, type={"const": kind}, **fields)


def _native() -> Vocabulary:
    boost = between(0, MAX_BOOST, NUMBER)
    flag = one_of(["true", "false", "1", "0"])
    chosen = {
        "encoding": fields_of(SessionOptions)["encoding"],
        "sample_rate": RATE,
        "channels": CHANNELS,
    }
    numbers = {
        "chunk_ms": between(*CHUNK_MS, multipleOf=STEP_MS),
        "delay_ms": between(*DELAY_MS, multipleOf=STEP_MS, description="left out where /v1/models has null"),
        "pause_ms": between(*PAUSE_MS),
        "beam": between(1, MAX_BEAM),
        "hotword_boost": boost,
    }
    texts = {
        "prompt": PROMPT,
        "hotwords": TEXT | {"description": "separated by commas"},
        "final_pass": one_of(FINAL_PASSES),
        "model": TEXT | {"description": "the one of this server, or left out"},
        "language": ENGLISH,
        "token": TEXT | {"description": "the key"},
    }
    limits = record(max_frame_bytes=INTEGER, max_backlog_ms=INTEGER, idle_timeout_ms=INTEGER)
    ready = {"session": TEXT, "model": TEXT, "chunk_ms": INTEGER, "delay_ms": INTEGER}
    ready |= {"pause_ms": INTEGER, "limits": limits}
    start = {"beam": numbers["beam"], "prompt": PROMPT, "hotwords": HOTWORDS, "hotword_boost": boost}
    time = between(0, LONGEST_TIMELINE_MS)
    words = TEXT | {"maxLength": MAX_CARRIED_CHARS}
    bookmark = {
        "audio_ms": time, "from_ms": time, "heard_ms": time, "carried": words,
        "said": words, "said_ms": between(0, LONGEST_REPLAY_MS),
    }  # fmt: skip
    final = {name: schema for name, schema in fields_of(Final).items() if name != "bookmark"}
    return Vocabulary(
        chosen | numbers | texts | dict.fromkeys(("words", "interim", "progress", "resumes"), flag),
        {
            "audio": BYTES,
            "start": _typed("start", start, *start),
            "resume": _asked("resume", tuple(bookmark)[1:], **bookmark),
            **{kind: _asked(kind) for kind in ("finalize", "keepalive", "close")},
        },
        {
            "ready": _typed("ready", ready | chosen),
            "partial": _typed("partial", fields_of(Partial), "words"),
            "bookmark": _typed("bookmark", bookmark),
            "final": _typed("final", final, "words"),
            "endpoint": _typed("endpoint", fields_of(Endpoint)),
            "finalized": _typed("finalized", fields_of(Finalized)),
            "progress": _typed("progress", {"audio_ms": INTEGER}),
            "closed": _typed("closed", fields_of(Closed)),
            "error": _typed("error", fields_of(Fault)),
        },
    )


def _deepgram() -> Vocabulary:
    channel: Schema = {"const": CHANNEL}
    word = record(["punctuated_word"], **WORD["properties"], punctuated_word=TEXT)
    alternative = record(transcript=TEXT, confidence=SHARE, words=array(word))
    model = record(name=TEXT, version=TEXT, arch=TEXT)
    results = {
        "channel_index": channel,
        "start": NUMBER,
        "duration": NUMBER,
        "is_final": FLAG,
        "speech_final": FLAG,
        "from_finalize": FLAG,
        "channel": record(alternatives=array(alternative, minItems=1, maxItems=1)),
        "metadata": record(request_id=TEXT, model_uuid=TEXT, model_info=model),
    }
    request: dict[str, Schema] = {"request_id": TEXT}
    metadata = {
        "transaction_key": TEXT,
        "sha256": TEXT,
        "created": TEXT,
        "duration": NUMBER,
        "channels": INTEGER,
    }
    query: dict[str, Schema] = {
        "encoding": one_of(ENCODINGS),
        "sample_rate": RATE | {"description": "needed, but for telephones' encodings"},
        "channels": CHANNELS,
        "language": ENGLISH,
        "endpointing": TEXT | {"pattern": "^([Tt]rue|[Ff]alse|[0-9]+)$"},
        "utterance_end_ms": INTEGER | {"minimum": SHORTEST_GAP_MS},
        "keyterm": HOTWORDS,
        "keywords": array(TEXT | {"description": "WORD or WORD:BOOST, of which the boost is ignored"}),
    }
    return Vocabulary(
        query
        | dict.fromkeys(("interim_results", "punctuate", "smart_format", "vad_events"), SWITCH)
        | dict.fromkeys(RELIED_ON, one_of(["false"], description="not supported")),
        {
            "audio": BYTES,
            "Configure": _asked("Configure", ("keyterms",), keyterms=maybe(HOTWORDS)),
            **{kind: _asked(kind) for kind in ("KeepAlive", "Finalize", "CloseStream")},
        },
        {
            "Results": _typed("Results", results),
            "SpeechStarted": _typed("SpeechStarted", {"channel": channel, "timestamp": NUMBER}),
            "UtteranceEnd": _typed("UtteranceEnd", {"channel": channel, "last_word_end": NUMBER}),
            "ConfigureSuccess": _typed("ConfigureSuccess", request | {"keyterms": array(TEXT)}, "keyterms"),
            "ConfigureFailure": _typed("ConfigureFailure", request | {"code": TEXT, "description": TEXT}),
            "Metadata": _typed("Metadata", request | metadata),
            "Error": _typed("Error", {"variant": TEXT, "description": TEXT, "message": TEXT}),
        },
    )


def openai_error(*more: str) -> Schema:
    """OpenAI's description of an error."""
    fields = {"message": TEXT, "code": TEXT, "param": maybe(TEXT), **dict.fromkeys(more, TEXT)}
    return record(more, type=one_of(["invalid_request_error", "server_error"]), **fields)


LOGPROB = record(token=TEXT, bytes=array(between(0, 255)), logprob=NUMBER | {"maximum": 0})
DURATION = record(type={"const": "duration"}, seconds=NUMBER | {"minimum": 0})


def _realtime() -> Vocabulary:
    item: dict[str, Schema] = {"item_id": TEXT}
    told = item | {"content_index": {"const": 0}}
    buffer, transcription = "input_audio_buffer", "conversation.item.input_audio_transcription"
    completed = {"transcript": TEXT, "usage": DURATION, "words": array(WORD), "logprobs": array(LOGPROB)}
    session = record(
        id=TEXT,
        object={"const": "realtime.transcription_session"},
        type={"const": "transcription"},
        audio=record(input=_realtime_input()),
        include=array({"const": LOGPROBS}),
    )

    def event(kind: str, fields: dict[str, Schema], *optional: str) -> Schema:
        return _typed(kind, {"event_id": TEXT} | fields, *optional)

    events = {
        "session.created": event("session.created", {"session": session}),
        "session.updated": event("session.updated", {"session": session}),
        "error": event("error", {"error": openai_error("event_id")}),
        f"{buffer}.speech_started": event(f"{buffer}.speech_started", item | {"audio_start_ms": INTEGER}),
        f"{buffer}.speech_stopped": event(f"{buffer}.speech_stopped", item | {"audio_end_ms": INTEGER}),
        f"{buffer}.committed": event(f"{buffer}.committed", item | {"previous_item_id": maybe(TEXT)}),
        f"{buffer}.cleared": event(f"{buffer}.cleared", {}),
        f"{transcription}.delta": event(f"{transcription}.delta", told | {"delta": TEXT}),
        f"{transcription}.completed": event(f"{transcription}.completed", told | completed, "logprobs"),
    }
    update, append, *plain = EVENTS
    asked = record(["type", "audio", "include"], **_realtime_wishes())
    audio = TEXT | {"contentEncoding": "base64"}
    return Vocabulary(
        {"intent": {"const": "transcription"}},
        {
            update: _asked(update, ("event_id",), event_id=TEXT, session=asked),
            append: _asked(append, ("event_id",), event_id=TEXT, audio=audio),
            **{kind: _asked(kind, ("event_id",), event_id=TEXT) for kind in plain},
        },
        events,
    )


def _realtime_input() -> Schema:
    """What is set for the audio that comes in."""
    transcription = record(model=TEXT, language={"const": "en"}, prompt=TEXT, keywords=array(TEXT))
    return record(
        format=record(["rate"], type=one_of(FORMATS), rate=RATE),
        noise_reduction={"type": "null"},
        transcription=transcription,
        turn_detection=maybe(record(type={"const": "server_vad"}, silence_duration_ms=between(*PAUSE_MS))),
    )


def _realtime_wishes() -> dict[str, Schema]:
    """What may be set; null is as good as leaving out, but for turn_detection."""
    transcription = {
        "model": TEXT,
        "language": maybe(ENGLISH),
        "prompt": maybe(PROMPT),
        "keywords": maybe(HOTWORDS),
        "delay": maybe(one_of(DELAYS_MS)),
    }
    kinds = one_of(["server_vad", "semantic_vad"])
    pause = maybe(between(*PAUSE_MS))
    detection = open_record(["type", "silence_duration_ms"], type=kinds, silence_duration_ms=pause)
    wishes = {
        "format": maybe(_realtime_input()["properties"]["format"]),
        "noise_reduction": {},
        "transcription": maybe(record(transcription, **transcription)),
        "turn_detection": maybe(detection),
    }
    audio = open_record(["input"], input=maybe(record(wishes, **wishes)))
    include = maybe(array({"const": LOGPROBS}))
    return {"type": {"const": "transcription"}, "audio": maybe(audio), "include": include}


def _vosk() -> Vocabulary:
    word = record(word=TEXT, start=NUMBER, end=NUMBER, conf=SHARE)
    config = {"sample_rate": NUMBER | {"multipleOf": 1}, "words": {}, "phrase_list": array(TEXT)}
    return Vocabulary(
        {"token": TEXT | {"description": "the key"}},
        {
            "audio": BYTES,
            "config": open_record(config=open_record(config, **config)),
            "reset": open_record(reset={"const": 1}),
            "eof": open_record(eof={"const": 1}),
        },
        {
            "partial": record(partial=TEXT),
            "result": record(["result"], text=TEXT, result=array(word, minItems=1)),
        },
    )


VOCABULARIES = {
    "/v1/stream": _native(),
    "/v1/listen": _deepgram(),
    "/v1/realtime": _realtime(),
    "/vosk": _vosk(),
}
