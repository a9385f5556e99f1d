"""Servers over HTTP as the Wings document has them, with a Panel over a real socket."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import panel as double
from tests.journeys.nodes import ask, settings, taken_over, untroubled
from tests.journeys.system import ADMIN, System, until
from tests.journeys.test_schemathesis import NODE, schemathesis, servers
from tests.journeys.test_why import shown, types, why

__all__ = ["untroubled"]  # a fixture

UNKNOWN = "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
NO_HEADER = {"error": "The required authorization heads were not present in the request."}
WRONG = {"error": "You are not authorized to access this endpoint."}


# Who may.


def test_only_the_nodes_token_opens_them(node: System) -> None:
    """Every route of the document that is the Panel's, before anything else of the request is looked at."""
    document = node.ok("GET", "/schema/openapi.json")["paths"]
    paths = [path for path in document if re.match(NODE, path)]
    assert len(paths) > 8
    for path in paths:
        for method in document[path].keys() - {"options"}:
            refused(node, method.upper(), path.replace("{server}", UNKNOWN))


def refused(node: System, method: str, path: str) -> None:
    admin = node.ready["admin_token"]
    for header, status, body in [
        (None, 401, NO_HEADER),
        ("", 401, NO_HEADER),
        (double.TOKEN, 401, NO_HEADER),
        (f"bearer {double.TOKEN}", 401, NO_HEADER),
        (f"Basic {double.TOKEN}", 401, NO_HEADER),
        ("Bearer wrong", 403, WRONG),
        (f"Bearer  {double.TOKEN}", 403, WRONG),
        (f"Bearer {double.TOKEN}x", 403, WRONG),
        (f"Bearer {double.TOKEN_ID}.{double.TOKEN}", 403, WRONG),
        (f"Bearer {admin}", 403, WRONG),
    ]:
        answer = node.call(method, path, headers={} if header is None else {"Authorization": header})
        assert (answer.status, answer.json()) == (status, body), (header, answer)
        assert answer.headers["x-request-id"]
        assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)


def test_the_nodes_token_opens_nothing_else(node: System) -> None:
    for path in ("/api/sync/jobs", "/api/v1/health", "/api/v1/sync/devices", "/api/v1/feeds/events", "/metrics"):
        answer = node.call("GET", path, token=double.TOKEN, headers={"Host": "example.org"})
        assert answer.status in (200, 401) if path == "/metrics" else answer.status == 401, (path, answer)


def test_browsers_are_told_of_the_panel(node: System, panel: double.Panel) -> None:
    answer = node.call("OPTIONS", f"/api/servers/{UNKNOWN}", headers={"Origin": "https://evil.example"})
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == panel.url
    assert answer.headers["access-control-max-age"] == "7200"
    assert "X-CSRF-Token" in answer.headers["access-control-allow-headers"]


# A sync.


def test_a_server_is_taken_over_and_synced(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"PASSWORD": "hunter2"})
    panel.change(uuid, suspended=True, build={"memory_limit": 512})
    answer = ask(node, "POST", f"/api/servers/{uuid}/sync", **{"Content-Type": "application/json"})
    assert (answer.status, answer.body) == (204, b"")
    assert "content-type" not in answer.headers
    shown = ask(node, "GET", f"/api/servers/{uuid}").json()
    assert (shown["state"], shown["is_suspended"]) == ("offline", True)
    assert shown["configuration"]["build"]["memory_limit"] == 512
    assert shown["configuration"]["environment"] == {"PASSWORD": "hunter2"}
    assert shown["utilization"]["memory_limit_bytes"] == 588_800_000
    assert shown in ask(node, "GET", "/api/servers").json()


def test_somebody_may_want_to_know_what_changed(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"PASSWORD": "hunter2"})
    panel.change(uuid, environment={"PASSWORD": "hunter3"}, build={"cpu_limit": 50})
    answer = ask(node, "POST", f"/api/servers/{uuid}/sync", Prefer="return=representation")
    assert answer.json() == {
        "differences": [
            {"field": "build.cpu_limit", "effect": "at_once", "before": 100, "after": 50},
            {"field": "environment.PASSWORD", "effect": "next_start", "before": "set", "after": "set"},
        ],
        "clients_cut": 0,
    }
    again = ask(node, "POST", f"/api/servers/{uuid}/sync", Prefer="return=representation")
    assert again.json() == {"differences": [], "clients_cut": 0}


