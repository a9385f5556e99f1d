"""The QMail document's endpoints over a whole instance, with directory servers on loopback."""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.doubles import network_oracle
from tests.doubles.directories import Content, Directories, content, lie
from tests.journeys.system import ADMIN, QUICK, System, at_once, until

SEEDS = Path(__file__).parents[2].parent / "shared" / "seeds"
NODE = shutil.which("node")
TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
FAULTS = ("down", "slow", "lying", "stale", "garbage", "noise", "huge", "dripping", "redirecting", "broken", "cut")
SORRY = "Failed to connect to RAIDA network. Please check network connectivity."


@pytest.fixture(scope="module")
def listening() -> Iterator[int]:
    """A port on loopback that accepts connections: where the QMail servers are."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def truth(listening: int) -> Content:
    return content(random.Random(0), users=60, ports=[listening])


@pytest.fixture(scope="module")
def directories(truth: Content) -> Iterator[Directories]:
    with Directories(25, truth) as running:
        yield running


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, directories: Directories) -> Iterator[System]:
    """An instance that asks 25 directories."""
    settings = f"""{QUICK}
[network]
directories = {json.dumps(directories.urls)}
timeout_s = 4.0
patience_s = 0.5
max_rows = 5000
"""
    made = System(tmp_path_factory.mktemp("network"), settings)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def net(network: System, directories: Directories, truth: Content) -> System:
    """The same with every directory at its best and everything synced."""
    directories.become("ok")
    directories.serve(truth)
    network.ok("POST", "/api/admin/sync")
    return network


def sync(system: System, **more: Any) -> Any:
    answer = system.post("/api/admin/sync", **more)
    found = answer.json()
    assert TIMESTAMP.fullmatch(found["timestamp"])
    if answer.status != 200:
        assert (found["status"], found["users_synced"], found["servers_synced"]) == ("error", 0, 0)
        assert found["message"] == found["error"]
    return answer


def run_log(system: System) -> list[str]:
    """What the last run said."""
    newest = system.ok("GET", "/api/sync/jobs?integrationId=network&limit=1")["jobs"][0]["id"]
    return [line["message"] for line in system.ok("GET", f"/api/sync/jobs/{newest}")["logs"]]


def stored(system: System) -> dict[str, dict[str, Any]]:
    """entity -> id -> content, of all that is there."""
    rows = system.sql(
        "select distinct on (stream_id) topic, convert_from(state, 'utf8') from undrift.events"
        " where topic like 'items.%%' order by stream_id, version desc"
    )
    found: dict[str, dict[str, Any]] = {"users": {}, "servers": {}, "raida_servers": {}}
    for topic, state in rows:
        event = json.loads(state)
        if topic != "items.deleted":
            found[event["entity"]][event["item"]] = event["content"]
    return found


# The call itself.


def test_a_sync_says_what_the_document_says(net: System, truth: Content) -> None:
    answer = net.post("/api/admin/sync", headers={"Content-Type": "application/json", "Content-Length": "0"})
    assert answer.status == 200
    found = answer.json()
    assert TIMESTAMP.fullmatch(found.pop("timestamp"))
    assert found == {"status": "success", "users_synced": 60, "servers_synced": 25, "raida_servers_synced": 25}
    assert answer.position > 0
    assert stored(net) == network_oracle.meant(truth)


def test_directories_are_asked_as_the_real_client_asks(net: System, directories: Directories) -> None:
    asked = directories.all[0].asked[-3:]
    assert {path for path, _ in asked} == {"/service/users", "/service/qmail_servers", "/service/raida_servers"}
    assert {fields["user-agent"] for _, fields in asked} == {"QMail-Client/1.0"}


def test_nothing_new_changes_nothing(net: System) -> None:
    before = stored(net)
    head = net.head()
    assert sync(net).json()["users_synced"] == 60
    assert {event["type"].partition(".")[0] for event in net.events(head)} <= {"jobs", "collections"}
    assert stored(net) == before


def test_of_25_directories_9_are_down_and_3_lie(net: System, directories: Directories, truth: Content) -> None:
    newer = replace(truth, users=(*truth.users[1:], replace(truth.users[0], fee="9.5")))
    pick = random.Random(1)
    directories.serve(newer)
    for number in range(3):
        directories.serve(lie(pick, newer), number)
    directories.become("down", *range(3, 12))
    found = sync(net).json()
    assert (found["users_synced"], found["servers_synced"]) == (60, 25)
    assert stored(net) == network_oracle.meant(newer)
    said = run_log(net)
    urls = directories.urls
    assert {line.split()[0] for line in said if "dissents" in line} == set(urls[:3])
    assert {line.split(": ")[0] for line in said if "no connection" in line} == set(urls[3:12])


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_12_faulty_directories(net: System, directories: Directories, truth: Content, seed: int) -> None:
    pick = random.Random(seed)
    newer = replace(truth, users=tuple(replace(one, fee=f"{seed}.5") for one in truth.users[:9]) + truth.users[9:])
    directories.serve(newer)
    for number in pick.sample(range(25), 12):
        kind = pick.choice(FAULTS)
        if kind == "stale":
            directories.serve(truth, number)
        elif kind == "lying":
            directories.serve(lie(pick, newer), number)
        else:
            directories.become(kind, number)
    assert sync(net).status == 200
    assert stored(net) == network_oracle.meant(newer)


@pytest.mark.parametrize("how", ["down", "broken", "garbage", "lying", "redirecting", "slow"])
def test_13_are_too_many(net: System, directories: Directories, truth: Content, how: str) -> None:
    before = stored(net)
    head = net.head()
    if how == "lying":
        for number in range(13):
            other = tuple(replace(one, fee=f"{number}.25") for one in truth.users)
            directories.serve(replace(truth, users=other), number)
    else:
        directories.become(how, *range(13))
    answer = sync(net)
    assert answer.status == 500
    assert "25" in answer.json()["message"]
    assert stored(net) == before
    assert not [event for event in net.events(head) if event["type"].startswith(("items.", "collections."))]


def test_when_nobody_answers_the_document_says_so(net: System, directories: Directories) -> None:
    directories.become("down")
    answer = sync(net)
    assert (answer.status, answer.json()["message"]) == (500, SORRY)


def test_what_vanishes_from_the_lists(net: System, directories: Directories, truth: Content) -> None:
    directories.serve(replace(truth, users=truth.users[1:], qmail=truth.qmail[:-1]))
    assert sync(net).json()["servers_synced"] == 24
    last = truth.qmail[-1]["server_id"]
    shown = net.ok("GET", "/api/data/servers")
    assert (shown["count"], shown["include_unavailable"]) == (24, False)
    assert last not in [one["server_id"] for one in shown["servers"]]
    assert net.get("/api/data/servers?include_unavailable=perhaps").status == 400
    everything = net.ok("GET", "/api/data/servers?include_unavailable=true")
    [gone] = [one for one in everything["servers"] if one["server_id"] == last]
    assert (everything["count"], gone["is_available"]) == (25, False)
    assert gone["last_seen"] < shown["servers"][0]["last_seen"]
    assert net.ok("GET", f"/api/data/users/search?q=%23{truth.users[0].serial}.")["count"] == 0
    directories.serve(truth)
    sync(net)
    assert net.ok("GET", "/api/data/servers")["count"] == 25


def test_a_mass_change_waits_for_a_person(net: System, directories: Directories, truth: Content) -> None:
    before = stored(net)
    head = net.head()
    directories.serve(replace(truth, users=()))
    answer = sync(net)
    assert (answer.status, stored(net)) == (500, before)
    assert "60 of 60 users would change" in answer.json()["message"]
    assert "jobs.held" in {event["type"] for event in net.events(head)}
    plan = answer.json()["plan"]
    assert sync(net, headers={"If-Match": '"' + "0" * 64 + '"'}).status == 412
    assert sync(net, headers={"If-Match": f'"{plan}"'}).json()["users_synced"] == 0
    assert stored(net)["users"] == {}
    directories.serve(truth)
    assert sync(net).json()["users_synced"] == 60
    assert stored(net) == before


def test_who_comes_meanwhile_joins(net: System, directories: Directories) -> None:
    directories.become("dripping", 0)
    asked, head = directories.asked(), net.head()
    answers = at_once(12, lambda _: net.post("/api/admin/sync"))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len([event for event in net.events(head) if event["type"] == "jobs.queued"]) == 1
    assert directories.asked() == asked + 75


def test_a_scheduled_run_is_joined_too(net: System, directories: Directories) -> None:
    directories.become("dripping", 0)
    with net.paused("worker"):  # nor does a client wait behind what runs there
        job = net.queue("network", options={"force": True})
        assert sync(net).status == 200
    assert net.status(job) == "completed"


def test_a_run_that_takes_too_long_is_called_off(tmp_path: Path, directories: Directories, truth: Content) -> None:
    directories.serve(truth)
    directories.become("ok")
    variables = {
        "UNDRIFT_NETWORK_DIRECTORIES": directories.urls[0],
        "UNDRIFT_NETWORK_WAIT_S": "4",
        "UNDRIFT_NETWORK_TIMEOUT_S": "1.5",
        "UNDRIFT_NETWORK_SYNC_AT_START": "false",
    }
    system = System(tmp_path, variables=variables).start()
    try:
        with system.numb():
            answer = sync(system)
            assert (answer.status, "too long" in answer.json()["message"]) == (500, True)
            [job] = system.ok("GET", "/api/sync/jobs")["jobs"]
            assert job["status"] == "stopped"
        assert sync(system).status == 200
        assert [one["status"] for one in system.ok("GET", "/api/sync/jobs")["jobs"]] == ["completed", "stopped"]
        [first] = system.sql("select min(pos) from undrift.events where topic = 'items.created'")
        [last] = system.sql("select max(pos) from undrift.events where topic = 'jobs.stopped'")
        assert first > last
        assert stored(system) == network_oracle.meant(truth)
        directories.become("slow")
        answer = sync(system)
        assert (answer.status, answer.json()["message"]) == (500, SORRY)
    finally:
        directories.become("ok")
        system.stop()


def test_a_worker_that_dies_meanwhile_is_replaced(net: System, directories: Directories, truth: Content) -> None:
    newer = replace(truth, users=(*truth.users[1:], replace(truth.users[0], last="Reborn")))
    directories.serve(newer)
    directories.become("slow")
    head = net.head()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sync, net)
        assert until(lambda: "jobs.started" in [event["type"] for event in net.events(head)])
        pid = net.kill("worker-now")
        directories.become("ok")
        assert answer.result(90).status == 200
    net.replaced("worker-now", pid)
    assert stored(net) == network_oracle.meant(newer)
    assert [event["type"] for event in net.events(head)].count("items.updated") == 1


def test_a_configuration_can_be_tested(net: System, directories: Directories) -> None:
    found = net.ok("POST", "/api/sync/integrations/network/test")
    assert (found["success"], found["integrationId"]) == (True, "network")
    directories.become("down", *range(13))
    found = net.ok("POST", "/api/sync/integrations/network/test")
    assert (found["success"], len([one for one in found["checks"] if not one["ok"]]) >= 13) == (False, True)


def test_it_need_not_be_waited_for(net: System) -> None:
    answer = net.post("/api/admin/sync", headers={"Prefer": "respond-async"})
    assert (answer.status, answer.json()["status"]) == (202, "accepted")
    job = answer.headers["location"].rpartition("/")[2]
    assert net.wait(job)["status"] == "completed"


def test_a_key_said_twice_is_one_run(net: System) -> None:
    first = net.post("/api/admin/sync", headers={"Idempotency-Key": "once"})
    second = net.post("/api/admin/sync", headers={"Idempotency-Key": "once"})
    assert (first.status, first.body) == (second.status, second.body)


def test_a_body_is_ignored_up_to_a_mebibyte(net: System) -> None:
    assert net.post("/api/admin/sync", b"\xff not json", headers={"Content-Type": "text/plain"}).status == 200
    assert net.post("/api/admin/sync", b"x" * (1 << 20)).status == 200
    assert sync(net, body=b"x" * ((1 << 20) + 1)).status == 413


# What else there is.


def test_servers_as_the_real_client_has_them(net: System, truth: Content) -> None:
    found = net.ok("GET", "/api/data/servers")
    assert [one["server_id"] for one in found["servers"]] == [f"RAIDA{n}" for n in range(25)]
    one = found["servers"][3]
    assert one["ping_ms"] >= 1
    assert TIMESTAMP.fullmatch(one["last_checked"])
    assert TIMESTAMP.fullmatch(one["last_seen"])
    said = truth.qmail[3]
    expected = {
        "server_id": "RAIDA3",
        "server_index": 3,
        "address": "127.0.0.1",
        "ip_address": "127.0.0.1",
        "port": said["port"],
        "server_type": "QMAIL",
        "cost_per_mb": said["cost_per_mb"],
        "cost_per_8_weeks": 1,
        "percent_uptime": said["percent_uptime"],
        "performance_benchmark_percentile": 0,
        "is_available": True,
        "use_for_parity": False,
        "region": said["region"],
        "description": "server 3",
        "date_created": None,
    }
    assert {name: one[name] for name in expected} == expected


def test_users_are_found_by_name_and_address(net: System, truth: Content) -> None:
    someone = truth.users[0]
    number = network_oracle.user(someone)["serial_number"]
    found = net.ok("GET", f"/api/data/users/search?q=NUMBER{number}")
    assert found["query"] == f"NUMBER{number}"
    assert {"name", "email", "serial_number", "class"} == found["users"][0].keys()
    assert number in [one["serial_number"] for one in found["users"]]
    assert net.ok("GET", "/api/data/users/search?q=number")["count"] == 20
    assert net.ok("GET", "/api/data/users/search?q=%25%25")["count"] == 0
    for query in ("", "?q=", "?q=%20"):
        answer = net.get(f"/api/data/users/search{query}")
        assert (answer.status, answer.json()["error"]) == (400, "Missing query")


def test_the_last_server_keeps_the_parity_until_somebody_chooses(net: System) -> None:
    found = net.ok("GET", "/api/admin/servers/parity")
    assert (found["status"], found["parity_server"]["server_id"]) == ("configured", "RAIDA24")
    shown = net.ok("GET", "/api/data/servers")["servers"]
    assert [one["server_id"] for one in shown if one["use_for_parity"]] == ["RAIDA24"]
    made = net.ok("POST", "/api/admin/servers/parity", {"server_id": "RAIDA1"})
    assert (made["status"], made["server_id"]) == ("success", "RAIDA1")
    sync(net)
    found = net.ok("GET", "/api/admin/servers/parity")["parity_server"]
    assert found.keys() == {"server_id", "server_index", "ip_address", "port", "server_type", "ping_ms", "is_available"}
    assert (found["server_id"], found["is_available"]) == ("RAIDA1", True)
    net.ok("POST", "/api/admin/servers/parity", {"server_id": "RAIDA24"})


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"server_id": 7}, 400), (b"", 400), (b"{", 400), ({"server_id": "nobody"}, 404)],
)
def test_a_parity_server_must_exist(net: System, body: Any, status: int) -> None:
    answer = net.post("/api/admin/servers/parity", body)
    found = answer.json()
    assert (answer.status, found["status"]) == (status, "error")
    assert found["message"] == found["error"] != ""


# Who may.

PATHS = [
    ("POST", "/api/admin/sync", "network:write"),
    ("POST", "/api/admin/servers/parity", "network:write"),
    ("GET", "/api/admin/servers/parity", "network:read"),
    ("GET", "/api/data/servers", "network:read"),
    ("GET", "/api/data/users/search?q=a", "network:read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), PATHS)
def test_who_may(net: System, method: str, path: str, scope: str) -> None:
    other = net.key(f"reader of {method} {path}", "jobs:read")
    refused = [
        net.call(method, path, token="udk_nobody_" + "a" * 43),
        net.call(method, path, headers={"Host": "evil.example"}),
        net.call(method, path, headers={"Origin": "https://evil.example"}),
        net.call(method, path, token=other),
    ]
    assert [answer.status for answer in refused] == [401, 401, 401, 403]
    for answer in refused:
        found = answer.json()
        assert found["status"] == "error"
        assert found["message"] == found["error"] != ""
    allowed = net.call(method, path, token=net.key(f"network of {method} {path}", scope))
    assert allowed.status in (200, 400)


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:3000", "http://localhost:8080"])
def test_pages_of_this_machine_may_call(net: System, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = net.call("OPTIONS", "/api/admin/sync", headers=asked)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-methods"].startswith("GET, POST, PUT, DELETE, OPTIONS")
    assert "Content-Type, Authorization" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-max-age"] == "3600"
    answer = net.post("/api/admin/sync", headers={"Origin": origin})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)


def test_another_tenant_has_no_network(net: System) -> None:
    net.undrift("tenants", "add", "second")
    token = net.key("theirs", "network", tenant="second")
    answer = sync(net, token=token)
    assert (answer.status, "UNDRIFT_NETWORK_DIRECTORIES" in answer.json()["message"]) == (500, True)
    shown = net.ok("GET", "/api/data/servers", token=token)
    assert shown == {"servers": [], "count": 0, "include_unavailable": False}
    found = net.ok("GET", "/api/admin/servers/parity", token=token)
    assert (found["status"], found["parity_server"]) == ("not_configured", None)
    assert net.post("/api/admin/servers/parity", {"server_id": "RAIDA1"}, token=token).status == 404


def test_unknown_paths_and_methods_speak_the_same_way(net: System) -> None:
    for method, path, status in (("GET", "/api/admin/sync", 405), ("GET", "/api/data/nothing", 404)):
        answer = net.call(method, path)
        assert (answer.status, answer.json()["status"]) == (status, "error")
        assert answer.json()["message"]


# The document's own programs.


def javascript() -> str:
    """The program of the document, as it stands there."""
    [text] = [text for path in SEEDS.glob("*.txt") if "POST /api/admin/sync" in (text := path.read_text())]
    return text.partition("JavaScript (async/await)\n")[2].partition("\ncURL\n")[0]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, directories: Directories) -> Iterator[tuple[System, str]]:
    """An instance on port 8080, and the program; where that port is taken, only the program's port is another."""
    variables = {"UNDRIFT_NETWORK_DIRECTORIES": ",".join(directories.urls), "UNDRIFT_NETWORK_SYNC_AT_START": "false"}
    system = System(tmp_path_factory.mktemp("documented"), port=8080 if _is_free(8080) else 0, variables=variables)
    try:
        system.start()
        port = urlsplit(system.ready["url"]).port
        yield system, javascript().replace("http://localhost:8080/", f"http://localhost:{port}/")
    finally:
        system.stop()


