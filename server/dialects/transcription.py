"""OpenAI's transcription of a file, `POST /v1/audio/transcriptions`: fields of a form in, bodies of answers out.

https://platform.openai.com/docs/api-reference/audio/createTranscription. Of the fields, `response_format`, `stream`,
`language` (en), `prompt`, `keywords`, `include` and `timestamp_granularities` are heeded; `model` may be any name,
the server has one; others are ignored. Words carry a `confidence`, an extension.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.dialects import Terms
from server.dialects.openai import error_body, logprob, word_logprobs
from streaming.events import Fault, Final, Word
from streaming.session import CHUNK_MS, SessionOptions
from streaming.transcript import as_srt, as_vtt

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("segment", "word")
MEL_FRAMES_PER_SECOND = 100  # in which Whisper's `seek` counts


@dataclass(frozen=True)
class Wish:
    """What a client wants of its file."""

    options: SessionOptions
    form: str = "json"
    stream: bool = False
    logprobs: bool = False
    granularities: tuple[str, ...] = GRANULARITIES

    @classmethod
    def parse(cls, fields: Mapping[str, Sequence[str]], terms: Terms) -> "Wish":
        """Reads a form's texts, each by its name; raises ValueError with one line for the client."""

        def several(name: str) -> tuple[str, ...]:
            return (*fields.get(name, ()), *fields.get(f"{name}[]", ()))

        def one(name: str, default: str) -> str:
            return next(iter(fields.get(name, ())), default)

        form = one("response_format", "json")
        if form not in FORMATS:
            raise ValueError(f"response_format must be one of {', '.join(FORMATS)}, not {form[:40]!r}")
        for language in (one("language", "en") or "en", *several("languages")):
            if language.split("-")[0].lower() not in ("en", "english"):
                raise ValueError(f"language {language[:40]!r} is not supported: use en")
        granularities = several("timestamp_granularities") or GRANULARITIES
        if unknown := set(granularities) - set(GRANULARITIES):
            raise ValueError(f"timestamp_granularities are segment and word, not {min(unknown)[:40]!r}")
        stream = one("stream", "false").lower()
        if stream not in ("true", "false", "1", "0"):
            raise ValueError(f"stream must be true or false, not {stream[:40]!r}")
        # nobody waits for a chunk of a file: the longest costs least
        options = terms.options() | {"chunk_ms": CHUNK_MS[1], "prompt": one("prompt", terms.prompt)}
        options["hotwords"] = several("keywords") or terms.hotwords
        return cls(
            SessionOptions(**options),
            form,
            stream in ("true", "1"),
            "logprobs" in several("include"),
            granularities,
        )


def body(wish: Wish, finals: Sequence[Final], seconds: float) -> tuple[str, str]:
    """The answer and its media type.

    Args:
        seconds: of audio in the file.
    """
    text = _text(finals)
    match wish.form:
        case "text":
            return f"{text}\n", "text/plain"
        case "srt":
            return as_srt(finals), "application/x-subrip"
        case "vtt":
            return as_vtt(finals), "text/vtt"
    answer: dict[str, object] = {"text": text}
    if wish.form == "verbose_json":
        answer |= {"task": "transcribe", "language": "english", "duration": seconds}
        if "segment" in wish.granularities:
            answer["segments"] = [_segment(number, final) for number, final in enumerate(finals)]
        if "word" in wish.granularities:
            answer["words"] = [_word(word) for word in _words(finals)]
    elif wish.logprobs:
        answer["logprobs"] = word_logprobs(_words(finals))
    answer["usage"] = {"type": "duration", "seconds": seconds}
    return json.dumps(answer), "application/json"


def delta(wish: Wish, final: Final, first: bool) -> str:
    """The event that tells of an utterance, in an answer that is streamed."""
    more: dict[str, object] = {"logprobs": word_logprobs(final.words)} if wish.logprobs else {}
    said = final.text if first else f" {final.text}"
    return _event(type="transcript.text.delta", delta=said, words=[_word(w) for w in final.words], **more)


def done(wish: Wish, finals: Sequence[Final]) -> str:
    """The event that ends an answer that is streamed."""
    more: dict[str, object] = {"logprobs": word_logprobs(_words(finals))} if wish.logprobs else {}
    return _event(type="transcript.text.done", text=_text(finals), **more)


def failed(fault: Fault) -> str:
    """The event that ends an answer that is streamed, where it cannot be completed."""
    return _event(error=error_body(fault.code, fault.message))


def _event(**fields: Any) -> str:
    """A server-sent event; https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def _text(finals: Sequence[Final]) -> str:
    return " ".join(final.text for final in finals)


def _words(finals: Sequence[Final]) -> list[Word]:
    return [word for final in finals for word in final.words]


def _word(word: Word) -> dict[str, object]:
    return {
        "word": word.text,
        "start": word.start_ms / 1000,
        "end": word.end_ms / 1000,
        "confidence": word.confidence,
    }


def _segment(number: int, final: Final) -> dict[str, object]:
    """An utterance, as Whisper describes its segments; of tokens nothing is left."""
    logprobs = list(map(logprob, final.words))
    text = final.text.encode()
    return {
        "id": number,
        "seek": final.start_ms * MEL_FRAMES_PER_SECOND // 1000,
        "start": final.start_ms / 1000,
        "end": final.end_ms / 1000,
        "text": f" {final.text}",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(logprobs) / len(logprobs), 4) if logprobs else 0.0,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }
