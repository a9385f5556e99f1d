"""Webhooks from outside: subscribe, change, rotate, look at what was sent, and have it once more."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.journeys.system import ADMIN, Answer, System, at_once, until
from tests.journeys.test_auth_matrix import holding

BASE = "/api/v1/webhooks"
TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
URL = "https://hooks.example.org/undrift"
SHAPE = {
    "subscriptionId",
    "url",
    "events",
    "description",
    "enabled",
    "disabledReason",
    "disabledAt",
    "previousSecretUntil",
    "createdAt",
    "updatedAt",
}


class Receiver(http.server.ThreadingHTTPServer):
    """Takes whatever is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for where, headers, body in self.taken if where == path]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Receiver)
        self.server.taken.append((self.path, {name.lower(): text for name, text in self.headers.items()}, body))
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tenant(system: System) -> str:
    """The token of an administrator of a tenant in which nobody else does anything."""
    system.undrift("tenants", "add", "hooked")
    return system.key("hooked-admin", "admin", tenant="hooked")


def subscribe(system: System, *events: str, url: str = URL, token: str = ADMIN, **more: Any) -> dict[str, Any]:
    body = {"url": url, "events": events or ("sync.completed",), **more}
    made: dict[str, Any] = system.ok("POST", f"{BASE}/subscribe", body, token=token)
    return made


def refused(answer: Answer, status: int = 400, code: str = "INVALID_REQUEST") -> None:
    assert (status, code) == (answer.status, answer.json()["errorCode"]), answer
    assert {"errorCode", "message", "details", "timestamp"} <= answer.json().keys()


def synced(system: System, name: str) -> str:
    """The id of a sync that completed."""
    system.integration(name, system.folder(a="1", b="2"), system.place())
    job = system.queue(name)
    assert system.wait(job)["status"] == "completed"
    return job


# Subscribing.


def test_a_webhook_is_subscribed_shown_changed_and_forgotten(system: System) -> None:
    made = subscribe(system, "sync.completed", "sync.failed", "sync.completed", description="mine")
    assert made.keys() == {"subscriptionId", "url", "events", "createdAt", "secret"}
    assert (made["url"], made["events"]) == (URL, ["sync.completed", "sync.failed"])
    assert TIME.fullmatch(made["createdAt"])
    assert made["secret"].startswith("whsec_")
    assert len(base64.b64decode(made["secret"].removeprefix("whsec_"), validate=True)) == 32
    where = f"{BASE}/{made['subscriptionId']}"
    shown = system.ok("GET", where, token=ADMIN)
    assert shown.keys() == SHAPE
    assert (shown["description"], shown["enabled"], shown["disabledReason"]) == ("mine", True, None)
    listed = system.ok("GET", BASE, token=ADMIN)
    assert shown in listed["webhooks"]
    assert listed["total"] == len(listed["webhooks"])
    changed = system.ok("PUT", where, {"events": ["jobs.*"], "description": ""}, token=ADMIN)
    assert (changed["url"], changed["events"], changed["description"]) == (URL, ["jobs.*"], "")
    patched = system.ok("PATCH", where, {"url": f"{URL}/2"}, token=ADMIN)
    assert (patched["url"], patched["events"]) == (f"{URL}/2", ["jobs.*"])
    assert system.ok("GET", where, token=ADMIN) == patched
    assert system.ok("DELETE", where, token=ADMIN) == {"success": True, "deleted": made["subscriptionId"]}
    for method, path, body in (("GET", "", None), ("PUT", "", {"events": ["*"]}), ("DELETE", "", None)):
        refused(system.call(method, where + path, body, token=ADMIN), 404, "NOT_FOUND")


def test_a_retry_makes_no_second_webhook_and_shows_the_same_secret(system: System) -> None:
    body = {"url": URL, "events": ["*"], "description": "retried"}
    key = {"Idempotency-Key": "webhook-once"}
    answers = at_once(4, lambda _: system.post(f"{BASE}/subscribe", body, token=ADMIN, headers=key))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].body == system.post(f"{BASE}/subscribe", body, token=ADMIN, headers=key).body
    listed = system.ok("GET", BASE, token=ADMIN)["webhooks"]
    assert [one["description"] for one in listed].count("retried") == 1
    refused(system.post(f"{BASE}/subscribe", {**body, "events": ["jobs.*"]}, token=ADMIN, headers=key), 422)


