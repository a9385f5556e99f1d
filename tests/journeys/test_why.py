"""Why: from a value back to whoever wished it, and nothing of what is somebody else's."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.journeys.libraries import Device, User, user
from tests.journeys.system import ADMIN, System, until
from tests.journeys.test_collections import bring

LINK = {"position", "time", "type", "subject", "summary", "actor", "rule", "data", "because", "href"}


def why(system: System, path: str, field: str | None = None, token: str = ADMIN) -> dict[str, Any]:
    query = "" if field is None else f"?field={field}"
    headers = {"Undrift-Min-Position": str(system.wrote)}
    found: dict[str, Any] = system.ok("GET", f"/api/v1/why/{path}{query}", token=token, headers=headers)
    assert found.keys() == {"kind", "id", "field", "value", "position", "chain"}
    chain = found["chain"]
    assert all(link.keys() >= LINK for link in chain)
    assert chain[0]["position"] == found["position"]
    positions = [link["position"] for link in chain]
    assert positions == sorted(set(positions), reverse=True)
    for link in chain:
        assert all(cause in positions and cause < link["position"] for cause in link["because"])
        assert link["summary"].strip()
    reached, todo = set(), [positions[0]]
    while todo:
        reached.add(at := todo.pop())
        todo += next(link["because"] for link in chain if link["position"] == at)
    assert reached == set(positions)
    return found


def types(found: dict[str, Any]) -> list[str]:
    return [link["type"] for link in found["chain"]]


def shown(system: System, link: dict[str, Any], token: str) -> None:
    """Its address leads to the event."""
    found = system.ok("GET", link["href"], token=token)
    [event] = found.get("history") or found["events"]
    assert (event["position"], event["type"]) == (link["position"], link["type"])


@pytest.fixture(scope="module")
def key(system: System) -> str:
    return system.key("why keeper", "jobs")


@pytest.fixture(scope="module")
def job(system: System, key: str) -> str:
    """A job of an integration, both by the same key."""
    config = {"sourceDirectory": str(system.folder(a="1", b="2")), "targetDirectory": str(system.place())}
    body = {"id": "why", "name": "Why", "kind": "files", "config": config, "syncInterval": 3600}
    system.ok("POST", "/api/sync/integrations", body, token=key)
    asked = {"integrationId": "why", "type": "incremental"}
    return str(system.wait(system.ok("POST", "/api/sync/jobs", asked, token=key)["jobId"])["id"])


def test_a_job_back_to_the_key_that_asked_for_it(system: System, job: str, key: str) -> None:
    found = why(system, f"jobs/{job}", "status")
    assert found["value"] == "completed"
    assert types(found) == ["jobs.completed", "jobs.queued", "integrations.created", "keys.added"]
    completed, queued, integration, added = found["chain"]
    assert completed["summary"] == f"The job {job} completed (2 created, 0 updated, 0 deleted, 0 errors)"
    assert (queued["actor"]["kind"], queued["actor"]["name"]) == ("key", "why keeper")
    assert queued["rule"]["name"] == "baseline"
    assert queued["because"] == [integration["position"], added["position"]]
    assert integration["rule"] == {"name": "schedule", "text": "every 3600 s"}
    assert added["data"] == {"name": "why keeper"}
    assert added["actor"] == {"kind": "system", "id": "cli", "name": None}
    for link in found["chain"]:
        shown(system, link, ADMIN)
    assert key.rpartition("_")[2] not in json.dumps(found)
    assert why(system, f"jobs/{job}", "createdAt")["chain"][0]["type"] == "jobs.queued"
    assert why(system, f"jobs/{job}", "result.created")["value"] == 2
    assert why(system, f"jobs/{job}", "startedAt")["chain"][0]["type"] == "jobs.started"


def test_a_scheduled_job_back_to_its_schedule(system: System, key: str) -> None:
    config = {"sourceDirectory": str(system.folder(a="1")), "targetDirectory": str(system.place())}
    body = {"id": "why-often", "name": "Often", "kind": "files", "config": config}
    system.ok("POST", "/api/sync/integrations", body, token=key)
    system.ok("PUT", "/api/sync/integrations/why-often", {"syncInterval": 1})
    id = str(until(lambda: system.ok("GET", "/api/sync/jobs?integrationId=why-often")["jobs"])[0]["id"])
    system.wait(id, "completed")
    system.ok("POST", "/api/sync/integrations/why-often/stop")
    found = why(system, f"jobs/{id}", "createdAt")
    assert types(found)[:2] == ["jobs.queued", "integrations.changed"]
    queued, changed = found["chain"][:2]
    assert queued["actor"]["id"] == "scheduler"
    assert (queued["rule"]["name"], changed["rule"]["text"]) == ("schedule", "every 1 s")
    assert changed["actor"]["id"] == "loopback"
    stopped = why(system, "integrations/why-often", "status")
    assert (stopped["value"], types(stopped)) == ("stopped", ["integrations.stopped"])
    assert types(why(system, "integrations/why-often", "syncInterval")) == ["integrations.changed"]
    assert why(system, "integrations/why-often", "name")["chain"][0]["type"] == "integrations.created"
    assert why(system, "integrations/why-often", "lastSync")["chain"][0]["type"] == "jobs.completed"


def test_a_held_job_and_who_let_it_go_on(system: System) -> None:
    many = {f"file{number}": "x" for number in range(9)}
    system.integration("why-held", system.folder(a="1"), system.folder(**many), deleteMissingInTarget=True)
    id = system.queue("why-held")
    held = system.wait(id, "paused")
    found = why(system, f"jobs/{id}", "status")
    assert found["value"] == "paused"
    assert found["chain"][0]["rule"]["name"] == "guard"
    assert held["error"]["plan"] in found["chain"][0]["rule"]["text"]
    system.ok("POST", f"/api/sync/jobs/{id}/resume", {"confirm": held["error"]["plan"]})
    system.wait(id, "completed")
    found = why(system, f"jobs/{id}")
    assert types(found)[:4] == ["jobs.completed", "jobs.resumed", "jobs.held", "jobs.queued"]
    system.ok("DELETE", f"/api/sync/jobs/{id}")
    deleted = why(system, f"jobs/{id}", "status")
    assert (deleted["value"], types(deleted)) == (None, ["jobs.deleted"])


def test_an_item_back_to_the_job_that_brought_it(system: System, job: str) -> None:
    name = "an item/with a slash"
    collection = bring(system, ("things", name, {"name": "one", "size": 1}), job=job)
    bring(system, ("things", name, {"name": "one", "size": 2}), collection=collection, job=job)
    path = f"items/{collection}/things/{quote(name)}"
    size = why(system, path, "content.size")
    assert size["value"] == 2
    assert types(size) == ["items.updated", "jobs.queued", "integrations.created", "keys.added"]
    assert types(why(system, path, "content.name"))[0] == "items.created"
    assert size["chain"][0]["href"].startswith("/api/v1/feeds/events?")
    shown(system, size["chain"][0], ADMIN)


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


@pytest.fixture(scope="module")
def pair(ann: User) -> tuple[Device, Device]:
    one, other = ann.pair()
    one.upload("why/a file", b"first")
    other.follow()
    one.upload("why/a file", b"here")
    other.upload("why/a file", b"there")
    return one, other


def test_a_conflict_its_rule_and_both_sides(ann: User, pair: tuple[Device, Device]) -> None:
    system, (one, other) = ann.system, pair
    [conflict] = other.conflicts()
    found = why(system, f"conflicts/{conflict['id']}", "rule", token=ann.token)
    assert found["value"] == "edit_edit"
    first, there, theirs, *_ = found["chain"]
    assert (first["type"], first["rule"]["name"]) == ("library.conflict_found", "edit_edit")
    assert first["actor"] == {"kind": "device", "id": other.id, "name": "phone"}
    assert (there["type"], there["actor"]["name"]) == ("library.modified", "laptop")
    assert (theirs["type"], theirs["subject"]) == ("devices.registered", f"devices/main/{other.id}")
    account, key = found["chain"][-2:]
    assert (account["type"], account["data"]["name"]) == ("accounts.created", ann.name)
    assert (key["type"], key["data"], key["summary"]) == ("keys.added", None, "The key admin was added")
    for link in found["chain"][:-2]:
        shown(system, link, ann.token)
    ann.ok("POST", f"/api/v1/sync/conflicts/{conflict['id']}/resolve", {"resolution": "client_wins"})
    found = why(system, f"files/{conflict['media_id']}", "content_hash", token=one.token)
    assert types(found)[:3] == ["library.modified", "library.conflict_resolved", "library.conflict_found"]
    assert found["chain"][1]["actor"]["name"] == ann.name
    made = why(system, f"files/{conflict['media_id']}", "path", token=one.token)
    assert (made["value"], types(made)) == (
        "why/a file",
        ["library.created", "devices.registered", "accounts.created", "keys.added"],
    )


def test_a_device_back_to_its_user(ann: User) -> None:
    device = ann.device("tablet")
    ann.ok("PUT", f"/api/v1/sync/devices/{device.id}", {"enabled": False})
    off = why(ann.system, f"devices/{device.id}", "enabled", token=ann.token)
    assert (off["value"], types(off)) == (False, ["devices.changed", "accounts.created", "keys.added"])
    text = json.dumps(why(ann.system, f"devices/{device.id}", token=ann.token))
    assert "sha256" not in text


def test_bad_input(system: System, job: str, ann: User) -> None:
    for path, status in (
        ("jobs/none", 404),
        (f"jobs/{job}/status", 404),
        (f"nothing/{job}", 404),
        ("items/none", 404),
        ("items/none/things/x", 404),
        (f"jobs/{job}?field=nothing", 400),
        (f"jobs/{job}?field=", 400),
        ("devices/none", 403),
        ("integrations/status", 404),
    ):
        answer = system.get(f"/api/v1/why/{path}", token=ADMIN)
        assert (answer.status, set(answer.json()) >= {"errorCode", "message"}) == (status, True), (path, answer)
    assert system.get(f"/api/v1/why/jobs/{job}").status == 401
    assert system.get(f"/api/v1/why/jobs/{job}", token=ann.token).status == 403
    assert system.get("/api/v1/why/devices/none", token=ann.token).status == 404


def test_what_is_foreign_is_unknown(system: System, job: str, ann: User, pair: tuple[Device, Device]) -> None:
    stranger = user(system)
    one, _ = pair
    file = one.ok("GET", "/api/v1/sync/snapshot")["files"][0]["media_id"]
    for kind, id in (("devices", one.id), ("files", file)):
        foreign = system.get(f"/api/v1/why/{kind}/{id}", token=stranger.token)
        unknown = system.get(f"/api/v1/why/{kind}/{id}x", token=stranger.token)
        assert (foreign.status, foreign.json()["message"]) == (404, unknown.json()["message"])
    system.undrift("tenants", "add", "why-other")
    other = system.key("why-other", "admin", tenant="why-other")
    assert system.get(f"/api/v1/why/jobs/{job}", token=other).status == 404
    assert system.get("/api/v1/why/integrations/why", token=other).status == 404


def test_a_key_learns_no_more_than_it_may_read(system: System, job: str) -> None:
    token = system.key("why writer", "jobs:write")
    mine = system.ok("POST", "/api/sync/jobs", {"integrationId": "why", "type": "full"}, token=token)["jobId"]
    system.wait(mine)
    found = why(system, f"jobs/{mine}", token=token)
    assert types(found) == ["jobs.completed", "jobs.queued", "keys.added", "integrations.created", "keys.added"]
    hidden = [link for link in found["chain"] if link["data"] is None]
    assert [link["type"] for link in hidden] == ["keys.added", "integrations.created", "keys.added"]
    assert "why keeper" not in json.dumps(found)
    assert system.get(f"/api/v1/why/jobs/{job}", token=token).status == 403
    assert system.get("/api/v1/why/integrations/why", token=token).status == 403
    assert system.get("/api/v1/why/sessions/none", token=token).status == 403
