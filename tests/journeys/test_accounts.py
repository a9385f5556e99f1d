"""Users and their sessions: who may open what, and how it ends at once."""

from __future__ import annotations

import pytest

from tests.journeys.libraries import PASSWORD, login, user
from tests.journeys.sse import follow
from tests.journeys.system import ADMIN, System, at_once, until


def test_a_person_logs_in_and_is_who_they_are(system: System) -> None:
    ann = user(system)
    me = ann.ok("GET", "/api/v1/auth/me")
    assert (me["id"], me["username"], me["role"], me["enabled"]) == (ann.id, ann.name, "user", True)
    refreshed = ann.ok("POST", "/api/v1/auth/refresh")
    assert refreshed["token"] == ann.token
    assert [one["current"] for one in ann.ok("GET", "/api/v1/auth/sessions")] == [True]


@pytest.mark.parametrize("password", ["wrong", "", PASSWORD.upper()])
def test_a_wrong_password_and_an_unknown_name_look_the_same(system: System, password: str) -> None:
    ann = user(system)
    wrong, unknown = login(system, ann.name, password), login(system, "nobody", password)
    assert (wrong.status, wrong.body) == (unknown.status, unknown.body) == (401, wrong.body)
    assert wrong.headers["www-authenticate"] == "Bearer"


def test_logging_out_ends_the_session_everywhere(system: System) -> None:
    ann = user(system)
    other = login(system, ann.name).json()["token"]
    assert ann.ok("POST", "/api/v1/auth/logout") == {"revoked": 1}
    assert ann.call("GET", "/api/v1/auth/me").status == 401
    assert system.get("/api/v1/auth/me", token=other).status == 200
    assert system.ok("POST", "/api/v1/auth/revoke-all", token=other) == {"revoked": 1}
    assert system.get("/api/v1/auth/me", token=other).status == 401


def test_a_changed_password_ends_what_was_open(system: System) -> None:
    ann = user(system)
    changed = {"password": "another password"}
    system.ok("PUT", f"/api/v1/admin/users/{ann.id}", changed, token=ADMIN)
    assert ann.call("GET", "/api/v1/auth/me").status == 401
    assert login(system, ann.name).status == 401
    assert login(system, ann.name, "another password").status == 200


def test_whoever_is_disabled_opens_nothing_nor_do_their_devices(system: System) -> None:
    ann = user(system)
    phone = ann.device()
    with follow(system, "/api/v1/sync/changes", token=phone.token) as stream:
        assert stream.status == 200
        system.ok("PUT", f"/api/v1/admin/users/{ann.id}", {"enabled": False}, token=ADMIN)
        assert list(stream) == []  # it ends
    assert until(lambda: phone.call("GET", "/api/v1/sync/changes").status == 401)
    assert ann.call("GET", "/api/v1/auth/me").status == 401
    assert login(system, ann.name).status == 401
    system.ok("PUT", f"/api/v1/admin/users/{ann.id}", {"enabled": True}, token=ADMIN)
    assert login(system, ann.name).status == 200


def test_of_many_who_take_a_name_one_gets_it(system: System) -> None:
    def add(number: int) -> int:
        name = "Jürgen" if number % 2 else "JÜRGEN"
        return system.post("/api/v1/admin/users", {"username": name, "password": PASSWORD}, token=ADMIN).status

    assert sorted(at_once(8, add)) == [200] + [409] * 7


@pytest.mark.parametrize(
    "body",
    [
        {"username": "", "password": PASSWORD},
        {"username": "a b", "password": PASSWORD},
        {"username": "a/b", "password": PASSWORD},
        {"username": "x" * 65, "password": PASSWORD},
        {"username": "short", "password": "short"},
        {"username": "role", "password": PASSWORD, "role": "god"},
        {"password": PASSWORD},
    ],
)
def test_what_is_no_user_changes_nothing(system: System, body: dict[str, str]) -> None:
    before = system.head()
    answer = system.post("/api/v1/admin/users", body, token=ADMIN)
    assert (answer.status, list(answer.json())) == (400, ["error"])
    assert system.head() == before


def test_users_are_administered_by_admins_only(system: System) -> None:
    ann, root = user(system), user(system, role="admin")
    assert ann.call("GET", "/api/v1/admin/users").status == 403
    assert ann.id in [one["id"] for one in root.ok("GET", "/api/v1/admin/users")]
    assert system.get("/api/v1/admin/users").status == 401
    assert system.call("DELETE", f"/api/v1/admin/users/{ann.id}", token=root.token).status == 204
    assert ann.call("GET", "/api/v1/auth/me").status == 401
    assert root.call("GET", f"/api/v1/admin/users/{ann.id}").status == 404
    assert root.call("GET", "/api/sync/jobs").status == 401  # no family but their own


def test_a_password_and_a_session_are_kept_nowhere(system: System) -> None:
    ann = user(system)
    secrets = [PASSWORD.encode(), ann.token.rpartition("_")[2].encode()]
    for path in [system.log, *(system.directory / "nats").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
    events = [one for one in system.events() if one["type"].startswith("accounts.")]
    assert ann.name not in {one["data"].get("password") for one in events}
    assert not any(PASSWORD in str(one) for one in events)
