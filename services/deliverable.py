"""What goes out of an event: the body that an endpoint is sent, the same bytes each time, and the message's id."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import catalogue, jobs, messages
from infra.eventstore.store import Store
from infra.vault import PREFIX

#: How the alias of what ends a sync names what ended: the source, and the key of its id.
_SOURCES = {"sessions": ("session", "sessionId"), "devices": ("device", "deviceId")}
#: Digests of credentials are nobody's business outside.
_HIDDEN = frozenset({"token_sha256", "before_sha256"})
#: What may refer to secrets.
_SEALING = frozenset({"config", "spec"})


def names_of(recorded: messages.Recorded) -> list[str]:
    """The public names under which an event goes out: none, one, or its own and an alias."""
    return list(catalogue.names_of(recorded.event))


def message_id(recorded: messages.Recorded, name: str, replay: str | None = None) -> str:
    """The `webhook-id`: of one event under one name the same for every endpoint and every attempt, of each replay
    another. It has no dots, which separate it from the rest of what is signed."""
    parts = [recorded.event_id.hex, name.replace(".", "-")]
    return "_".join(["msg", *parts] if replay is None else ["msg", *parts, replay])


def spelled(name: str) -> str | None:
    """What a field of an event is called in a body; None where it is left out."""
    return None if name in _HIDDEN else _camel(name)


async def body(store: Store, recorded: messages.Recorded, name: str, replay: str | None = None) -> bytes:
    """The JSON of an event under one of its names: a function of the log, so every attempt has the same bytes until a
    person in it is erased."""
    is_alias = name in ("sync.completed", "sync.failed")
    data = await _sync(store, recorded) if is_alias else _event(recorded)
    if replay is not None:
        data["replay"] = replay
    return msgspec.json.encode({"type": name, "timestamp": _seconds(recorded.recorded_at), "data": data})


def _event(recorded: messages.Recorded) -> dict[str, Any]:
    context = recorded.stream.partition("/")[0]
    fields = _shaped(recorded.event)
    return {"position": recorded.position, "context": context, "id": recorded.id, **fields}


async def _sync(store: Store, recorded: messages.Recorded) -> dict[str, Any]:
    match recorded.event:
        case jobs.Completed() | jobs.Failed() as event:
            return await _job(store, recorded, event)
        case event:
            context = recorded.stream.partition("/")[0]
            source, key = _SOURCES[context]
            return {"source": source, key: recorded.id, "position": recorded.position, "result": _shaped(event)}


async def _job(store: Store, recorded: messages.Recorded, event: jobs.Completed | jobs.Failed) -> dict[str, Any]:
    """`result` has the shape of family 3's answers to a sync."""
    stream = await store.stream(recorded.stream, until=recorded.position)
    data: dict[str, Any] = {"source": event.ticket.kind, "jobId": recorded.id}
    if stream and isinstance(stream[0].event, jobs.Queued) and stream[0].event.session is not None:
        data["sessionId"] = stream[0].event.session
    if isinstance(event, jobs.Completed):
        found = _decoded(event.result)
        said, took_ms = list(found.get("errors", ())), event.duration_ms
    else:
        found, said, took_ms = {}, [event.message], _duration_ms(stream)
        data["code"] = event.code
    counters = event.counters
    result = {
        "success": isinstance(event, jobs.Completed) and counters.errors == 0,
        "changesApplied": found.get("changes_applied", counters.created + counters.updated + counters.deleted),
        "conflictsEncountered": found.get("conflicts", 0),
        "errors": said,
        "syncedAt": _seconds(recorded.recorded_at),
        "executionTimeMs": took_ms,
    }
    return {**data, "position": recorded.position, "result": result}


def _decoded(raw: Raw) -> dict[str, Any]:
    found = msgspec.json.decode(raw)
    return found if isinstance(found, dict) else {}


def _duration_ms(stream: list[messages.Recorded]) -> int:
    """From the first start to the end."""
    started = next((one for one in stream if isinstance(one.event, jobs.Started)), None)
    return 0 if started is None else int((stream[-1].recorded_at - started.recorded_at).total_seconds() * 1000)


def _shaped(value: Any) -> Any:
    """Fields in camelCase, all the way down; what users named stays as it is. References to secrets are left out."""
    if isinstance(value, Struct):
        return {
            _camel(name): _without_secrets(getattr(value, name)) if name in _SEALING else _shaped(getattr(value, name))
            for name in value.__struct_fields__
            if name not in _HIDDEN
        }
    if isinstance(value, Raw):
        return msgspec.json.decode(value)
    if isinstance(value, dict):
        return {key: _shaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shaped(inner) for inner in value]
    return value


def _without_secrets(raw: Raw) -> dict[str, Any]:
    return {key: value for key, value in _decoded(raw).items() if not str(value).startswith(PREFIX)}


def _seconds(at: datetime) -> str:
    """As family 3 tells times: truncated to seconds."""
    return at.astimezone(UTC).isoformat(timespec="seconds")[:-6] + "Z"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
