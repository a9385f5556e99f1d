"""History: what happened to one thing, told to whoever may read it, also when the thing is no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.doubles import panel as double
from tests.journeys.libraries import Device, User, user
from tests.journeys.nodes import ask, taken_over
from tests.journeys.system import ADMIN, Answer, System

EVENT = {"position", "id", "type", "time", "version", "actor", "data"}


def history(system: System, path: str, query: str = "", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = system.ok("GET", f"{path}/history?{query}", **more)
    assert found.keys() == {"history", "total", "next"}
    assert all(one.keys() == EVENT for one in found["history"])
    return found


def told(system: System, path: str, **more: Any) -> list[dict[str, Any]]:
    """All of it, page by page from the oldest; the newest first says the same."""
    pages = [chain(system, path, order, at, **more) for order, at in (("oldest", "after"), ("newest", "before"))]
    assert pages[0] == pages[1][::-1]
    assert [one["version"] for one in pages[0]] == sorted(one["version"] for one in pages[0])
    return pages[0]


def chain(system: System, path: str, order: str, at: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query = f"order={order}&limit=2"
    while True:
        page = history(system, path, query, **more)
        found += page["history"]
        if page["next"] is None:
            assert page["total"] == len(found)
            return found
        assert len(page["history"]) == 2
        query = f"order={order}&limit=2&{at}={page['next']}"


def types(events: list[dict[str, Any]]) -> list[str]:
    return [one["type"] for one in events]


@pytest.fixture(scope="module")
def done(system: System) -> str:
    """A job that is complete."""
    system.integration("told-of", system.folder(a="1", b="2"), system.place(), interval=3600)
    return str(system.wait(system.queue("told-of"))["id"])


def test_a_job_from_its_beginning_to_its_end(system: System, done: str) -> None:
    events = told(system, f"/api/sync/jobs/{done}")
    names = types(events)
    assert (names[0], names[1], names[-1]) == ("jobs.queued", "jobs.started", "jobs.completed")
    assert events[0]["actor"] == "system:loopback"
    assert events[-1]["actor"] == f"job:{done}"
    assert events[0]["data"]["integrationId"] == "told-of"
    assert events[0]["data"]["spec"]["sourceDirectory"].startswith(str(system.roots))
    assert events[-1]["data"]["counters"]["created"] == 2
    assert "durationMs" in events[-1]["data"]
    in_the_log = [one for one in system.events() if one["subject"].endswith(done)]
    assert [(one["position"], one["id"], one["type"], one["time"]) for one in in_the_log] == [
        (one["position"], one["id"], one["type"], one["time"]) for one in events
    ]


def test_what_was_deleted_keeps_its_history(system: System) -> None:
    made = system.integration("goes-away", system.folder(a="1"), system.place())
    id = system.queue("goes-away")
    system.wait(id)
    system.ok("DELETE", f"/api/sync/jobs/{id}", {"deleteLogs": True})
    system.ok("DELETE", f"/api/sync/integrations/{made['integrationId']}")
    for path, last in ((f"/api/sync/jobs/{id}", "jobs.deleted"), ("/api/sync/integrations/goes-away", None)):
        assert system.get(path).status == 404
        assert types(told(system, path))[-1] == (last or "integrations.deleted")


def test_an_integration_without_its_secrets(system: System) -> None:
    key = "plane_api_canary_9f2"
    config = {"workspace": "acme", "apiKey": key, "baseUrl": "http://127.0.0.1:9", "webhookSecret": key[::-1]}
    body = {"id": "secretive", "name": "Secretive", "kind": "plane", "config": config}
    system.ok("POST", "/api/sync/integrations", body)
    job = system.queue("secretive")
    system.wait(job)
    system.ok("PUT", "/api/sync/integrations/secretive", {"name": "Still", "config": {**config, "apiKey": key + "2"}})
    for path in ("/api/sync/integrations/secretive", f"/api/sync/jobs/{job}"):
        text = json.dumps(told(system, path))
        assert "acme" in text
        assert not any(word in text for word in ("sealed:", key, key[::-1], "apiKey", "webhookSecret"))


def test_pages_and_bad_input(system: System, done: str) -> None:
    path, head = f"/api/sync/jobs/{done}/history", system.head()
    everything = system.ok("GET", path)["history"]
    first, last = everything[0]["position"], everything[-1]["position"]
    between = system.ok("GET", f"{path}?after={first}&before={last}")
    assert between["history"] == everything[1:-1]
    assert between["total"] == len(everything)
    assert system.ok("GET", f"{path}?after={last}") == {"history": [], "total": len(everything), "next": None}
    for query in (f"after={head + 1000}", f"before={head + 1000}", "after=x", "limit=x", "order=up", "before=1.5"):
        answer = system.get(f"{path}?{query}")
        assert (answer.status, answer.json()["code"]) == (400, "VALIDATION_ERROR"), query


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


@pytest.fixture(scope="module")
def pair(ann: User) -> tuple[Device, Device]:
    one, other = ann.pair()
    one.upload("notes/a file", b"first")
    other.follow()
    one.upload("notes/a file", b"here")
    other.upload("notes/a file", b"there")
    return one, other


def media(device: Device, path: str) -> str:
    return str(
        next(one["media_id"] for one in device.ok("GET", "/api/v1/sync/snapshot")["files"] if one["path"] == path)
    )


def test_a_file_and_its_conflict(ann: User, pair: tuple[Device, Device]) -> None:
    one, other = pair
    [conflict] = [found for found in other.conflicts() if found["path"] == "notes/a file"]
    ann.ok("POST", f"/api/v1/sync/conflicts/{conflict['id']}/resolve", {"resolution": "server_wins"})
    ann.ok("POST", f"/api/v1/sync/conflicts/{conflict['id']}/reopen")
    events = told(ann.system, f"/api/v1/sync/conflicts/{conflict['id']}", token=ann.token)
    names = ["library.conflict_found", "library.conflict_resolved", "library.conflict_reopened"]
    assert types(events) == names
    assert [one["actor"] for one in events] == [f"device:{other.id}", *[f"user:{ann.id}"] * 2]
    assert (events[0]["data"]["path"], events[0]["data"]["rule"]) == ("notes/a file", "edit_edit")
    assert "place" not in events[0]["data"]
    whole = told(ann.system, f"/api/v1/sync/media/{conflict['media_id']}", token=one.token)
    again = "library.touched"  # the device whose side lost is told what there is
    assert types(whole) == ["library.created", "library.modified", *names[:2], again, names[2]]
    assert whole[0]["data"]["path"] == "notes/a file"
    assert whole[0]["data"]["content"]["size"] == 5


def test_a_device_without_its_tokens(ann: User) -> None:
    device = ann.device("old phone")
    path = f"/api/v1/sync/devices/{device.id}"
    token = ann.ok("POST", f"{path}/token")["device_token"]
    ann.ok("PUT", path, {"name": "older phone"})
    assert ann.call("DELETE", path).status == 204
    events = told(ann.system, path, token=ann.token)
    assert types(events) == ["devices." + name for name in ("registered", "token_regenerated", "changed", "deleted")]
    assert [one["data"].get("name") for one in events] == ["old phone", None, "older phone", None]
    text = json.dumps(events)
    assert "sha256" not in text
    assert token.rpartition("_")[2] not in text
    assert ann.system.get(f"{path}/history", token=device.token).status == 401


def refused(answer: Answer, status: int) -> bytes:
    assert answer.status == status, answer
    return answer.body


def test_what_is_foreign_is_unknown(ann: User, pair: tuple[Device, Device]) -> None:
    system, (one, other) = ann.system, pair
    stranger = user(system)
    theirs = stranger.device()
    conflict = next(iter(other.conflicts()))
    for kind, id in (("devices", one.id), ("media", media(one, "notes/a file")), ("conflicts", conflict["id"])):
        for token in (stranger.token, theirs.token):
            foreign = refused(system.get(f"/api/v1/sync/{kind}/{id}/history", token=token), 404)
            assert foreign == refused(system.get(f"/api/v1/sync/{kind}/{id}x/history", token=token), 404)
        assert system.get(f"/api/v1/sync/{kind}/{id}/history", token=ADMIN).status == 401
    assert system.get(f"/api/v1/sync/devices/{other.id}/history", token=one.token).status == 403
    assert system.get(f"/api/v1/sync/devices/{one.id}/history", token=one.token).status == 200


def test_a_key_reads_the_history_of_what_it_queued(system: System, done: str) -> None:
    token = system.key("history-writer", "jobs:write")
    mine = system.ok("POST", "/api/sync/jobs", {"integrationId": "told-of", "type": "full"}, token=token)["jobId"]
    assert types(told(system, f"/api/sync/jobs/{system.wait(mine)['id']}", token=token))[-1] == "jobs.completed"
    refused(system.get(f"/api/sync/jobs/{done}/history", token=token), 403)
    refused(system.get("/api/sync/integrations/told-of/history", token=token), 403)


def test_a_server_for_its_panel(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"PASSWORD": "hunter2"})
    panel.change(uuid, environment={"PASSWORD": "hunter3"}, build={"cpu_limit": 50})
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    answer = ask(node, "GET", f"/api/servers/{uuid}/history")
    events = answer.json()["history"]
    assert types(events) == ["servers.added", "servers.limits_changed", "servers.environment_changed"]
    assert events[1]["data"]["build"]["cpu_limit"] == 50
    assert events[2]["data"] == {"environment": {}, "names": ["PASSWORD"]}
    assert not any(word in answer.body for word in (b"hunter", b"sealed:"))
    assert ask(node, "GET", f"/api/servers/{uuid}x/history").status == 404
    assert node.get(f"/api/servers/{uuid}/history", token=ADMIN).status == 403
