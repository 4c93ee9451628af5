"""/openapi.json against the service: whatever fits it is answered as it says, whatever does not is refused, nothing is a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.openapi import from_asgi
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from starlette.types import Receive, Scope, Send

from tests.api_server import KEY, ApiServer

_EXAMPLES = 60  # of each operation, valid and invalid: some ten seconds together
OPERATIONS = {
    "/v1/search": {"get"},
    "/v1/articles/{article_id}": {"get", "put", "delete"},
    "/v1/articles:bulk": {"post"},
    "/v1/embeddings": {"post"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/v1/admin/jobs": {"get"},
    "/v1/admin/jobs/{name}/run": {"post"},
    "/v1/admin/jobs/{name}/pause": {"post"},
    "/v1/admin/jobs/{name}/resume": {"post"},
    "/v1/admin/failed": {"get"},
    "/v1/admin/failed/retry": {"post"},
    "/v1/admin/state": {"get"},
}


@schemathesis.serializer("application/x-ndjson")
def as_it_is(_context: object, value: object) -> bytes:
    """NDJSON is described as text: it is sent as that text."""
    return str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def api_schema(api_server: ApiServer) -> BaseSchema:
    async def running(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # it runs already
        await api_server.app(scope, receive, send)

    return from_asgi("/openapi.json", running)


# What a schema cannot say: an id in the body is that of the address, title and body are not both blank, a time or a cursor
# has to make sense. So what fits the schema may still be refused.
EXCLUDED: list[Any] = [positive_data_acceptance]
TEXT_LINES = "/v1/articles:bulk"  # whatever is sent there is lines, and a bad line fails alone: no body is refused


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", OPERATIONS)
def test_the_service_keeps_to_its_schema(api_schema: BaseSchema, path: str, mode: GenerationMode) -> None:
    excluded = [*EXCLUDED, negative_data_rejection] if path == TEXT_LINES else EXCLUDED
    for method in OPERATIONS[path]:
        operation = api_schema[path][method.upper()]
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
            continue

        @given(case=operation.as_strategy(generation_mode=mode, headers={"Authorization": f"Bearer {KEY}"}))
        @settings(max_examples=_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def keeps(case: Case[Any]) -> None:
            case.call_and_validate(excluded_checks=excluded)

        keeps()


def test_every_call_of_the_contract_is_in_the_schema(api_server: ApiServer) -> None:
    with api_server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {path: set(methods) for path, methods in paths.items()} == OPERATIONS


def test_every_error_answer_has_the_one_shape_in_the_schema(api_server: ApiServer) -> None:
    with api_server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    shapes = {
        str(answer["content"])
        for methods in paths.values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
    }
    assert shapes == {"{'application/json': {'schema': {'$ref': '#/components/schemas/ErrorAnswer'}}}"}
