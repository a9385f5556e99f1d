"""Who may do what to a library: every route of it for its owner, for others, for their devices, and for keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.journeys.libraries import Device, User, created, sha, user
from tests.journeys.system import ADMIN, Answer, System
from tests.journeys.test_auth_matrix import PATHS, Route, all_routes, shape, told

TUS = {"Tus-Resumable": "1.0.0"}
METHODS = {
    "PATCH": {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
    "POST": {"X-HTTP-Method-Override": "DELETE"},
}
DATA = b"nobody else's"


@dataclass(frozen=True)
class Owned:
    """Somebody's library, and an id of everything that can be in it."""

    owner: User
    laptop: Device
    phone: Device
    ids: Mapping[str, str]
    cursor: str


@pytest.fixture(scope="module")
def routes(system: System) -> list[Route]:
    return [route for route in all_routes(system) if route.is_library]


@pytest.fixture(scope="module")
def ann(system: System) -> Owned:
    made = user(system)
    laptop, phone = made.pair()
    laptop.upload("secret/file", DATA)
    laptop.follow()
    laptop.report({"path": "secret/file", "change_type": "deleted"})
    assert [one["path"] for one in phone.report(created("secret/file", b"other"))["conflicts"]] == []
    phone.upload("secret/both", b"1")
    for device, data in ((laptop, b"2"), (phone, b"3")):
        device.upload("secret/twice", data)
    [conflict, *_] = phone.conflicts()
    session = made.ok("GET", "/api/v1/auth/sessions")[0]["id"]
    upload = laptop.open("secret/open", DATA)
    page = laptop.ok("GET", "/api/v1/sync/changes")
    ids = {**PATHS, "device_id": laptop.id, "conflict_id": conflict["id"], "upload_id": upload["id"]}
    return Owned(made, laptop, phone, {**ids, "session_id": session, "path": "secret/both"}, page["cursor"])


@pytest.fixture(scope="module")
def bob(system: System) -> Owned:
    made = user(system)
    laptop, phone = made.pair()
    return Owned(made, laptop, phone, PATHS, laptop.ok("GET", "/api/v1/sync/changes")["cursor"])


def ask(system: System, route: Route, ids: Mapping[str, str], token: str, **more: Any) -> Answer:
    where = re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], route.path)
    headers = {**TUS, **METHODS.get(route.method, {})} if "/tus/" in route.path else {}
    return system.call(route.method, where, route.body, token=token, headers=headers, **more)


def test_what_is_somebody_elses_is_unknown(system: System, routes: list[Route], ann: Owned, bob: Owned) -> None:
    asked = 0
    for route in routes:
        if "{" not in route.path:
            continue
        for token in (bob.owner.token, bob.phone.token):
            foreign, unknown = ask(system, route, ann.ids, token), ask(system, route, PATHS, token)
            assert told(foreign) == told(unknown), route
            assert foreign.status == 404 or (foreign.status == 403 and "/auth/" in route.path), (route, foreign)
            asked += 1
    assert asked > 30
    assert ann.laptop.download("secret/both").body == b"1"
    assert ann.owner.ok("GET", f"/api/v1/sync/devices/{ann.laptop.id}")["name"] == "laptop"
    assert ann.laptop.ok("GET", f"/api/v1/sync/upload/{ann.ids['upload_id']}")["status"] == "pending"
    assert ann.ids["conflict_id"] in [one["id"] for one in ann.phone.conflicts()]


def test_an_id_in_a_body_or_query_is_as_unknown(system: System, ann: Owned, bob: Owned) -> None:
    ours = {"ann": (ann.laptop.id, ann.ids["conflict_id"]), "none": (PATHS["device_id"], PATHS["conflict_id"])}
    file = ann.laptop.ok("GET", "/api/v1/sync/snapshot")["files"][0]
    media = {"ann": (file["media_id"], file["sequence"]), "none": ("none", 1)}
    found: dict[str, list[Any]] = {}
    for whose, (device, conflict) in ours.items():
        answers = [
            bob.owner.call("GET", f"/api/v1/sync/changes?device_id={device}"),
            bob.owner.call("GET", f"/api/v1/sync/snapshot?device_id={device}"),
            bob.owner.call("GET", f"/api/v1/sync/conflicts?mine=true&device_id={device}"),
            bob.owner.call("POST", "/api/v1/sync/report", {"device_id": device, "changes": []}),
            bob.owner.call("POST", "/api/v1/sync/ack", {"device_id": device, "cursor": bob.cursor}),
            bob.owner.call("POST", "/api/v1/sync/upload", {**opening(b"x"), "device_id": device}),
            bob.phone.call("POST", "/api/v1/sync/report", {"device_id": device, "changes": []}),
        ]
        id, sequence = media[whose]
        answers.append(bob.owner.call("POST", "/api/v1/sync/restore", {"media_id": id, "sequence": sequence}))
        assert [answer.status for answer in answers] == [404] * len(answers), answers
        many = {"resolution": "server_wins", "ids": [conflict]}
        resolved = bob.owner.ok("POST", "/api/v1/sync/conflicts/resolve", many)
        assert [one.pop("id") for one in resolved["failed"]] == [conflict]
        found[whose] = [*map(told, answers), resolved]
    assert found["ann"] == found["none"]