def test_a_secret_is_shown_once_and_kept_nowhere_in_clear(system: System) -> None:
    made = subscribe(system, "*")
    secret = made["secret"].removeprefix("whsec_")
    where = f"{BASE}/{made['subscriptionId']}"
    rotated = system.ok("POST", f"{where}/rotate", token=ADMIN)
    for path in (where, BASE, f"{where}/deliveries", f"{where}/events", "/api/v1/feeds/events?limit=1000"):
        said = system.get(path, token=ADMIN).body.decode()
        assert secret not in said
        assert rotated["secret"].removeprefix("whsec_") not in said
    assert holding(system, secret) == set()
    assert holding(system, base64.b64decode(secret).hex()) == set()
    assert secret != subscribe(system, "*")["secret"].removeprefix("whsec_")


BAD: list[dict[str, Any]] = [
    {},
    {"url": URL},
    {"events": ["*"]},
    {"url": URL, "events": []},
    {"url": URL, "events": ["sync.finished"]},
    {"url": URL, "events": ["sync.completed", "keys.added"]},
    {"url": URL, "events": "sync.completed"},
    {"url": URL, "events": [None]},
    {"url": URL, "events": ["*"] * 101},
    {"url": URL, "events": ["*"], "description": "x" * 1001},
    {"url": URL, "events": ["*"], "description": "a\nb"},
]
BAD_URLS = [
    "",
    "hooks.example.org",
    "ftp://hooks.example.org/",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "http://hooks.example.org/",
    "https://",
    "https:///path",
    "https://user:password@hooks.example.org/",
    "https://hooks.example.org/#fragment",
    "https://hooks.example.org:22/",
    "https://hooks.example.org:99999/",
    "https://hooks.example.org/a b",
    "https://hooks.example.org/\\@127.0.0.1/",
    f"https://hooks.example.org/{'x' * 2048}",
    "https://intranet/",
    "https://printer.local/",
]
PRIVATE = [
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[::]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:10.0.0.1]",
    "[64:ff9b::a00:1]",
    "[2002:a00:1::]",
    "[fec0::1]",
    "[ff02::1]",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "169.254.43518",
    "0x0a.0.0.1",
    "10.1",
    "\uff11\uff10.0.0.1",
    "①⑥⑨.254.169.254",
    "169。254。169。254",
]


@pytest.mark.parametrize("body", [*BAD, *({"url": url, "events": ["*"]} for url in BAD_URLS)])
def test_what_is_no_subscription_is_refused(system: System, body: dict[str, Any]) -> None:
    before = system.head()
    refused(system.post(f"{BASE}/subscribe", body, token=ADMIN))
    assert system.head() == before


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_refused_however_it_is_spelled(system: System, host: str) -> None:
    for url in (f"https://{host}/", f"http://{host}/", f"https://{host}:443/hook"):
        refused(system.post(f"{BASE}/subscribe", {"url": url, "events": ["*"]}, token=ADMIN))
    made = subscribe(system)
    refused(system.call("PUT", f"{BASE}/{made['subscriptionId']}", {"url": f"https://{host}/"}, token=ADMIN))
    system.ok("DELETE", f"{BASE}/{made['subscriptionId']}", token=ADMIN)


def test_this_machine_is_allowed_in_the_embedded_mode(system: System) -> None:
    for url in ("http://127.0.0.1:5000/", "http://localhost:5000/", "https://[::1]:5000/"):
        made = subscribe(system, url=url)
        system.ok("DELETE", f"{BASE}/{made['subscriptionId']}", token=ADMIN)


