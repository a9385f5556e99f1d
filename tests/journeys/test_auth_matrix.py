"""Who may do what: every route for everybody, and that what is foreign is unknown."""

from __future__ import annotations

import http.client
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.libraries import user
from tests.journeys.system import ADMIN, QUICK, Answer, System

PATHS = {"job_id": "sync-job-none", "integration_id": "none", "collection_id": "none", "entity": "none", "item": "none"}
PATHS |= {"kind": "jobs", "id": "sync-job-none"}
PATHS |= {"other_id": "sync-job-none", "path": "none", "index": "0", "webhook_id": "wh-none", "seq": "1"}
PATHS |= {f"{name}_id": f"{'0' * 8}-{name}" for name in ("user", "device", "conflict", "upload", "session", "media")}
PATHS |= {"sync_session_id": "session-00000000-0000-4000-8000-000000000000"}
PATHS |= {"credential_id": "nc-none"}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/api/sync/jobs"): {"integrationId": "none", "type": "full"},
    ("POST", "/api/v1/feeds/credentials"): {"name": "matrix"},
    ("PUT", "/api/sync/jobs/{job_id}/interval"): {"interval": 5},
    ("PUT", "/api/sync/integrations/{integration_id}"): {"name": "x"},
    ("POST", "/api/admin/servers/parity"): {"server_id": "none"},
    ("POST", "/api/v1/sync/files"): {"sourceDirectory": "/etc/a", "targetDirectory": "/etc/b"},
    ("PUT", "/api/v1/admin/users/{user_id}"): {"role": "user"},
    ("PUT", "/api/v1/sync/devices/{device_id}"): {"name": "x"},
    ("POST", "/api/v1/sync/conflicts/{conflict_id}/resolve"): {"resolution": "manual"},
    ("PUT", "/api/v1/webhooks/{webhook_id}"): {"events": ["*"]},
    ("PATCH", "/api/v1/webhooks/{webhook_id}"): {"events": ["*"]},
    ("POST", "/api/v1/webhooks/{webhook_id}/replay"): {"fromPosition": 1},
}
OPEN = {"/", "/healthz", "/readyz", "/schema", "/schema/openapi.json", "/schema/rapidoc-min.js"}
OPEN |= {"/schema/asyncapi.json"}
#: Their signature is the credential (test_plane).
SIGNED = {"/api/sync/integrations/{integration_id}/hooks/plane"}
#: What opens without a token, for everybody.
LOGIN = ("POST", "/api/v1/auth/login")
#: The library's routes and what stands beside them (family 4).
#: What opens with any key, whatever its scopes.
ANY_KEY = {"/api/v1/health"}
LIBRARY = ("devices", "changes", "report", "ack", "conflicts", "upload", "download")
LIBRARY += ("snapshot", "versions", "restore", "tus", "media")
HARMLESS = "/api/sync/jobs?limit=1"


@dataclass(frozen=True)
class Route:
    method: str
    path: str

    @property
    def where(self) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: PATHS[match[1]], self.path)

    @property
    def body(self) -> Any:
        return BODIES.get((self.method, self.path))

    @property
    def is_family_1(self) -> bool:
        return self.path.startswith(("/api/admin/sync", "/api/admin/servers", "/api/data"))

    @property
    def is_family_2(self) -> bool:
        return self.path.startswith("/api/sync")

    @property
    def is_of_a_node(self) -> bool:
        """With a credential and answers of its own: tests/journeys/test_servers.py."""
        return self.path.startswith(("/api/servers", "/api/system", "/api/deauthorize-user", "/api/update"))

    @property
    def is_library(self) -> bool:
        name = self.path.removeprefix("/api/v1/sync/").partition("/")[0]
        return self.path.startswith("/api/v1/auth/") or name in LIBRARY

    @property
    def is_administration(self) -> bool:
        return self.path.startswith("/api/v1/admin/")

    @property
    def needs(self) -> str:
        if self.is_administration:
            return "admin"
        if self.path.startswith("/api/v1/feeds"):
            return "feeds:read" if self.method == "GET" else "feeds:write"
        if self.path.startswith("/api/v1/webhooks"):
            return "webhooks:read" if self.method == "GET" else "webhooks:write"
        if self.path == "/api/v1/sync/files":
            return "files:write"
        if self.path.startswith("/api/v1/sync/session"):
            return "sessions:read" if self.method == "GET" else "sessions:write"
        if self.is_family_1:
            return "network:read" if self.method == "GET" else "network:write"
        return "jobs:read" if self.method == "GET" else "jobs:write"


