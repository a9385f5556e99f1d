"""The AsyncAPI 3 document: every event as NATS carries it, and every public one as webhooks do, from the classes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from domain import catalogue, events, messages
from services import deliverable

_REFERENCE = "#/components/schemas/"
_WEBHOOK = "Webhook"
_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_POSITION = {"type": "integer", "minimum": 1, "description": "Where in the log it stands; the stream's sequence."}
_NUMBER_IN_TEXT = {"type": "string", "pattern": "^[0-9]+$"}
_TAG = "event"
#: The structs below that only webhooks have.
_SYNC = ("Sync", "Result")
#: The names under which a finished sync goes out, whatever was synced.
_SYNCS = ("sync.completed", "sync.failed")

_CLOUD_EVENT: Mapping[str, Any] = {
    "type": "object",
    "description": "CloudEvents 1.0 in binary mode, and where the event stands in the log.",
    "properties": {
        "ce-specversion": {"type": "string", "enum": ["1.0"]},
        "ce-id": {**_TEXT, "description": "The event's id, the same for ever."},
        "ce-type": {**_TEXT, "description": "Its topic, such as jobs.completed."},
        "ce-source": {"type": "string", "pattern": "^urn:undrift:", "description": "urn:undrift:<tenant>"},
        "ce-time": _TIME,
        "ce-subject": {**_TEXT, "description": "Its stream, <context>/<tenant>/<id>."},
        "Undrift-Position": _NUMBER_IN_TEXT,
        "Undrift-Epoch": _NUMBER_IN_TEXT,
        "Undrift-Mac": {**_TEXT, "description": "For the installation's own processes."},
        "Undrift-Version": {**_NUMBER_IN_TEXT, "description": "In its stream, from 1 on."},
        "Undrift-Schema": {**_NUMBER_IN_TEXT, "description": "The version of the event's fields."},
        "Undrift-Metadata": {**_TEXT, "description": "JSON: who, why and in which chain."},
        "Undrift-Hash": {**_TEXT, "description": "Only where the event is too large: read it from the HTTP feed."},
        "Undrift-Clear": {**_TEXT, "description": "Where personal fields are in clear: the hash of what is stored."},
    },
    "required": ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-subject", "Undrift-Position"],
}
_SIGNED: Mapping[str, Any] = {
    "type": "object",
    "description": "As the Standard Webhooks specification says.",
    "properties": {
        "webhook-id": {**_TEXT, "description": "The same over all attempts."},
        "webhook-timestamp": _NUMBER_IN_TEXT,
        "webhook-signature": {**_TEXT, "description": "v1,<base64>, two of them while a secret is rotated."},
    },
    "required": ["webhook-id", "webhook-timestamp", "webhook-signature"],
}


class Result(Struct, rename="camel"):
    """What came of a sync, as family 3 answers it."""

    success: bool
    changes_applied: int
    conflicts_encountered: int
    errors: list[Any]
    synced_at: str
    execution_time_ms: int


class Sync(Struct, rename="camel"):
    """A sync that has ended."""

    source: Literal["files", "databases", "plane", "network", "servers", "session", "device"]
    position: int
    result: Result
    job_id: str | None = None
    session_id: str | None = None
    device_id: str | None = None
    code: str | None = None
    replay: str | None = None


def webhook_schema_of(name: str) -> str:
    """The same of the body that a webhook is sent under a public name."""
    return f"{_WEBHOOK}.{name}"


@functools.lru_cache(maxsize=1)
def encoded(version: str, nats_url: str) -> bytes:
    """The same as JSON."""
    return msgspec.json.encode(document(version, nats_url))


def document(version: str, nats_url: str = "") -> Mapping[str, Any]:
    """The document; `nats_url` is where consumers are told to connect."""
    kinds = list(events.REGISTRY.values())
    schemas = _schemas(kinds)
    channels, operations, described = _nats(kinds)
    for ours, theirs in zip((channels, operations, described), _webhooks(schemas), strict=True):
        ours |= theirs
    address = urlsplit(nats_url.partition(",")[0]).netloc.rpartition("@")[2]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Undrift",
            "version": version,
            "description": "Everything that happens, in order: over NATS JetStream, and by webhooks.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(address or "localhost:4222"),
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": {**schemas, "CloudEvent": _CLOUD_EVENT, "SignedHeaders": _SIGNED},
            "messages": described,
            "securitySchemes": {
                "consumer": {
                    "type": "userPassword",
                    "description": "The user and password that POST /api/v1/feeds/credentials answers.",
                },
                "signature": {
                    "type": "httpApiKey",
                    "in": "header",
                    "name": "webhook-signature",
                    "description": "HMAC-SHA256 by the subscription's secret (Standard Webhooks).",
                },
            },
        },
    }


def _servers(address: str) -> dict[str, Any]:
    return {
        "nats": {
            "host": address,
            "protocol": "nats",
            "description": "Stream EVENTS; its sequence is the position in the log.",
            "security": [{"$ref": "#/components/securitySchemes/consumer"}],
        },
        "subscriber": {
            "host": "{host}",
            "protocol": "https",
            "description": "Whoever subscribed with POST /api/v1/webhooks/subscribe.",
            "variables": {"host": {"default": "example.com", "description": "of the subscription's url"}},
        },
    }


Parts = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _nats(kinds: Iterable[type[messages.Event]]) -> Parts:
    """A channel for each event: its subjects differ in tenant and owner alone."""
    channels, operations, described = {}, {}, {}
    for kind in kinds:
        topic = messages.topic(kind)
        key = f"nats.{topic}"
        described[key] = _message(topic, kind, topic, "CloudEvent")
        channels[key] = {
            "address": f"evt.{{tenant}}.{{owner}}.{topic}",
            "messages": {topic: {"$ref": f"#/components/messages/{key}"}},
            "servers": [{"$ref": "#/servers/nats"}],
            "parameters": {
                "tenant": {"description": "The tenant of the credential."},
                "owner": {"description": "The user whose it is, _ where it is nobody's.", "default": "_"},
            },
        }
        operations[f"{key}.send"] = _operation(key, topic)
    return channels, operations, described


def _webhooks(schemas: dict[str, Any]) -> Parts:
    """A channel for each name that is sent; adds the schemas of their bodies."""
    channels, operations, described = {}, {}, {}
    for name, kinds in catalogue.SENT.items():
        key = f"webhook.{name}"
        schemas[webhook_schema_of(name)] = _body(name, kinds)
        described[key] = _message(name, kinds[0], webhook_schema_of(name), "SignedHeaders")
        channels[key] = {
            "address": None,
            "messages": {name: {"$ref": f"#/components/messages/{key}"}},
            "servers": [{"$ref": "#/servers/subscriber"}],
        }
        operations[f"{key}.send"] = {
            **_operation(key, name),
            "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            "security": [{"$ref": "#/components/securitySchemes/signature"}],
        }
    return channels, operations, described


def _operation(key: str, name: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{key}"},
        "messages": [{"$ref": f"#/channels/{key}/messages/{name}"}],
    }


def _message(name: str, kind: type[messages.Event], schema: str, headers: str) -> dict[str, Any]:
    said = " ".join((inspect.getdoc(kind) or "").split()) if kind.__doc__ else ""
    return {
        "name": name,
        "title": name,
        **({"summary": said} if said else {}),
        "contentType": "application/json",
        "headers": {"$ref": _REFERENCE + headers},
        "payload": {"$ref": _REFERENCE + schema},
    }


def _body(name: str, kinds: Sequence[type[messages.Event]]) -> dict[str, Any]:
    data = [_REFERENCE + f"{_WEBHOOK}.Sync"] if name in _SYNCS else [_data_reference(kind) for kind in kinds]
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": [name]},
            "timestamp": _TIME,
            "data": {"$ref": data[0]} if len(data) == 1 else {"anyOf": [{"$ref": one} for one in data]},
        },
        "required": ["type", "timestamp", "data"],
    }


def _data_reference(kind: type[messages.Event]) -> str:
    return _REFERENCE + _in_webhook(messages.topic(kind))


# Schemas out of classes.


def _schemas(kinds: Sequence[type[messages.Event]]) -> dict[str, Any]:
    """Those of the events under their topics, in both spellings, and of what is in them."""
    types: list[Any] = [*kinds, Sync]
    references, components = msgspec.json.schema_components(types, ref_template=_REFERENCE + "{name}")
    own = {
        reference["$ref"].removeprefix(_REFERENCE): messages.topic(kind)
        for reference, kind in zip(references, kinds, strict=False)
    }
    called = {name: own.get(name, _short(name)) for name in components}
    assert len(set(called.values())) == len(called), "two structs of one name in modules of one name"
    found = {called[name]: _renamed(schema, called) for name, schema in components.items()}
    for name, schema in components.items():
        made = schema if name in _SYNC else _camel(schema)
        if called[name] in events.REGISTRY:
            made = _with_place(made)
        found[_in_webhook(called[name])] = _renamed(made, {one: _in_webhook(called[one]) for one in called})
    for name in _SYNC:
        del found[called[name]]
    return found


def _in_webhook(name: str) -> str:
    """What the schema of the same is called as webhooks have it."""
    return f"{_WEBHOOK}.{name}.data" if name in events.REGISTRY else f"{_WEBHOOK}.{name}"


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _renamed(value: Any, called: Mapping[str, str]) -> Any:
    """The same with references by the names that schemas have here."""
    if isinstance(value, list):
        return [_renamed(inner, called) for inner in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(inner, called) for key, inner in value.items()}
    if isinstance(reference := value.get("$ref"), str):
        found["$ref"] = _REFERENCE + called[reference.removeprefix(_REFERENCE)]
    return found


def _camel(schema: dict[str, Any]) -> dict[str, Any]:
    """As services/deliverable.py spells what is in a struct; the name of an event stands above its fields there."""
    if "properties" not in schema:
        return schema
    spelled = {name: deliverable.spelled(name) for name in schema["properties"] if name != _TAG}
    properties = {ours: schema["properties"][name] for name, ours in spelled.items() if ours is not None}
    required = [ours for name in schema.get("required", ()) if (ours := spelled.get(name)) is not None]
    return {**schema, "properties": properties, "required": required}


def _with_place(schema: dict[str, Any]) -> dict[str, Any]:
    """What a body says of every event beside its own fields."""
    place = {"position": _POSITION, "context": _TEXT, "id": _TEXT, "actor": _TEXT, "owner": _TEXT, "replay": _TEXT}
    return {
        **schema,
        "properties": {**place, **schema["properties"]},
        "required": ["position", "context", "id", "actor", *schema["required"]],
    }