def opening(data: bytes) -> dict[str, Any]:
    return {"target_path": "x", "expected_hash": sha(data), "expected_size": len(data)}


def test_a_cursor_or_a_token_of_somebody_elses_is_simply_wrong(system: System, ann: Owned, bob: Owned) -> None:
    forged = ann.cursor[:-1] + ("A" if ann.cursor[-1] != "A" else "B")
    for path in ("changes", "snapshot"):
        foreign, wrong = (bob.laptop.call("GET", f"/api/v1/sync/{path}?cursor={one}") for one in (ann.cursor, forged))
        assert (foreign.status, told(foreign)) == (400, told(wrong))
    foreign, wrong = (bob.laptop.call("POST", "/api/v1/sync/ack", {"cursor": one}) for one in (ann.cursor, forged))
    assert (foreign.status, told(foreign)) == (400, told(wrong))
    tokens = (ann.laptop.token, "udd_none_" + "A" * 43)
    foreign, wrong = (
        bob.owner.call("GET", "/api/v1/sync/changes", headers={"X-Device-Token": token}) for token in tokens
    )
    assert (foreign.status, told(foreign)) == (401, told(wrong))


def test_bytes_of_somebody_elses_are_not_there(ann: Owned, bob: Owned) -> None:
    """Nobody learns by a hash what another has stored."""
    for data in (b"1", b"nobody has this"):
        assert bob.laptop.report(created(f"x{len(data)}", data))["upload_required"] == [f"x{len(data)}"]


def test_the_device_of_another_of_ones_own_is_forbidden_not_unknown(ann: Owned) -> None:
    for method, path, body in (
        ("GET", f"devices/{ann.phone.id}", None),
        ("PUT", f"devices/{ann.phone.id}", {"name": "x"}),
        ("DELETE", f"devices/{ann.phone.id}", None),
        ("POST", f"devices/{ann.phone.id}/token", None),
        ("GET", f"changes?device_id={ann.phone.id}", None),
        ("POST", "report", {"device_id": ann.phone.id, "changes": []}),
    ):
        assert ann.laptop.call(method, f"/api/v1/sync/{path}", body).status == 403, path
    assert ann.laptop.call("POST", "/api/v1/sync/devices", {**DEVICE, "name": "x"}).status == 403
    for method, path in (("GET", "sessions"), ("POST", "logout"), ("POST", "revoke-all"), ("POST", "refresh")):
        assert ann.laptop.call(method, f"/api/v1/auth/{path}").status == 403, path


DEVICE = {"device_type": "desktop", "client_version": "1"}


def test_keys_open_no_library_and_libraries_no_jobs(system: System, routes: list[Route], bob: Owned) -> None:
    for route in routes:
        shape(ask(system, route, PATHS, ADMIN), route, 401)
    for route in all_routes(system):
        if route.is_library or route.path.startswith("/api/v1/why/"):  # of which some kinds are people's
            continue
        for token in (bob.owner.token, bob.laptop.token):
            answer = system.call(route.method, route.where, route.body, token=token)
            wanted = 403 if route.is_administration and token == bob.owner.token else 401
            shape(answer, route, wanted)


def test_an_administrator_is_a_user_or_a_key_with_the_scope(system: System) -> None:
    boss = user(system, role="admin")
    assert boss.name in [one["username"] for one in boss.ok("GET", "/api/v1/admin/users")]
    key = system.key("matrix-user-admin", "admin")
    assert system.get("/api/v1/admin/users", token=key).status == 200
    assert boss.device().call("GET", "/api/v1/admin/users").status == 401