def test_the_catalogue_lists_what_can_be_asked_for(system: System) -> None:
    listed = {one["name"]: one["topics"] for one in system.ok("GET", f"{BASE}/catalogue", token=ADMIN)["events"]}
    assert "jobs.completed" in listed["sync.completed"]
    assert listed["endpoint.disabled"] == ["webhooks.disabled"]
    made = subscribe(system, *list(listed)[:50])
    assert made["events"] == list(listed)[:50]
    system.ok("DELETE", f"{BASE}/{made['subscriptionId']}", token=ADMIN)


def test_a_tenant_has_so_many_places_and_no_more(system: System) -> None:
    system.undrift("tenants", "add", "hooked-full")
    token = system.key("hooked-full", "webhooks", tenant="hooked-full")
    body = {"url": URL, "events": ["*"]}
    for _ in range(97):
        subscribe(system, token=token)
    answers = at_once(6, lambda _: system.post(f"{BASE}/subscribe", body, token=token))
    assert sorted(answer.status for answer in answers) == [200] * 3 + [409] * 3
    listed = system.ok("GET", BASE, token=token)
    assert listed["total"] == 100
    system.ok("DELETE", f"{BASE}/{listed['webhooks'][50]['subscriptionId']}", token=token)
    subscribe(system, token=token)
    refused(system.post(f"{BASE}/subscribe", body, token=token), 409, "CONFLICT")


# Whose it is.


def calls(id: str) -> list[tuple[str, str, Any]]:
    one = f"{BASE}/{id}"
    return [
        ("GET", one, None),
        ("PUT", one, {"events": ["*"]}),
        ("PATCH", one, {"description": "x"}),
        ("DELETE", one, None),
        ("POST", f"{one}/rotate", None),
        ("POST", f"{one}/test", None),
        ("POST", f"{one}/enable", None),
        ("GET", f"{one}/deliveries", None),
        ("POST", f"{one}/deliveries/1/redeliver", None),
        ("POST", f"{one}/replay", {"fromPosition": 1}),
        ("GET", f"{one}/events", None),
    ]


def test_what_is_foreign_is_unknown(system: System, tenant: str) -> None:
    mine = subscribe(system, description="foreign")["subscriptionId"]
    pairs = zip(calls(mine), calls("wh-" + "0" * 32), strict=True)
    for (method, foreign, body), (_, unknown, _) in pairs:
        answers = [system.call(method, path, body, token=tenant) for path in (foreign, unknown)]
        for answer in answers:
            refused(answer, 404, "NOT_FOUND")
        said = [{**answer.json(), "timestamp": ""} for answer in answers]
        assert said[0] == said[1]
    assert system.ok("GET", BASE, token=tenant)["total"] == 0
    assert system.ok("GET", f"{BASE}/{mine}", token=ADMIN)["description"] == "foreign"


def test_reading_is_not_writing(system: System) -> None:
    made = subscribe(system)["subscriptionId"]
    reader = system.key("hooks-reader", "webhooks:read")
    neither = system.key("hooks-neither", "feeds", "jobs")
    for method, path, body in calls(made):
        if method == "GET":
            assert system.call(method, path, body, token=reader).status == 200
        else:
            refused(system.call(method, path, body, token=reader), 403, "FORBIDDEN")
        refused(system.call(method, path, body, token=neither), 403, "FORBIDDEN")
    refused(system.post(f"{BASE}/subscribe", {"url": URL, "events": ["*"]}, token=reader), 403, "FORBIDDEN")


# Secrets that follow one another.


def test_a_rotated_secret_is_another_and_the_one_before_stays_for_a_while(system: System) -> None:
    made = subscribe(system)
    where = f"{BASE}/{made['subscriptionId']}"
    key = {"Idempotency-Key": "rotate-once"}
    first = system.post(f"{where}/rotate", {"overlapSeconds": 60}, token=ADMIN, headers=key)
    again = system.post(f"{where}/rotate", {"overlapSeconds": 60}, token=ADMIN, headers=key)
    assert (first.status, first.body) == (200, again.body)
    rotated = first.json()
    assert rotated.keys() == {"subscriptionId", "secret", "previousSecretUntil"}
    assert rotated["secret"] != made["secret"]
    assert system.ok("GET", where, token=ADMIN)["previousSecretUntil"] == rotated["previousSecretUntil"]
    others = at_once(3, lambda _: system.ok("POST", f"{where}/rotate", token=ADMIN)["secret"])
    assert len({made["secret"], rotated["secret"], *others}) == 5
    for body in ({"overlapSeconds": 86_401}, {"overlapSeconds": -1}, {"overlapSeconds": "1"}):
        refused(system.post(f"{where}/rotate", body, token=ADMIN))


