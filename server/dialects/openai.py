"""What OpenAI's protocols share, over sockets and over HTTP: where the key is, how errors look."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from server.dialects import authorization
from streaming.events import Word

LOWEST_CONFIDENCE = 1e-9  # for logarithms
OWN_FAULTS = ("internal", "full", "draining")  # the server's


class OpenAi:
    """How OpenAI's clients show their key, and how they are refused."""

    key_place: ClassVar[str] = "header Authorization: Bearer KEY"

    @staticmethod
    def key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        return authorization(headers, "bearer")

    @staticmethod
    def refusal(code: str, message: str) -> dict[str, object]:
        return {"error": error_body(code, message)}


def error_body(
    code: str, message: str, param: str | None = None, event_id: str | None = None
) -> dict[str, object]:
    """OpenAI's description of an error."""
    kind = "server_error" if code in OWN_FAULTS else "invalid_request_error"
    code = "invalid_api_key" if code == "bad_key" else code
    body: dict[str, object] = {"message": message, "type": kind, "code": code, "param": param}
    return body if event_id is None else body | {"event_id": event_id}


def word_logprobs(words: Sequence[Word]) -> list[dict[str, object]]:
    """OpenAI has logarithms of tokens' probabilities; ours are words'."""
    return [
        {
            "token": word.text,
            "bytes": list(word.text.encode()),
            "logprob": logprob(word),
        }
        for word in words
    ]


def logprob(word: Word) -> float:
    """The logarithm of a word's probability."""
    return round(math.log(max(word.confidence, LOWEST_CONFIDENCE)), 4)