def _is_free(port: int) -> bool:
    try:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((host, port))
    except OSError:
        return False
    return True


@pytest.mark.skipif(NODE is None, reason="needs node (Debian package nodejs)")
def test_the_documents_program_runs_unchanged(
    documented: tuple[System, str], directories: Directories, truth: Content
) -> None:
    _, program = documented
    directories.become("ok")
    directories.serve(truth)
    done = _node(program)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "Starting synchronization...",
        "Sync Status: success",
        "Users Synced: 60",
        "Servers Synced: 25",
    ]
    assert TIMESTAMP.fullmatch(lines[4].removeprefix("Completed at: "))
    assert lines[5] == "Sync completed successfully"


@pytest.mark.skipif(NODE is None, reason="needs node (Debian package nodejs)")
def test_the_documents_program_says_what_failed(documented: tuple[System, str], directories: Directories) -> None:
    _, program = documented
    directories.become("down")
    done = _node(program)
    assert done.stdout == "Starting synchronization...\n"
    assert f"Synchronization failed: Error: {SORRY}" in done.stderr
    assert f"Sync error: Error: {SORRY}" in done.stderr


def _node(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(NODE), "-e", program], capture_output=True, text=True, timeout=90)


def test_a_client_that_never_looks_at_the_status(
    documented: tuple[System, str], directories: Directories, truth: Content
) -> None:
    """As the document's Go program: a POST without a body, then the body's status and the types of its fields."""
    system, _ = documented
    directories.become("ok")
    directories.serve(truth)
    assert _as_go(system) == ("success", 60, 25)
    directories.become("down")
    with pytest.raises(RuntimeError, match=r"^sync failed: Failed to connect"):
        _as_go(system)
    with pytest.raises(RuntimeError, match=r"^sync failed: A valid credential"):
        _as_go(system, Host="evil.example")


