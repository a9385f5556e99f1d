"""What goes out of events: random histories of everything, as bodies of webhooks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from msgspec import Raw

from domain import catalogue, devices, integrations, jobs, messages, sessions
from infra.eventstore.store import Store, Wish
from services import deliverable
from tests.projections.histories import World, ended, fill, open_store

TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
AT = datetime(2026, 1, 1, tzinfo=UTC)
ABOUT = {"position", "context", "id", "actor"}
RESULT = {"success", "changesApplied", "conflictsEncountered", "errors", "syncedAt", "executionTimeMs"}
HIDDEN = {"tokenSha256", "place", "oldPlace", "nameKey"}
#: What users have named themselves, and what belongs to a kind of job.
THEIRS = {"content", "result", "details", "config", "spec", "options", "environment"}


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        writing = asyncio.create_task(opened.writer.run())
        yield opened
        await ended(writing)


def keys(value: Any) -> Iterator[str]:
    """All names of fields, but of what is a user's."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in THEIRS:
                yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


async def test_every_public_event_has_a_body_under_each_of_its_names(store: Store) -> None:
    head = await fill(store.database, World(11).history(600))
    seen, ids = set(), set()
    for recorded in await store.read(0, head):
        assert bool(deliverable.names_of(recorded)) == (
            type(recorded.event).PUBLIC or type(recorded.event).ALIAS is not None
        )
        for name in deliverable.names_of(recorded):
            raw = await deliverable.body(store, recorded, name)
            assert raw == await deliverable.body(store, recorded, name)
            body = json.loads(raw)
            assert list(body) == ["type", "timestamp", "data"]
            assert (body["type"], body["data"]["position"]) == (name, recorded.position)
            assert TIME.fullmatch(body["timestamp"])
            found = set(keys(body["data"]))
            assert all(re.fullmatch("[a-z]+[A-Za-z0-9]*", key) for key in found), found
            assert HIDDEN.isdisjoint(found)
            assert name in ("sync.completed", "sync.failed") or body["data"].keys() >= ABOUT
            message = deliverable.message_id(recorded, name)
            assert re.fullmatch("[A-Za-z0-9_-]{1,200}", message)
            ids |= {message, deliverable.message_id(recorded, name, "rp-1")}
            seen.add(name)
    assert len(seen) > 20
    assert len(ids) == 2 * sum(len(deliverable.names_of(one)) for one in await store.read(0, head))


def ticket(id: str, kind: str = "files") -> jobs.Ticket:
    return jobs.Ticket(id, kind, "full_sync", "later")


async def say(store: Store, context: Any, id: str, *commands: messages.Command) -> messages.Recorded:
    """The last event."""
    for command in commands:
        done = await store.execute_all([Wish(context, id, command)])
    return done.events[-1]


async def data(store: Store, recorded: messages.Recorded, name: str, replay: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await deliverable.body(store, recorded, name, replay))["data"]
    return found


async def test_the_end_of_a_sync_says_what_it_came_to(store: Store) -> None:
    queue = jobs.Queue(jobs.Queued(ticket("j1"), Raw(b"{}"), session="session-1"))
    start = jobs.Start(1, "w", AT)
    said = Raw(b'{"changes_applied":3,"conflicts":1,"errors":["a: no"]}')
    done = await say(store, jobs, "j1", queue, start, jobs.Complete(jobs.Counters(4, 1, 1, 1, errors=1), said, 1234))
    found = await data(store, done, "sync.completed")
    assert found.keys() == {"position", "source", "jobId", "sessionId", "result"}
    assert (found["source"], found["jobId"], found["sessionId"]) == ("files", "j1", "session-1")
    assert found["result"].keys() == RESULT
    result = {name: found["result"][name] for name in RESULT - {"syncedAt"}}
    assert result == {
        "success": False,
        "changesApplied": 3,
        "conflictsEncountered": 1,
        "errors": ["a: no"],
        "executionTimeMs": 1234,
    }
    assert (await data(store, done, "jobs.completed"))["result"]["conflicts"] == 1
    assert (await data(store, done, "sync.completed", "rp-7"))["replay"] == "rp-7"


async def test_a_sync_that_failed_says_why(store: Store) -> None:
    queue = jobs.Queue(jobs.Queued(ticket("j2", "network"), Raw(b"{}")))
    fail = jobs.Fail("remote_unavailable", "nobody answers", jobs.Counters(), {})
    done = await say(store, jobs, "j2", queue, jobs.Start(1, "w", AT), fail)
    found = await data(store, done, "sync.failed")
    assert (found["source"], found["code"], found["result"]["errors"]) == (
        "network",
        "remote_unavailable",
        ["nobody answers"],
    )
    assert found["result"]["executionTimeMs"] >= 0
    assert "sessionId" not in found


@pytest.mark.parametrize("reason", ["incomplete", "abandoned"])
async def test_sessions_and_devices_end_syncs_too(store: Store, reason: sessions.Reason) -> None:
    totals = sessions.Totals(changes=5, conflicts=2, errors=0, duration_ms=9, messages=())
    done = made("sessions/main/session-1", sessions.Completed(totals))
    found = await data(store, done, "sync.completed")
    assert (found["source"], found["sessionId"], found["result"]["changesApplied"]) == ("session", "session-1", 5)
    failed = made("sessions/main/session-1", sessions.Failed(reason, "gone", totals, 40))
    found = await data(store, failed, "sync.failed")
    assert (found["code"], found["result"]["success"], found["result"]["errors"]) == (reason, False, ["gone"])
    caught = made("devices/main/phone", devices.CaughtUp(7, 3))
    found = await data(store, caught, "sync.completed")
    assert found.keys() == {"position", "source", "deviceId", "result"}
    assert (found["deviceId"], found["result"]["changesApplied"]) == ("phone", 3)


async def test_references_to_secrets_stay_inside(store: Store) -> None:
    config = Raw(b'{"workspace":"w","apiKey":"sealed:0123","projects":[]}')
    created = made("integrations/main/p", integrations.Created("P", "plane", config))
    found = await data(store, created, "integrations.created")
    assert found["config"] == {"workspace": "w", "projects": []}
    spec = Raw(b'{"api_key":"sealed:0123","workspace":"w"}')
    queued = made("jobs/main/j", jobs.Queued(ticket("j", "plane"), spec))
    assert (await data(store, queued, "jobs.queued"))["spec"] == {"workspace": "w"}


def made(stream: str, event: messages.Event) -> messages.Recorded:
    return messages.Recorded(
        position=1,
        tenant="main",
        stream=stream,
        version=1,
        event_id=UUID(int=7),
        event=event,
        metadata=messages.Metadata(),
        recorded_at=AT,
    )


def test_what_is_no_event_goes_out_under_no_name() -> None:
    assert deliverable.names_of(made("jobs/main/j", messages.Unreadable("jobs.completed", "newer"))) == []
    assert catalogue.TEST == "webhooks.tested"
