"""What goes out of an event: the body that an endpoint is sent, the same bytes each time, and the message's id."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import catalogue, devices, jobs, messages, sessions
from infra.eventstore.store import Store
from infra.vault import PREFIX

#: Digests of credentials, and of paths, are nobody's business outside.
_HIDDEN = frozenset({"token_sha256", "before_sha256", "place", "old_place", "name_key"})
_NOBODY = messages.Metadata().owner
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
    """Where it is in the log, what it is about, who did it and, of somebody's own things, whose they are; and all that
    the event says."""
    context, metadata = recorded.stream.partition("/")[0], recorded.metadata
    whose = {} if metadata.owner == _NOBODY else {"owner": metadata.owner}
    about = {"position": recorded.position, "context": context, "id": recorded.id, "actor": metadata.actor}
    return {**about, **whose, **_shaped(recorded.event)}


async def _sync(store: Store, recorded: messages.Recorded) -> dict[str, Any]:
    """What ended; `result` has the shape of family 3's answers to a sync, whatever it was."""
    at = recorded.recorded_at
    match recorded.event:
        case jobs.Completed() | jobs.Failed() as event:
            found = await _job(store, recorded, event)
        case sessions.Completed(totals=totals):
            done = _result(
                at, totals.errors == 0, totals.changes, totals.conflicts, totals.messages, totals.duration_ms
            )
            found = {"source": "session", "sessionId": recorded.id, "result": done}
        case sessions.Failed(totals=totals, reason=reason, message=message):
            said = totals.messages or (message,)
            done = _result(at, False, totals.changes, totals.conflicts, said, totals.duration_ms)
            found = {"source": "session", "sessionId": recorded.id, "code": reason, "result": done}
        case devices.CaughtUp(changes=changes):
            found = {"source": "device", "deviceId": recorded.id, "result": _result(at, True, changes, 0, (), 0)}
        case event:
            raise LookupError(f"{messages.topic(event)} ends no sync")
    return {"position": recorded.position, **found}


async def _job(store: Store, recorded: messages.Recorded, event: jobs.Completed | jobs.Failed) -> dict[str, Any]:
    counters, at = event.counters, recorded.recorded_at
    changes = counters.created + counters.updated + counters.deleted
    found: dict[str, Any] = {"source": event.ticket.kind, "jobId": recorded.id}
    if isinstance(event, jobs.Completed):
        said, success = _decoded(event.result), counters.errors == 0
        changes, conflicts = said.get("changes_applied", changes), said.get("conflicts", 0)
        found["result"] = _result(at, success, changes, conflicts, said.get("errors", ()), event.duration_ms)
        queued = (await store.at([(recorded.stream, 1)])).get(recorded.stream)
    else:
        stream = await store.stream(recorded.stream, until=recorded.position)
        found |= {"code": event.code, "result": _result(at, False, changes, 0, (event.message,), _duration_ms(stream))}
        queued = stream[0]
    if queued is not None and isinstance(queued.event, jobs.Queued) and queued.event.session is not None:
        found["sessionId"] = queued.event.session
    return found


def _result(
    at: datetime, success: bool, changes: int, conflicts: int, said: Sequence[str], took_ms: int
) -> dict[str, Any]:
    return {
        "success": success,
        "changesApplied": changes,
        "conflictsEncountered": conflicts,
        "errors": list(said),
        "syncedAt": _seconds(at),
        "executionTimeMs": took_ms,
    }


def _decoded(raw: Raw) -> dict[str, Any]:
    found = msgspec.json.decode(raw)
    return found if isinstance(found, dict) else {}


def _duration_ms(stream: Sequence[messages.Recorded]) -> int:
    """From the last start to the end."""
    started = [one.recorded_at for one in stream if isinstance(one.event, jobs.Started)]
    return int((stream[-1].recorded_at - started[-1]).total_seconds() * 1000) if started else 0


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
