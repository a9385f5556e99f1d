"""The OpenAPI document of the gateway's own routes keeps to the standard's own schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from services.gateway import app, health, openapi


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(openapi.schema(openapi.document(app.routes(health.Metrics()), "1.2.3")).body)
    return found


def test_it_is_a_document_of_openapi_3_1(made: dict[str, Any]) -> None:
    public = jsonschema.Draft202012Validator(OPENAPI_31)
    assert [f"{error.json_path}: {error.message}" for error in public.iter_errors(made)] == []
    assert not public.is_valid({**made, "paths": {"/x": {"get": {"parameters": 5}}}})


def test_all_schemas_in_it_are_schemas(made: dict[str, Any]) -> None:
    for schema in made["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