# What is sent.


def data(system: System, id: str, query: str = "", token: str = ADMIN) -> list[dict[str, Any]]:
    """The messages of a webhook, page after page."""
    found: list[dict[str, Any]] = []
    after = 0
    while True:
        page = system.ok("GET", f"{BASE}/{id}/events?after={after}&limit=3{query}", token=token)
        assert page.keys() == {"events", "next", "first", "last", "epoch"}
        found += page["events"]
        if page["next"] == after:
            return found
        after = page["next"]


def told(system: System, id: str, many: int, token: str = ADMIN) -> list[dict[str, Any]]:
    """Its messages once there are so many."""
    return until(lambda: found if len(found := data(system, id, token=token)) >= many else [])


def test_what_is_posted_verifies_and_is_what_the_twin_shows(system: System, receiver: Receiver) -> None:
    made = subscribe(system, "sync.*", "integrations.created", url=f"{receiver.url}/verified")
    job = synced(system, "hooked-verified")
    [created, ended] = told(system, made["subscriptionId"], 2)
    assert [one["seq"] for one in (created, ended)] == [1, 2]
    assert (created["name"], ended["name"]) == ("integrations.created", "sync.completed")
    assert "." not in created["webhookId"] + ended["webhookId"]
    body = ended["body"]
    assert (body["type"], TIME.fullmatch(body["timestamp"]) is not None) == ("sync.completed", True)
    assert (body["data"]["source"], body["data"]["jobId"], body["data"]["position"]) == (
        "files",
        job,
        ended["position"],
    )
    result = body["data"]["result"]
    assert (result["success"], result["changesApplied"], result["errors"]) == (True, 2, [])
    assert created["body"]["data"]["id"] == "hooked-verified"
    assert {"position", "context", "id", "name", "kind", "config"} <= created["body"]["data"].keys()
    posted = until(lambda: taken if len(taken := receiver.of("/verified")) >= 2 else [])
    assert len(posted) == 2
    for (headers, raw), one in zip(posted, (created, ended), strict=True):
        assert headers["webhook-id"] == one["webhookId"]
        assert json.loads(raw) == one["body"]
        page = system.get(f"{BASE}/{made['subscriptionId']}/events", token=ADMIN).body
        assert raw in page
        assert Webhook(made["secret"]).verify(raw, headers) == one["body"]
        with pytest.raises(WebhookVerificationError):
            Webhook(subscribe(system)["secret"]).verify(raw, headers)
    listed = until(
        lambda: [
            one
            for one in system.ok("GET", f"{BASE}/{made['subscriptionId']}/deliveries?state=delivered", token=ADMIN)[
                "deliveries"
            ]
            if one["status"] == 204
        ]
    )
    assert [one["seq"] for one in listed] in ([2, 1], [2], [1])


def test_a_test_goes_to_this_webhook_alone(system: System, receiver: Receiver) -> None:
    made = subscribe(system, "device.stale", url=f"{receiver.url}/tested")
    other = subscribe(system, "webhooks.*", url=f"{receiver.url}/untested")
    tested = system.ok("POST", f"{BASE}/{made['subscriptionId']}/test", token=ADMIN)
    assert tested.keys() == {"success", "webhookId", "position"}
    [one] = told(system, made["subscriptionId"], 1)
    assert (one["name"], one["webhookId"], one["position"]) == (
        "webhooks.tested",
        tested["webhookId"],
        tested["position"],
    )
    assert until(lambda: receiver.of("/tested"))
    assert data(system, other["subscriptionId"]) == []


