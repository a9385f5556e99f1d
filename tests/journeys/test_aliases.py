"""The library's routes under the names without a version that the descriptions of its document use."""

from __future__ import annotations

import pytest

from tests.journeys.libraries import User, created, sha, user
from tests.journeys.system import System

NAMES = ("devices", "changes", "report", "ack", "conflicts", "upload", "download")


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


def test_a_library_can_be_used_without_a_version(system: System, ann: User) -> None:
    wanted = {"name": "unversioned", "device_type": "desktop", "client_version": "1"}
    made = ann.ok("POST", "/api/sync/devices", wanted)
    token, data = made["device_token"], b"without a version" * 9000
    shown = ann.ok("GET", f"/api/sync/devices/{made['device']['id']}")
    assert (shown["id"], shown["name"]) == (made["device"]["id"], "unversioned")
    reported = system.ok("POST", "/api/sync/report", {"changes": [created("a/b.txt", data)]}, token=token)
    assert reported["upload_required"] == ["a/b.txt"]
    opening = {"target_path": "a/b.txt", "expected_hash": sha(data), "expected_size": len(data), "chunk_size": 65536}
    upload = system.ok("POST", "/api/sync/upload", opening, token=token)
    for index in range(upload["chunk_count"]):
        piece = data[index * 65536 : (index + 1) * 65536]
        system.ok("PUT", f"/api/sync/upload/{upload['id']}/chunks/{index}", piece, token=token)
    done = system.ok("POST", f"/api/sync/upload/{upload['id']}/complete", token=token)
    read = {"Undrift-Min-Position": str(system.wrote)}
    page = system.ok("GET", "/api/sync/changes", token=token, headers=read)
    assert [one["sequence"] for one in page["changes"]] == [done["sequence"]]
    assert page == system.ok("GET", "/api/v1/sync/changes", token=token, headers=read)
    assert system.ok("POST", "/api/sync/ack", {"cursor": page["cursor"]}, token=token) == {"cursor": page["cursor"]}
    found = system.get("/api/sync/download/a/b.txt", token=token, headers={**read, "Range": "bytes=5-"})
    assert (found.status, found.body) == (206, data[5:])
    assert system.ok("GET", "/api/sync/conflicts", token=token) == []


def test_it_answers_in_the_words_of_the_library(system: System, ann: User) -> None:
    for name in NAMES:
        assert set(system.get(f"/api/sync/{name}/x/y/z").json()) == {"error"}, name
        assert set(system.get(f"/api/sync/{name}", token="udk_admin_" + "A" * 43).json()) == {"error"}, name
    assert system.call("PATCH", "/api/sync/report", token=ann.token).headers["allow"] == "POST"


def test_jobs_and_integrations_keep_their_names(system: System) -> None:
    assert system.ok("GET", "/api/sync/jobs?limit=1").keys() == {"jobs", "total"}
    assert "integrations" in system.ok("GET", "/api/sync/integrations")
    assert system.post("/api/sync/initialize").status == 200
    for name in ("jobs", "integrations", "collections"):
        assert system.get(f"/api/sync/{name}/no/such/thing/at/all").json()["success"] is False


def test_the_document_says_everything_once(system: System) -> None:
    paths = system.ok("GET", "/schema/openapi.json")["paths"]
    for name in NAMES:
        assert not any(path.startswith(f"/api/sync/{name}") for path in paths)
        assert any(path.startswith(f"/api/v1/sync/{name}") for path in paths)
