"""The document of HTTP against the routes, and schemathesis at every operation of it."""

import json
from collections.abc import Iterator

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi import checks
from starlette.routing import Route
from starlette.testclient import TestClient

from server.app import House, create_app
from server.config import Settings
from tests.server.fakes import FakeEngine
from tests.server.test_transcriptions import Engine, recording

KEY = "a-key"
CHECKS = [
    not_a_server_error,
    checks.content_type_conformance,
    checks.ignored_auth,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.unsupported_method,
]


def test_every_route_over_http_is_described():
    for setting in ({}, {"api_key": KEY}):
        app = create_app(FakeEngine(), Settings(**setting))
        document = TestClient(app).get("/openapi.json").json()
        validate(document)
        routes = {
            route.path_format: {*route.methods} - {"HEAD"} for route in app.routes if isinstance(route, Route)
        }
        described = {path: {*map(str.upper, operations)} for path, operations in document["paths"].items()}
        assert described == routes
        text = str(document)
        assert ("'401'" in text, "'security'" in text) == (bool(setting), bool(setting))


@pytest.fixture(scope="module")
def schema() -> Iterator[BaseSchema]:
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(Engine(), Settings(api_key=KEY)))
    asgi.shutdown_lifespans()


def test_requests_within_and_beyond_the_document_are_answered_as_it_says(schema):
    house: House = schema.app.state.house
    operations = [each.ok() for each in schema.get_all_operations()]
    seen: set[tuple[str, int]] = set()
    streamed: list[str] = []

    def attack(operation: APIOperation, data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(schemathesis.GenerationMode))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if isinstance(case.body, dict) and data.draw(st.booleans()):
            case.body |= {"file": recording(1, 0, 2), "stream": data.draw(st.sampled_from(["true", "0"]))}
        if operation.path == "/v1/models/{id}" and data.draw(st.booleans()):
            case.path_parameters["id"] = "fake.en"
        key = data.draw(st.sampled_from([KEY, KEY, "wrong"]))
        response = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {key}"})
        seen.add((operation.path, response.status_code))
        media = response.headers.get("content-type", [""])[0]
        streamed.extend(response.text.split("\n\n")[:-1] if media.startswith("text/event-stream") else [])

    for operation in operations:
        patient = settings(
            max_examples=60 if operation.method == "post" else 8,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        patient(given(st.just(operation), st.data())(attack))()
    assert {path for path, status in seen if status == 200} == {operation.path for operation in operations}
    assert {("/v1/audio/transcriptions", status) for status in (200, 400, 401)} <= seen
    answers = schema.raw_schema["paths"]["/v1/audio/transcriptions"]["post"]["responses"]["200"]["content"]
    told = answers["text/event-stream"]["schema"]["properties"]["data"]["contentSchema"]
    assert streamed
    for event in streamed:
        jsonschema_rs.validate(told, json.loads(event.removeprefix("data: ")))
    assert house.free_slots == house.worker.engine.slots
    assert not house.connections