def _as_go(system: System, **fields: str) -> tuple[str, int, int]:
    address = urlsplit(system.ready["url"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=90)
    sent = {"Content-Type": "application/json", "Content-Length": "0", "User-Agent": "Go-http-client/1.1", **fields}
    try:
        connection.request("POST", "/api/admin/sync", headers={**sent, "Accept-Encoding": "gzip"})
        found = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    for name, kind in (("status", str), ("users_synced", int), ("servers_synced", int), ("timestamp", str)):
        assert type(found[name]) is kind, name
    if found["status"] == "error":
        raise RuntimeError(f"sync failed: {found.get('message', '')}")
    return found["status"], found["users_synced"], found["servers_synced"]


# By itself.


def test_it_runs_at_the_start_and_on_its_schedule(tmp_path: Path, directories: Directories, truth: Content) -> None:
    directories.become("ok")
    directories.serve(truth)
    variables = {
        "UNDRIFT_NETWORK_DIRECTORIES": directories.urls[0],
        "UNDRIFT_NETWORK_SYNC_INTERVAL_S": "1",
        "UNDRIFT_NETWORK_PING": "false",
    }
    system = System(tmp_path, variables=variables).start()
    try:
        assert until(lambda: len(stored(system)["users"]) == 60), system.said()
        [found, *_] = until(lambda: system.ok("GET", "/api/data/servers")["servers"])
        assert (found["ping_ms"], found["last_checked"]) == (None, None)
        listing = "/api/sync/jobs?integrationId=network&status=completed"
        assert until(lambda: bool(system.ok("GET", listing)["total"] >= 3)), system.said()
        listed = system.ok("GET", "/api/sync/integrations/network")
        assert (listed["kind"], listed["syncInterval"]) == ("network", 1)
        assert system.ok("GET", "/api/sync/collections/network/items?entity=raida_servers", token=ADMIN)
    finally:
        system.stop()