def test_a_delivery_is_sent_once_more_under_the_same_id(system: System, receiver: Receiver) -> None:
    made = subscribe(system, url=f"{receiver.url}/again")
    where = f"{BASE}/{made['subscriptionId']}"
    system.ok("POST", f"{where}/test", token=ADMIN)
    assert until(lambda: len(receiver.of("/again")) == 1)
    until(lambda: system.ok("GET", f"{where}/deliveries?state=delivered", token=ADMIN)["deliveries"])
    key = {"Idempotency-Key": "redeliver-once"}
    answers = [system.post(f"{where}/deliveries/1/redeliver", token=ADMIN, headers=key) for _ in range(2)]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    assert until(lambda: len(receiver.of("/again")) == 2)
    (first, one), (second, other) = receiver.of("/again")
    assert (first["webhook-id"], one) == (second["webhook-id"], other)
    for number in ("0", "2", "-1", "x", "9" * 30):
        refused(system.post(f"{where}/deliveries/{number}/redeliver", token=ADMIN), 404, "NOT_FOUND")


def test_the_pages_of_deliveries(system: System, receiver: Receiver) -> None:
    made = subscribe(system, url=f"{receiver.url}/pages")
    where = f"{BASE}/{made['subscriptionId']}"
    for _ in range(5):
        system.ok("POST", f"{where}/test", token=ADMIN)
    told(system, made["subscriptionId"], 5)
    first = system.ok("GET", f"{where}/deliveries?limit=2", token=ADMIN)
    assert ([one["seq"] for one in first["deliveries"]], first["next"]) == ([5, 4], 4)
    second = system.ok("GET", f"{where}/deliveries?limit=3&before=4", token=ADMIN)
    assert ([one["seq"] for one in second["deliveries"]], second["next"]) == ([3, 2, 1], None)
    page = system.ok("GET", f"{where}/events?after=3", token=ADMIN)
    assert (page["next"], page["first"], page["last"]) == (5, 1, 5)
    system.sql("delete from undrift.deliveries where endpoint = %s and seq < 3 returning 1", made["subscriptionId"])
    assert system.ok("GET", f"{where}/events", token=ADMIN)["first"] == 3
    fresh = system.ok("GET", f"{BASE}/{subscribe(system)['subscriptionId']}/events", token=ADMIN)
    assert (fresh["events"], fresh["first"], fresh["last"]) == ([], 1, 0)
    for query in ("state=lost", "limit=x", "before=x"):
        refused(system.get(f"{where}/deliveries?{query}", token=ADMIN))
    for query in ("after=6", "after=-1", "after=x", "after=99999999999999999999"):
        refused(system.get(f"{where}/events?{query}", token=ADMIN))
    assert system.get(f"{where}/events?epoch=0", token=ADMIN).status == 410


# Replays.


