"""The document of the sockets, against the code and against what the code really says."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
import pytest
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient

from asr.checkpoint import Whisper
from server.app import DIALECTS
from server.dialects import CLOSE_CODES
from server.dialects.deepgram import Deepgram
from server.dialects.native import FLAGS, NUMBERS, STARTS, TEXTS
from server.dialects.realtime import EVENTS
from server.dialects.realtime_session import LOGPROBS
from server.spec.schema import BYTES
from tests.server.dialects.wire import TERMS
from tests.server.recorder import AUDIO, Frame, appended, blocks, converse, nonsense, said

LOUD, QUIET = blocks(AUDIO[: 2 * 16_000 * 2]), blocks(AUDIO)
# The long talks end by idleness, so that nothing is left unsaid because the end came at once.
TALKS: dict[str, list[tuple[str, list[Frame]]]] = {
    "/v1/stream": [
        (
            "?words=true&progress=true&sample_rate=16000&beam=2",
            [
                said("start", beam=1, prompt="Ada", hotwords=["Bob"], hotword_boost=1.5),
                said("resume", audio_ms=5000),
                *QUIET,
                said("keepalive"),
                said("finalize"),
            ],
        ),
        ("", [said("close")]),
        ("", [*LOUD, said("sing")]),
    ],
    "/v1/listen": [
        (
            "?encoding=linear16&sample_rate=16000&interim_results=true&smart_format=true&vad_events=true"
            "&utterance_end_ms=1000&keyterm=Bob",
            [
                said("Configure", keyterms=["Ada"]),
                "oops",
                *QUIET,
                said("KeepAlive"),
                said("Configure", keyterms=["Bob"]),
                said("Finalize"),
            ],
        ),
        ("?encoding=mulaw", [said("CloseStream")]),
    ],
    "/v1/realtime": [
        (
            "?intent=transcription",
            [
                said(
                    "session.update",
                    session={
                        "include": [LOGPROBS],
                        "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}},
                    },
                ),
                *map(appended, QUIET),
            ],
        ),
        (
            "",
            [
                said("session.update", event_id="e1", session={"audio": {"input": {"turn_detection": None}}}),
                *map(appended, LOUD),
                said("input_audio_buffer.commit"),
                *map(appended, LOUD),
                said("input_audio_buffer.clear"),
                said("input_audio_buffer.commit"),
            ],
        ),
    ],
    "/vosk": [
        (
            "",
            [
                '{"config":{"sample_rate":16000,"words":1,"phrase_list":["ada"]}}',
                *LOUD,
                '{"reset":1}',
                *QUIET,
                '{"eof":1}',
            ],
        ),
    ],
}


@pytest.fixture(scope="module")
def client(tiny: Whisper) -> Iterator[TestClient]:
    with (
        pytest.MonkeyPatch.context() as patch,
        nonsense(tiny, patch, final_pass="none", idle_timeout_s=1) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/asyncapi.json").json()


@pytest.fixture(scope="module")
def vocabularies(document: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Schemas of messages, by address, by `receive` or `send`, by name: as a reader finds them."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for operation in document["operations"].values():
        channel = resolve(document, operation["channel"])
        messages = [resolve(document, resolve(document, each)) for each in operation["messages"]]
        found[channel["address"]][operation["action"]] = {
            message["name"]: message["payload"] for message in messages
        }
    return found


def resolve(document: Any, reference: Mapping[str, str]) -> Any:
    for part in reference["$ref"].removeprefix("#/").split("/"):
        document = document[part]
    return document


def kind_of(frame: Frame, schemas: dict[str, Any]) -> str:
    """The one message that the frame is."""
    if isinstance(frame, bytes):
        (kind,) = (kind for kind, schema in schemas.items() if schema == BYTES)
        return kind
    value = json.loads(frame)
    fitting = [kind for kind, schema in schemas.items() if jsonschema_rs.is_valid(schema, value)]
    assert len(fitting) == 1, frame
    return fitting[0]


def test_every_socket_of_the_app_is_a_channel(client, document):
    sockets = {route.path for route in client.app.routes if isinstance(route, WebSocketRoute)}
    assert sockets == {channel["address"] for channel in document["channels"].values()} == set(DIALECTS)


def test_the_document_is_well_formed(document):
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    assert document["servers"]["this"] == {"host": "testserver", "protocol": "ws"}
    told = {ref["$ref"] for operation in document["operations"].values() for ref in operation["messages"]}
    for name, channel in document["channels"].items():
        assert channel["description"]
        actions = {
            each["action"] for each in document["operations"].values() if name in each["channel"]["$ref"]
        }
        assert actions == {"send", "receive"}
        assert {f"#/channels/{name}/messages/{kind}" for kind in channel["messages"]} <= told
    for message in document["components"]["messages"].values():
        assert message["payload"] == BYTES or "properties" in message["payload"]
        jsonschema_rs.meta.validate(
            {"$schema": "http://json-schema.org/draft-07/schema#"} | message["payload"]
        )


@pytest.mark.parametrize("path", TALKS)
def test_what_is_said_is_what_is_described(client, vocabularies, path):
    schemas = vocabularies[path]
    asked: set[str] = set()
    told: set[str] = set()
    for query, frames in TALKS[path]:
        asked |= {
            kind_of(frame, schemas["receive"]) for frame in frames if frame not in ("oops", said("sing"))
        }
        heard, _ = converse(client, path + query, *frames)
        told |= {kind_of(frame, schemas["send"]) for frame in heard}
    assert asked == set(schemas["receive"])
    assert told == set(schemas["send"])


def test_the_closes_of_all_faults_are_told(document):
    for channel in document["channels"].values():
        closes = channel["x-close-codes"]
        assert all(fault in closes[str(code)] for fault, code in CLOSE_CODES.items())
        assert set(channel["x-refusals"]) == {"400", "401", "403", "503"}


def query_of(document: dict[str, Any], name: str) -> set[str]:
    return set(document["channels"][name]["bindings"]["ws"]["query"]["properties"])


def test_parameters_are_those_that_are_read(document):
    class Noting(dict[str, str]):
        """Knows what it was asked for."""

        def __init__(self, **query: str) -> None:
            super().__init__(query)
            self.asked: set[str] = set()

        def get(self, key: str, default: str | None = None) -> Any:
            self.asked.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            self.asked.add(str(key))
            return super().__contains__(key)

    assert query_of(document, "native") == {*NUMBERS, *FLAGS, *TEXTS}
    noting = Noting(encoding="linear16", sample_rate="8000")
    Deepgram.parse(noting, TERMS)
    assert query_of(document, "deepgram") == noting.asked


def test_what_clients_may_say_is_what_the_code_takes(vocabularies):
    assert set(vocabularies["/v1/realtime"]["receive"]) == set(EVENTS)
    assert set(vocabularies["/v1/stream"]["receive"]["start"]["properties"]) == {"type", *STARTS}