def all_routes(system: System) -> list[Route]:
    """Those that need some credential."""
    document = system.ok("GET", "/schema/openapi.json")
    found = [Route(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(found) > 20
    assert {part for route in found if route.is_library for part in LIBRARY if f"/{part}" in route.path} == {*LIBRARY}
    return [route for route in found if is_closed(route) and not route.is_of_a_node]


@pytest.fixture(scope="module")
def routes(system: System) -> list[Route]:
    return all_routes(system)


def is_closed(route: Route) -> bool:
    """Whether some credential is needed; OPTIONS tells only what could be asked."""
    open_ = route.path in OPEN | SIGNED | {"/metrics"} or (route.method, route.path) == LOGIN
    return not open_ and route.method != "OPTIONS"


@pytest.fixture(scope="module")
def other(system: System) -> str:
    """The token of another tenant's administrator."""
    system.undrift("tenants", "add", "matrix-other")
    return system.key("matrix-admin", "admin", tenant="matrix-other")


@pytest.fixture(scope="module")
def scoped(system: System) -> dict[str, str]:
    """A token for each scope that this release has routes for."""
    scopes: tuple[str, ...] = ("jobs:read", "jobs:write", "files:read", "files:write", "feeds:read", "feeds:write")
    scopes += ("network:read", "network:write", "webhooks:read", "webhooks:write")
    scopes += ("sessions:read", "sessions:write")
    return {scope: system.key(f"matrix-{scope}", scope) for scope in scopes}


def shape(answer: Answer, route: Route, status: int) -> None:
    """The status, in the words of the route's family."""
    found = answer.json()
    assert status == answer.status, (route, answer)
    if route.is_family_1:
        assert (found["status"], found["message"] == found["error"]) == ("error", True)
    elif route.is_family_2:
        assert (found["success"], bool(found["error"]), bool(found["code"])) == (False, True, True)
    elif route.is_library or route.is_administration:
        assert set(found) == {"error"}
    else:
        assert {"errorCode", "message", "details", "timestamp"} <= found.keys()


WRONG = {
    "no scheme": "x",
    "basic": "Basic YWRtaW46YWRtaW4=",
    "empty": "Bearer ",
    "short": "Bearer udk_admin_short",
    "forged": "Bearer udk_admin_" + "A" * 43,
    "unknown": "Bearer udk_nobody_" + "A" * 43,
    "long": "Bearer udk_admin_" + "A" * 5000,
    "two": "Bearer a, Bearer b",
    "quote": "Bearer udk_' or 1=1 --_" + "A" * 43,
}


#: Whoever queues jobs may look at those.
OWN_JOBS = {"/api/sync/jobs", "/api/sync/jobs/{job_id}", "/api/sync/jobs/{job_id}/events"}
OWN_JOBS |= {"/api/sync/jobs/{job_id}/history", "/api/v1/why/{kind}/{id}"}
OWN_JOBS |= {"/api/sync/jobs/{job_id}/diff/{other_id}"}


@pytest.mark.parametrize("credential", WRONG.values(), ids=WRONG)
def test_a_wrong_token_opens_nothing(system: System, routes: list[Route], credential: str) -> None:
    before = system.head()
    for route in routes:
        answer = system.call(route.method, route.where, route.body, headers={"Authorization": credential})
        shape(answer, route, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "udk_" not in answer.body.decode()
    assert before == system.head()


def test_a_scope_opens_its_routes_and_no_other(system: System, routes: list[Route], scoped: dict[str, str]) -> None:
    for route in routes:
        for scope, token in scoped.items():
            answer = system.call(route.method, route.where, route.body, token=token)
            own_jobs = route.path in OWN_JOBS and route.method == "GET"
            if route.is_library:
                shape(answer, route, 401)
            elif scope == route.needs or own_jobs or route.path in ANY_KEY:
                # without directories there is nothing that the network could be synced from
                assert answer.status not in (401, 500) or route.path == "/api/admin/sync", (route, scope, answer)
                assert answer.status != 403 or route.path == "/api/v1/sync/files", (route, scope, answer)
            else:
                shape(answer, route, 403)


def test_without_a_token_only_the_open_families_are_open(system: System, routes: list[Route]) -> None:
    for route in routes:
        answer = system.call(route.method, route.where, route.body)
        if route.is_family_1 or route.is_family_2:
            assert answer.status not in (401, 403), (route, answer)
        else:
            shape(answer, route, 401)


FOREIGN = {
    "host": {"Host": "evil.example"},
    "host like ours": {"Host": "localhost.evil.example"},
    "host with user": {"Host": "localhost@evil.example"},
    "numbers": {"Host": "127.0.0.2"},
    "origin": {"Origin": "https://evil.example"},
    "null origin": {"Origin": "null"},
    "other port": {"Origin": "http://localhost:9999"},
    "origin like ours": {"Origin": "http://localhost:3000.evil.example"},
    "both": {"Host": "evil.example", "Origin": "http://localhost:3000"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_page_from_elsewhere_is_not_this_machine(
    system: System, routes: list[Route], headers: dict[str, str]
) -> None:
    before = system.head()
    for route in routes:
        answer = system.call(route.method, route.where, route.body, headers=headers)
        shape(answer, route, 401)
        assert answer.headers.get("access-control-allow-origin") in (None, "http://localhost:3000")
    assert before == system.head()


def test_a_page_of_this_machine_is_welcome(system: System) -> None:
    for origin in ("http://localhost:5173", "http://127.0.0.1:3000", "http://[::1]:8080", system.ready["url"]):
        answer = system.get(HARMLESS, headers={"Origin": origin})
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == origin
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:8080"):
        assert system.get(HARMLESS, headers={"Host": host}).status == 200


def test_a_request_without_a_host_is_refused(system: System) -> None:
    address = system.ready["url"].removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.putrequest("GET", HARMLESS, skip_host=True)
        connection.endheaders()
        assert connection.getresponse().status in (400, 401)
    finally:
        connection.close()


def test_what_needs_no_token(system: System) -> None:
    for path in OPEN:
        assert system.get(path).status == 200
        assert system.get(path, headers={"Host": "elsewhere.example"}).status == 200
        head = system.call("HEAD", path)
        assert (head.status, head.body) == (200, b"")
    assert b"undrift_log_head" in system.get("/metrics").body


# Foreign is unknown.


@pytest.fixture(scope="module")
def theirs(system: System) -> dict[str, str]:
    """What the first tenant has."""
    system.integration("matrix", system.folder(a="1"), system.place(), interval=3600)
    job = system.queue("matrix")
    system.wait(job)
    hook = {"url": "https://hooks.example.org/", "events": ["device.stale"]}
    webhook = system.ok("POST", "/api/v1/webhooks/subscribe", hook, token=ADMIN)["subscriptionId"]
    locations = {"sourceLocation": "System1", "targetLocation": "System2"}
    session = system.ok("POST", "/api/v1/sync/session/start", locations, token=ADMIN)["sessionId"]
    found = {**PATHS, "id": job, "webhook_id": webhook, "sync_session_id": session}
    return {**found, "job_id": job, "integration_id": "matrix", "other_id": job, "user_id": user(system).id}


def told(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """Everything that an answer tells, but when it was given and to which address."""
    body = re.sub(rb'"timestamp":"[^"]*"', b"", answer.body)
    left = ("date", "x-ratelimit-remaining", "x-ratelimit-reset", "undrift-position")
    return answer.status, body, {name: text for name, text in answer.headers.items() if name not in left}


def test_what_is_foreign_is_unknown(system: System, routes: list[Route], theirs: dict[str, str], other: str) -> None:
    before = [one for one in system.events() if one["subject"].startswith(("jobs/", "integrations/"))]
    for route in routes:
        if "{" not in route.path or route.is_library:
            continue
        where = re.sub(r"\{(\w+)\}", lambda match: theirs[match[1]], route.path)
        foreign = system.call(route.method, where, route.body, token=other)
        unknown = system.call(route.method, route.where, route.body, token=other)
        assert foreign.status == 404, (route, foreign)
        assert told(foreign) == told(unknown), route
    body = {"integrationId": "matrix", "type": "full"}
    foreign = system.post("/api/sync/jobs", body, token=other)
    unknown = system.post("/api/sync/jobs", {**body, "integrationId": "none"}, token=other)
    assert told(foreign) == told(unknown)
    assert before == [one for one in system.events() if one["subject"].startswith(("jobs/", "integrations/"))]


def test_a_tenant_lists_and_stops_only_its_own(system: System, theirs: dict[str, str], other: str) -> None:
    assert system.ok("GET", "/api/sync/jobs", token=other) == {"jobs": [], "total": 0}
    assert system.ok("GET", f"/api/sync/jobs?integrationId={theirs['integration_id']}", token=other)["total"] == 0
    assert system.ok("GET", "/api/sync/integrations", token=other) == {"integrations": [], "total": 0}
    assert system.ok("GET", "/api/sync/integrations/status", token=other) == {"integrations": []}
    assert system.ok("POST", "/api/sync/initialize", token=other)["integrationsFound"] == 0
    with system.idle():
        id = system.queue("matrix")
        assert system.ok("POST", "/api/sync/jobs/stop-all", token=other)["stoppedJobs"] == 0
        own = {"integrationId": "matrix"}
        assert system.ok("POST", "/api/sync/jobs/stop-all", own, token=other)["stoppedJobs"] == 0
        assert system.status(id) == "queued"
    system.wait(id)


def test_names_and_keys_of_tenants_do_not_meet(system: System, theirs: dict[str, str], other: str) -> None:
    config = {"sourceDirectory": str(system.roots / "o1"), "targetDirectory": str(system.roots / "o2")}
    body = {"id": theirs["integration_id"], "name": "Mine", "kind": "files", "config": config}
    headers = {"Idempotency-Key": "shared"}
    mine = system.post("/api/sync/integrations", body, token=other, headers=headers)
    assert (mine.status, mine.json()["name"]) == (200, "Mine")
    assert system.ok("GET", "/api/sync/integrations/matrix")["name"] == "Integration matrix"
    first = system.post("/api/sync/jobs/stop-all", {"integrationId": "x"}, headers=headers, token=ADMIN)
    assert first.status == 200
    system.ok("DELETE", "/api/sync/integrations/matrix", token=other)
    assert system.ok("GET", "/api/sync/integrations/matrix")["name"] == "Integration matrix"


def test_two_keys_of_a_tenant_have_their_own_idempotency_keys(system: System) -> None:
    one, two = (system.key(f"matrix-own-{n}", "jobs") for n in (1, 2))
    headers = {"Idempotency-Key": "own"}
    assert system.post("/api/sync/jobs/stop-all", {"integrationId": "a"}, token=one, headers=headers).status == 200
    assert system.post("/api/sync/jobs/stop-all", {"integrationId": "b"}, token=two, headers=headers).status == 200
    assert system.post("/api/sync/jobs/stop-all", {"integrationId": "b"}, token=one, headers=headers).status == 422


def test_a_key_reads_the_jobs_that_it_queued_and_no_other(system: System, theirs: dict[str, str]) -> None:
    token = system.key("matrix-writer", "jobs:write")
    body = {"integrationId": "matrix", "type": "full"}
    mine = system.ok("POST", "/api/sync/jobs", body, token=token)["jobId"]
    assert system.ok("GET", f"/api/sync/jobs/{mine}", token=token)["id"] == mine
    assert [one["id"] for one in system.ok("GET", "/api/sync/jobs", token=token)["jobs"]] == [mine]
    answer = system.get(f"/api/sync/jobs/{theirs['job_id']}", token=token)
    assert (answer.status, answer.json()["code"]) == (403, "FORBIDDEN")
    system.wait(mine)


def test_a_key_bound_to_a_root_stays_in_it(system: System) -> None:
    inside, outside = system.folder(a="1"), system.folder(b="2")
    token = system.key("matrix-rooted", "files", "jobs", roots=[inside])
    (inside / "from").mkdir()

    def ask(source: Any, target: Any, **headers: str) -> Answer:
        body = {"sourceDirectory": str(source), "targetDirectory": str(target)}
        return system.post("/api/v1/sync/files", body, token=token, headers=headers)

    assert ask(inside / "from", inside / "to").status == 200
    for headers in ({}, {"Prefer": "return=plan"}, {"Prefer": "respond-async"}):
        assert ask(outside, inside / "to", **headers).status == 403
        assert ask(inside / "from", outside, **headers).status == 403
        assert ask(inside / "from", f"{inside}x", **headers).status == 403
    config = {"sourceDirectory": str(outside), "targetDirectory": str(inside / "to")}
    made = system.post("/api/sync/integrations", {"name": "x", "kind": "files", "config": config}, token=token)
    assert made.status == 403


def test_a_revoked_key_opens_nothing_from_then_on(system: System) -> None:
    token = system.key("matrix-revoked", "jobs:read")
    assert system.get(HARMLESS, token=token).status == 200
    [id] = [one["id"] for one in system.undrift("keys", "list")["keys"] if one["name"] == "matrix-revoked"]
    system.undrift("keys", "revoke", id)
    assert system.get(HARMLESS, token=token).status == 401
    system.replaced("gateway", system.kill("gateway"))
    assert system.get(HARMLESS, token=token).status == 401


def secret_of(token: str) -> str:
    """What follows `udk_<id>_`, whole: it may hold underscores itself, and its last part alone is found anywhere."""
    secret = token.split("_", 2)[2]
    assert len(secret) == 43
    return secret


def holding(system: System, needle: str) -> set[str]:
    """The names of the instance's files that hold these bytes."""
    command = ["grep", "-rlFa", "-e", needle, str(system.directory), str(system.log)]
    return {Path(name).name for name in subprocess.run(command, capture_output=True, text=True).stdout.split()}


def test_a_token_is_kept_nowhere(system: System) -> None:
    token = system.key("matrix-canary", "jobs", "files")
    assert system.get(HARMLESS, token=token).status == 200
    assert system.get("/api/v1/feeds/events", token=token).status == 403
    system.call("POST", "/api/sync/jobs", b"{", token=token)
    secret = secret_of(token)
    assert holding(system, secret) == set()
    assert holding(system, secret_of(system.ready["admin_token"])) == {"ready.json", "admin.token"}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret.encode() not in path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_closed_to_everybody_without_a_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    closed = System(tmp_path_factory.mktemp("closed"), settings=f"{QUICK}\n[auth]\nopen_loopback = false\n")
    try:
        closed.start()
        document = closed.ok("GET", "/schema/openapi.json")
        for path, methods in document["paths"].items():
            for method in methods:
                route = Route(method.upper(), path)
                if is_closed(route) and not route.is_of_a_node:
                    shape(closed.call(route.method, route.where, route.body), route, 401)
        assert closed.get(HARMLESS, token=ADMIN).status == 200
        assert closed.get("/metrics").status == 200
    finally:
        closed.stop()