def test_a_replay_brings_what_came_before_the_webhook(system: System, receiver: Receiver, tenant: str) -> None:
    config = {"sourceDirectory": str(system.folder(a="1")), "targetDirectory": str(system.place())}
    began = system.head()
    for number in range(3):
        body = {"id": f"told-{number}", "name": "x", "kind": "files", "config": config, "syncInterval": 3600}
        system.ok("POST", "/api/sync/integrations", body, token=tenant)
    job = system.ok("POST", "/api/sync/jobs", {"integrationId": "told-0", "type": "full"}, token=tenant)["jobId"]
    until(lambda: system.ok("GET", f"/api/sync/jobs/{job}", token=tenant)["status"] == "completed")
    synced(system, "not-told")  # of another tenant
    made = subscribe(system, "integrations.created", url=f"{receiver.url}/replayed", token=tenant)
    where = f"{BASE}/{made['subscriptionId']}"
    counted = system.ok("POST", f"{where}/replay", {"fromPosition": began + 1, "dryRun": True}, token=tenant)
    assert (counted["count"], counted["replayId"], counted["dryRun"]) == (3, None, True)
    assert data(system, made["subscriptionId"], token=tenant) == []
    events = ["sync.*", "jobs.completed", "integrations.created"]
    body = {"fromPosition": began + 1, "events": events}
    assert system.ok("POST", f"{where}/replay", {**body, "dryRun": True}, token=tenant)["count"] == 5
    key = {"Idempotency-Key": "replay-once"}
    answers = [system.post(f"{where}/replay", body, token=tenant, headers=key) for _ in range(2)]
    assert answers[0].body == answers[1].body
    replay = answers[0].json()
    assert (replay["count"], replay["fromPosition"]) == (5, began + 1)
    found = told(system, made["subscriptionId"], 5, tenant)
    assert [one["seq"] for one in found] == [1, 2, 3, 4, 5]
    assert [one["position"] for one in found] == sorted(one["position"] for one in found)
    assert {one["replay"] for one in found} == {one["body"]["data"]["replay"] for one in found} == {replay["replayId"]}
    assert sorted(one["name"] for one in found) == [
        *["integrations.created"] * 3,
        "jobs.completed",
        "sync.completed",
    ]
    posted = until(lambda: taken if len(taken := receiver.of("/replayed")) >= 5 else [])
    assert {headers["undrift-replay"] for headers, _ in posted} == {replay["replayId"]}
    assert {headers["webhook-id"] for headers, _ in posted} == {one["webhookId"] for one in found}
    again = system.ok("POST", f"{where}/replay", body, token=tenant)
    assert again["replayId"] != replay["replayId"]
    assert len(told(system, made["subscriptionId"], 10, tenant)) == 10
    only = system.ok("GET", f"{where}/deliveries?replay={again['replayId']}", token=tenant)["deliveries"]
    assert [one["seq"] for one in only] == [10, 9, 8, 7, 6]


def test_a_replay_by_time_is_that_of_the_positions(system: System) -> None:
    made = subscribe(system, "integrations.*")
    where = f"{BASE}/{made['subscriptionId']}/replay"
    synced(system, "timed-before")
    time.sleep(0.01)  # times count in milliseconds
    synced(system, "timed")
    mine = [one for one in system.events() if one["subject"] == "integrations/main/timed"]
    span = {"fromTime": mine[0]["time"], "untilTime": mine[-1]["time"], "dryRun": True}
    counted = system.ok("POST", where, span, token=ADMIN)
    assert (counted["fromPosition"], counted["untilPosition"]) == (mine[0]["position"], mine[-1]["position"])
    assert counted["count"] == len(mine)
    early = system.ok("POST", where, {**span, "fromTime": "1970-01-01T00:00:00Z", "untilTime": "1971-01-01T00:00:00Z"},
                      token=ADMIN)  # fmt: skip
    assert early["count"] == 0


@pytest.mark.parametrize(
    "range_",
    [
        {},
        {"fromPosition": 0},
        {"fromPosition": -1},
        {"fromPosition": "1"},
        {"fromPosition": 3, "untilPosition": 2},
        {"fromPosition": 10**9},
        {"fromPosition": 1, "untilPosition": 10**9},
        {"fromPosition": 1, "fromTime": "2026-01-01T00:00:00Z"},
        {"fromPosition": 1, "untilPosition": 2, "untilTime": "2026-01-01T00:00:00Z"},
        {"fromTime": "2999-01-01T00:00:00Z"},
        {"fromTime": "1970-01-01T00:00:00Z", "untilTime": "2999-01-01T00:00:00Z"},
        {"fromTime": "yesterday"},
        {"fromTime": "2026-01-01T00:00:00"},
        {"fromPosition": 5, "untilTime": "1970-01-01T00:00:00Z"},
        {"fromPosition": 1, "events": []},
        {"fromPosition": 1, "events": ["nothing"]},
    ],
)
def test_what_is_no_range_is_refused(system: System, range_: dict[str, Any]) -> None:
    made = subscribe(system)
    for more in ({}, {"dryRun": True}):
        refused(system.post(f"{BASE}/{made['subscriptionId']}/replay", {**range_, **more}, token=ADMIN))
    system.ok("DELETE", f"{BASE}/{made['subscriptionId']}", token=ADMIN)
