"""The `session` of OpenAI's Realtime protocol: what a client may set, and what it is told of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from server.dialects import is_text
from streaming.session import SessionOptions

FORMATS = {"audio/pcm": ("s16le", 24_000), "audio/pcmu": ("mulaw", 8_000), "audio/pcma": ("s16le", 8_000)}
DELAYS_MS = {"minimal": 0, "low": 160, "medium": 320, "high": 480, "xhigh": 600}
LOGPROBS = "item.input_audio_transcription.logprobs"
INPUT = ("format", "noise_reduction", "transcription", "turn_detection")
TRANSCRIPTION = "session.audio.input.transcription"


class Invalid(ValueError):
    """A client's mistake, and the parameter that it is in."""

    def __init__(self, param: str | None, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class RealtimeSession:
    """What is set."""

    options: SessionOptions
    form: dict[str, Any] = field(default_factory=lambda: {"type": "audio/pcm", "rate": 24_000})
    detects: bool = True  # turns; else the client commits
    include: tuple[str, ...] = ()
    delays: bool = True  # can be asked for: some models have learnt when to wait

    @property
    def logprobs(self) -> bool:
        """Whether completed items have probabilities."""
        return LOGPROBS in self.include

    def updated(self, session: object) -> "RealtimeSession":
        """With what a client wants otherwise. Raises Invalid."""
        given = _object("session", session, ("type", "audio", "include"))
        if given.get("type", "transcription") != "transcription":
            raise Invalid("session.type", "this server only transcribes: use type transcription")
        include = given.get("include", self.include) or ()
        if not isinstance(include, list | tuple) or any(each != LOGPROBS for each in include):
            raise Invalid("session.include", f"include knows {LOGPROBS}")
        audio = _object("session.audio", given.get("audio") or {}, ("input", "output"))
        wishes = _object("session.audio.input", audio.get("input") or {}, INPUT)
        form = _form(wishes["format"]) if wishes.get("format") else self.form
        changes = _transcription(wishes["transcription"]) if wishes.get("transcription") else {}
        if "delay_ms" in changes and not self.delays:
            raise Invalid(f"{TRANSCRIPTION}.delay", "this model has learnt when to wait: leave the delay out")
        detects = self.detects
        if "turn_detection" in wishes:
            detects, pause = _turns(wishes["turn_detection"])
            changes |= pause
        encoding, rate = FORMATS[form["type"]]
        changes |= {"encoding": encoding, "sample_rate": form.get("rate", rate)}
        try:
            options = replace(self.options, **changes)
        except ValueError as error:
            raise Invalid("session.audio.input", str(error)) from None
        return replace(self, options=options, form=form, detects=detects, include=tuple(include))

    def told(self, session_id: str, model: str) -> dict[str, object]:
        """As it is in effect."""
        transcription = {
            "model": model,
            "language": "en",
            "prompt": self.options.prompt,
            "keywords": list(self.options.hotwords),
        }
        turns = {"type": "server_vad", "silence_duration_ms": self.options.pause_ms}
        heard = {
            "format": self.form,
            "noise_reduction": None,
            "transcription": transcription,
            "turn_detection": turns if self.detects else None,
        }
        return {
            "id": f"sess_{session_id}",
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": heard},
            "include": list(self.include),
        }


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
    path = TRANSCRIPTION
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


def _turns(value: object) -> tuple[bool, dict[str, int]]:
    """Whether turns are detected, and the part of SessionOptions that says how; the rest is the server's own.

    Raises Invalid.
    """
    path = "session.audio.input.turn_detection"
    if value is None:
        return False, {}
    if not isinstance(value, dict) or value.get("type", "server_vad") not in ("server_vad", "semantic_vad"):
        raise Invalid(path, "use the type server_vad, or null for commits")
    pause = value.get("silence_duration_ms")
    if pause is None:
        return True, {}
    if not isinstance(pause, int) or isinstance(pause, bool):
        raise Invalid(f"{path}.silence_duration_ms", "it must be an integer, in ms", "invalid_type")
    return True, {"pause_ms": pause}
