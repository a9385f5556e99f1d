"""Devices: a token each, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.journeys.libraries import User, user
from tests.journeys.sse import follow
from tests.journeys.system import System

SHAPE = {
    "id",
    "name",
    "device_type",
    "client_version",
    "os_info",
    "last_sync_at",
    "last_seen_at",
    "sync_cursor",
    "enabled",
    "created_at",
}


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


def test_a_device_is_registered_shown_changed_and_forgotten(system: System, ann: User) -> None:
    phone = ann.device("phone")
    shown = ann.ok("GET", f"/api/v1/sync/devices/{phone.id}")
    assert shown.keys() == SHAPE
    assert (shown["name"], shown["enabled"], shown["sync_cursor"]) == ("phone", True, None)
    assert phone.id in [one["id"] for one in ann.ok("GET", "/api/v1/sync/devices")]
    changed = ann.ok("PUT", f"/api/v1/sync/devices/{phone.id}", {"name": "old phone", "enabled": False})
    assert (changed["name"], changed["enabled"]) == ("old phone", False)
    assert phone.call("GET", "/api/v1/sync/changes").status == 403
    ann.ok("PUT", f"/api/v1/sync/devices/{phone.id}", {"enabled": True})
    assert phone.call("GET", "/api/v1/sync/changes").status == 200
    gone = ann.call("DELETE", f"/api/v1/sync/devices/{phone.id}")
    assert (gone.status, gone.body) == (204, b"")
    assert phone.call("GET", "/api/v1/sync/changes").status == 401
    assert ann.call("GET", f"/api/v1/sync/devices/{phone.id}").status == 404


def test_a_new_token_kills_the_old_one_and_its_streams(system: System, ann: User) -> None:
    phone = ann.device()
    with follow(system, "/api/v1/sync/changes", token=phone.token) as stream:
        assert stream.status == 200
        fresh = ann.ok("POST", f"/api/v1/sync/devices/{phone.id}/token")
        assert phone.call("GET", "/api/v1/sync/changes").status == 401
        assert list(stream) == []
    assert system.get("/api/v1/sync/changes", token=fresh["device_token"]).status == 200
    own = system.ok("POST", f"/api/v1/sync/devices/{phone.id}/token", token=fresh["device_token"])
    assert system.get("/api/v1/sync/changes", token=fresh["device_token"]).status == 401
    assert system.get("/api/v1/sync/changes", token=own["device_token"]).status == 200


def test_registering_again_under_one_key_is_one_device(ann: User) -> None:
    wanted = {"name": "twice", "device_type": "mobile", "client_version": "1"}
    key = {"Idempotency-Key": "register-once"}
    first, second = (ann.call("POST", "/api/v1/sync/devices", wanted, headers=key) for _ in range(2))
    assert first.body == second.body
    assert [one["name"] for one in ann.ok("GET", "/api/v1/sync/devices")].count("twice") == 1


def test_which_device_speaks_is_told_by_token_header_or_name(system: System) -> None:
    ann = user(system)
    changes = "/api/v1/sync/changes"
    assert ann.call("GET", changes).status == 400  # none at all
    phone = ann.device("phone")
    assert ann.call("GET", changes).status == 200  # the only one
    laptop = ann.device("laptop")
    assert ann.call("GET", changes).status == 400
    assert ann.call("GET", changes, headers={"X-Device-Token": phone.token}).status == 200
    assert ann.call("GET", changes, headers={"X-Device-Token": "udd_x_" + "a" * 43}).status == 401
    assert ann.call("GET", f"{changes}?device_id={laptop.id}").status == 200
    assert phone.call("GET", f"{changes}?device_id={laptop.id}").status == 403
    assert ann.call("GET", f"{changes}?device_id=nobody").status == 404


def test_somebody_elses_device_is_no_device(system: System, ann: User) -> None:
    bob = user(system)
    theirs = bob.device()
    mine = ann.device()
    for speaker in (ann, mine):
        for method, path, body in (
            ("GET", "", None),
            ("PUT", "", {"name": "mine now"}),
            ("DELETE", "", None),
            ("POST", "/token", None),
        ):
            foreign = speaker.call(method, f"/api/v1/sync/devices/{theirs.id}{path}", body)
            unknown = speaker.call(method, f"/api/v1/sync/devices/{'0' * 8}{path}", body)
            assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
            assert foreign.status == 404
    assert ann.call("GET", "/api/v1/sync/changes", headers={"X-Device-Token": theirs.token}).status == 401
    assert theirs.call("GET", "/api/v1/sync/changes").status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "", "device_type": "mobile", "client_version": "1"},
        {"name": "x" * 256, "device_type": "mobile", "client_version": "1"},
        {"name": "a\nb", "device_type": "mobile", "client_version": "1"},
        {"name": "x", "device_type": "toaster", "client_version": "1"},
        {"name": "x", "device_type": "mobile", "client_version": 1},
    ],
)
def test_what_is_no_device_is_refused(ann: User, body: dict[str, Any]) -> None:
    answer = ann.call("POST", "/api/v1/sync/devices", body)
    assert (answer.status, list(answer.json())) == (400, ["error"])