def test_an_idempotency_key_syncs_once(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    first = ask(node, "POST", f"/api/servers/{uuid}/sync", **{"Idempotency-Key": "once"})
    asked = len(panel.seen)
    again = ask(node, "POST", f"/api/servers/{uuid}/sync", **{"Idempotency-Key": "once"})
    assert (first.status, again.status, len(panel.seen)) == (204, 204, asked)
    assert first.headers["undrift-position"] == again.headers["undrift-position"]


# Its neighbours.


@pytest.mark.parametrize("uuid", ["", "x", UNKNOWN.upper(), "11111111-5c7b-1f1e-9d2a-6e8f1c3b5a7d", "../x"])
def test_a_uuid_that_is_none(node: System, uuid: str) -> None:
    answer = ask(node, "POST", "/api/servers", {"uuid": uuid})
    assert answer.status == 422
    assert answer.json() == {"error": "The data provided in the request could not be validated."}


def test_a_server_is_forgotten(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    answer = ask(node, "DELETE", f"/api/servers/{uuid}")
    assert (answer.status, answer.body) == (204, b"")
    assert ask(node, "GET", f"/api/servers/{uuid}").status == 404
    assert ask(node, "DELETE", f"/api/servers/{uuid}").status == 404
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 404
    assert ask(node, "POST", "/api/servers", {"uuid": uuid}).status == 202


def test_a_server_returns_to_an_earlier_configuration(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"A": "1"})
    position = int(ask(node, "GET", f"/api/servers/{uuid}").headers["undrift-position"])
    panel.change(uuid, environment={"A": "2"}, build={"swap": -1})
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    answer = ask(node, "POST", f"/api/servers/{uuid}/rollback", {"position": position})
    assert {one["field"] for one in answer.json()["differences"]} == {"build.swap", "environment.A"}
    shown = ask(node, "GET", f"/api/servers/{uuid}").json()["configuration"]
    assert (shown["environment"], shown["build"]["swap"]) == ({"A": "1"}, 0)
    for wrong in (1, 10**9):
        assert ask(node, "POST", f"/api/servers/{uuid}/rollback", {"position": wrong}).status == 400


def test_a_server_as_it_was(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"A": "secret-one"})
    first = ask(node, "GET", f"/api/servers/{uuid}")
    panel.change(uuid, environment={"A": "secret-two"}, suspended=True)
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    then = ask(node, "GET", f"/api/servers/{uuid}?as_of={first.position}")
    assert then.json() == first.json()
    now = ask(node, "GET", f"/api/servers/{uuid}")
    assert ask(node, "GET", f"/api/servers/{uuid}?as_of={now.position}").json() == now.json() != first.json()
    assert ask(node, "GET", f"/api/servers/{uuid}?as_of=1").status == 404
    assert ask(node, "GET", f"/api/servers/{uuid}?as_of={10**9}").status == 400
    answer = ask(node, "GET", f"/api/servers/{uuid}/history")
    kinds = [one["type"] for one in answer.json()["history"]]
    assert kinds == ["servers.added", "servers.environment_changed", "servers.suspended"]
    assert b"secret" not in answer.body


def test_why_a_server_is_as_it_is(node: System, panel: double.Panel) -> None:
    """Back to the Panel, for an administrator's key; what is secret stays so."""
    uuid = taken_over(node, panel, environment={"A": "secret-one"})
    panel.change(uuid, suspended=True, environment={"A": "secret-two"})
    assert panel.sync(node.ready["url"], uuid) == 204
    panel.change(uuid, build={"cpu_limit": 5})
    assert panel.sync(node.ready["url"], uuid) == 204
    found = why(node, f"servers/{uuid}", "is_suspended")
    assert (found["value"], types(found)) == (True, ["servers.suspended", "jobs.queued"])
    suspended, queued = found["chain"]
    assert suspended["summary"] == f"The server {uuid} was suspended"
    assert (queued["actor"]["kind"], queued["data"]["spec"]["server"]) == ("node", uuid)
    for link in found["chain"]:
        shown(node, link, ADMIN)
    limits = why(node, f"servers/{uuid}", "configuration.build.cpu_limit")
    assert (limits["value"], types(limits)[0]) == (5, "servers.limits_changed")
    environment = why(node, f"servers/{uuid}", "configuration.environment.A")
    assert (environment["value"][:7], types(environment)[0]) == ("sealed:", "servers.environment_changed")
    assert environment["chain"][0]["summary"] == f"The server {uuid} has another environment: A"
    assert "secret-" not in json.dumps([found, limits, environment, why(node, f"servers/{uuid}")])
    assert ask(node, "DELETE", f"/api/servers/{uuid}").status == 204
    gone = why(node, f"servers/{uuid}", "is_suspended")
    assert (gone["value"], types(gone)) == (None, ["servers.deleted"])
    assert gone["chain"][0]["actor"] == {"kind": "node", "id": "panel", "name": None}
    assert node.get(f"/api/v1/why/servers/{UNKNOWN}", token=ADMIN).status == 404
    assert node.get(f"/api/v1/why/servers/{uuid}?field=no", token=ADMIN).status == 400
    assert node.get(f"/api/v1/why/servers/{uuid}", token=node.key("jobs only", "jobs")).status == 403
    assert node.get(f"/api/v1/why/servers/{uuid}", token=double.TOKEN).status == 401


def test_the_machine(node: System) -> None:
    found = ask(node, "GET", "/api/system").json()
    assert found.keys() == {"architecture", "cpu_count", "kernel_version", "os", "version"}
    assert found["os"] == "linux"


def test_no_secret_is_in_any_store_but_the_vault(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, environment={"PASSWORD": "correcthorse"})
    panel.servers[uuid].process = double.process(
        configs=[{"parser": "file", "file": "a", "replace": [{"match": "b", "replace_with": "batterystaple"}]}]
    )
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    events = node.call("GET", "/api/v1/feeds/events?limit=1000", token=node.ready["admin_token"]).body
    log = node.log.read_text(errors="replace")
    stored = node.sql("select string_agg(convert_from(state, 'UTF8'), '') from undrift.events")[0][0]
    for secret in ("correcthorse", "batterystaple", double.TOKEN):
        assert secret not in events.decode()
        assert secret not in log
        assert secret not in stored


def test_at_the_start_all_that_the_panel_lists_are_taken_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    with double.Panel() as other:
        every = {other.add() for _ in range(3)}
        system = System(tmp_path_factory.mktemp("listed"), settings=settings(other, list_s=1.0)).start()
        try:
            assert until(lambda: {one["configuration"]["uuid"] for one in listed(system)} == every), system.said()
        finally:
            system.stop()


def test_whatever_is_sent_is_answered_as_documented(node: System, panel: double.Panel, tmp_path: Path) -> None:
    known = servers(node, panel)
    ran = schemathesis(node, tmp_path, known, "--include-path-regex", NODE, "--max-examples", "4", "--seed", "7")
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert "failed unexpectedly" not in node.log.read_text()


def listed(system: System) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(system.call("GET", "/api/servers", token=double.TOKEN).body)
    return found
