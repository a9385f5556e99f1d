"""The AsyncAPI document: by its public schema, complete, and true of every event in both of its forms."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import catalogue, events, integrations, messages, policies
from infra.eventstore.store import Store
from services import deliverable
from services.gateway import asyncapi
from tests.domain.test_events import examples
from tests.projections.histories import World, fill, open_store

SCHEMA = Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json"
PARSER = Path(__file__).parents[1] / "doubles" / "asyncapi_parser.mjs"
PACKAGES = Path(os.environ.get("UNDRIFT_NODE_PACKAGES", str(Path(__file__).parents[2])))


@functools.cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asyncapi.encoded("1.2.3", "nats://somebody:secret@nats.example:4222,nats://b"))
    return found


@functools.cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    components = {"components": document()["components"]}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **components})


def payload(key: str) -> str:
    """The schema of what a channel carries."""
    reference: str = document()["components"]["messages"][key]["payload"]["$ref"]
    return reference.rpartition("/")[2]


def fits(value: Any, schema: str) -> None:
    """It is valid, and says nothing that the document does not name."""
    validator(schema).validate(value)
    assert value.keys() <= document()["components"]["schemas"][schema]["properties"].keys()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


def test_it_is_an_asyncapi_document() -> None:
    public = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text("utf-8")))
    assert [error.message for error in public.iter_errors(document())] == []
    broken = {**document(), "channels": {"x": {"address": 5}}}
    assert not public.is_valid(broken)


def test_its_public_parser_finds_nothing_wrong(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "@asyncapi" / "parser").is_dir():
        pytest.skip("not installed: npm install @asyncapi/parser, and UNDRIFT_NODE_PACKAGES names where")
    file = tmp_path / "asyncapi.json"
    file.write_text(json.dumps(document()))
    command: list[str | Path] = [node, PARSER, PACKAGES, file]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(references, value))
        if not isinstance(value, dict):
            return set()
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))

    for reference in references(document()):
        place: Any = document()
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


def test_every_event_and_every_public_name_has_a_channel() -> None:
    expected = {f"nats.{topic}" for topic in events.REGISTRY} | {f"webhook.{name}" for name in catalogue.SENT}
    assert set(document()["channels"]) == expected
    assert document()["channels"]["nats.jobs.completed"]["address"] == "evt.{tenant}.{owner}.jobs.completed"


def test_schemas_are_schemas_and_name_every_field() -> None:
    for name, schema in document()["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name.replace(".", "").replace("_", "").isalnum()
    for topic, kind in events.REGISTRY.items():
        assert set(document()["components"]["schemas"][topic]["properties"]) == {
            "event",
            *kind.__struct_encode_fields__,
        }


def test_no_password_is_in_it() -> None:
    assert document()["servers"]["nats"]["host"] == "nats.example:4222"
    assert "secret@" not in json.dumps(document())


def lawful(event: messages.Event) -> messages.Event:
    """Strategies from types know no limits of numbers."""
    if isinstance(event, integrations.Created | integrations.Changed):
        return replace(event, policy=policies.Policy(attempts=3, timeout=0), schedule=None)
    return event


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_every_event_is_valid_as_nats_carries_it(data: st.DataObject) -> None:
    topic, kind = data.draw(st.sampled_from(list(events.REGISTRY.items())))
    fits(json.loads(msgspec.json.encode(lawful(data.draw(examples(kind))))), payload(f"nats.{topic}"))


@pytest.mark.parametrize("kind", events.REGISTRY.values(), ids=messages.topic)
def test_what_is_no_such_event_is_not_valid(kind: type[messages.Event]) -> None:
    schema = validator(messages.topic(kind))
    assert not schema.is_valid({"event": "nobody.said"})
    assert not schema.is_valid([])


async def test_every_public_event_of_a_history_is_valid_as_a_webhook(store: Store) -> None:
    head = await fill(store.database, World(12).history(600))
    seen = set()
    for recorded in await store.read(0, head):
        for name in deliverable.names_of(recorded):
            body = json.loads(await deliverable.body(store, recorded, name, "rp-1"))
            fits(body, payload(f"webhook.{name}"))
            kind = "Sync" if name in ("sync.completed", "sync.failed") else f"{recorded.topic}.data"
            fits(body["data"], f"Webhook.{kind}")
            seen.add(name)
    assert len(seen) > 20
