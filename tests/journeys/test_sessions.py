"""Sync sessions of the EonaCat document, over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.libraries import sha, user
from tests.journeys.system import ADMIN, QUICK, Answer, System, at_once, tree, until

BASE = "/api/v1/sync/session"
STATUS = {"sessionId", "status", "progressPercentage", "message", "result", "createdAt", "completedAt"}
RESULT = {"success", "changesApplied", "conflictsEncountered", "errors", "syncedAt", "executionTimeMs"}
WHOLE_S = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UNKNOWN = "session-00000000-0000-4000-8000-000000000000"


def ask(system: System, method: str, path: str, body: Any = None, **more: Any) -> Answer:
    headers = {"Undrift-Min-Position": str(system.wrote), **more.pop("headers", {})}
    return system.call(method, BASE + path, body, token=more.pop("token", ADMIN), headers=headers, **more)


def ok(system: System, method: str, path: str, body: Any = None, **more: Any) -> Any:
    answer = ask(system, method, path, body, **more)
    assert answer.status == 200, (path, answer, system.said()[-3000:])
    return answer.json()


def start(system: System, source: Any = "System1", target: Any = "System2", **more: Any) -> Any:
    return ok(system, "POST", "/start", {"sourceLocation": str(source), "targetLocation": str(target), **more})


def status(system: System, id: str) -> Any:
    found = ok(system, "GET", f"/{id}/status")
    assert found.keys() == STATUS
    return found


def complete(system: System, id: str) -> Any:
    return ok(system, "POST", f"/{id}/complete")


def head(session: str) -> dict[str, str]:
    return {"Undrift-Session": session}


def told(system: System, id: str) -> list[str]:
    """The topics of a session's events."""
    return [one["type"] for one in system.events() if one["subject"] == f"sessions/main/{id}"]


def test_the_documents_own_example(system: System) -> None:
    """Two systems that are neither folders nor connections: a session that clients fill."""
    made = start(system, syncType="Full")
    assert made == {
        "sessionId": made["sessionId"],
        "startedAt": made["startedAt"],
        "sourceIdentifier": "System1",
        "targetIdentifier": "System2",
        "jobId": None,
    }
    assert made["sessionId"].startswith("session-")
    assert WHOLE_S.fullmatch(made["startedAt"])
    seen = status(system, made["sessionId"])
    assert (seen["status"], seen["progressPercentage"], seen["result"]) == ("in-progress", 0, None)
    assert (seen["createdAt"], seen["completedAt"]) == (made["startedAt"], None)
    done = complete(system, made["sessionId"])
    assert done.keys() == STATUS
    assert (done["status"], done["progressPercentage"]) == ("completed", 100)
    assert done["result"].keys() == RESULT
    assert (done["result"]["success"], done["result"]["changesApplied"]) == (True, 0)
    assert WHOLE_S.fullmatch(done["completedAt"])
    assert done == complete(system, made["sessionId"]) == status(system, made["sessionId"])
    assert told(system, made["sessionId"]) == [
        "sessions.started",
        "sessions.completion_requested",
        "sessions.completed",
    ]


def test_two_folders_are_synchronized_by_a_job_of_the_session(system: System) -> None:
    source, target = system.folder(a="1", b__c="2"), system.place()
    made = start(system, source, target, syncType="full")
    job = system.wait(made["jobId"])
    assert (job["status"], job["type"]) == ("completed", "full_sync")
    assert tree(source) == tree(target)
    assert until(lambda: status(system, made["sessionId"])["progressPercentage"] == 99)
    done = complete(system, made["sessionId"])
    result = done["result"]
    assert (done["status"], result["success"], result["errors"]) == ("completed", True, [])
    counted = job["result"]
    assert result["changesApplied"] == counted["created"] + counted["updated"] + counted["deleted"] > 0
    shown = ok(system, "GET", f"/{made['sessionId']}")
    assert (shown["jobs"], shown["processed"], shown["bytesTransferred"]) == ([job["id"]], counted["processed"], 2)
    assert (shown["errors"], shown["expiresAt"], shown["syncType"]) == (0, None, "Full")
    incremental = start(system, source, target, syncType="Incremental")
    assert system.wait(incremental["jobId"])["type"] == "incremental_sync"


def test_jobs_and_uploads_attach_and_give_their_totals(system: System) -> None:
    session = start(system)["sessionId"]
    source, target = system.folder(a="123"), system.place()
    assert system.sync(source, target, headers=head(session)).status == 200
    system.integration("session-jobs", source, system.place())
    queued = system.post("/api/sync/jobs", {"integrationId": "session-jobs", "type": "full"}, headers=head(session))
    begun = system.post("/api/sync/integrations/session-jobs/start", headers=head(session))
    ann = user(system).device()
    opened = ann.call("POST", "/api/v1/sync/upload", upload(b"12345"), headers=head(session)).json()
    assert ann.chunk(opened, 0, b"12345").status == 200
    ann.ok("POST", f"/api/v1/sync/upload/{opened['id']}/complete")
    for answer in (queued, begun):
        assert system.wait(answer.json()["jobId"])["status"] == "completed"
    done = complete(system, session)
    assert (done["status"], done["result"]["success"]) == ("completed", True)
    shown = ok(system, "GET", f"/{session}")
    assert (len(shown["jobs"]), shown["uploads"], shown["attached"]) == (3, [opened["id"]], 4)
    assert shown["jobs"][1:] == [queued.json()["jobId"], begun.json()["jobId"]]
    assert shown["bytesTransferred"] >= 3 + 5
    assert told(system, session).count("sessions.attached") == 4


def upload(data: bytes, path: str = "in a session") -> dict[str, Any]:
    return {"target_path": path, "expected_hash": sha(data), "expected_size": len(data), "chunk_size": 65536}


def test_tus_attaches_too(system: System) -> None:
    session = start(system)["sessionId"]
    ann = user(system).device()
    sent = {"Tus-Resumable": "1.0.0", "Upload-Length": "3", "Upload-Metadata": "target_path bm90ZQ=="}
    made = ann.call("POST", "/api/v1/sync/tus", headers={**sent, **head(session)})
    assert made.status == 201
    id = made.headers["location"].rpartition("/")[2]
    assert until(lambda: ok(system, "GET", f"/{session}")["uploads"] == [id])
    seen = complete(system, session)  # it has not come whole
    assert (seen["status"], seen["progressPercentage"], seen["result"]["success"]) == ("failed", 0, False)
    assert seen["result"]["errors"] == [f"upload {id} is not complete"]
    assert seen == complete(system, session)


FOREIGN = ("", "session-1", UNKNOWN, "a/b", "session-" + "9" * 400)


@pytest.mark.parametrize("id", FOREIGN)
def test_an_unknown_session_queues_nothing(system: System, id: str) -> None:
    source = system.folder(a="1")
    system.integration(f"unknown-{len(id)}", source, system.place())
    device = user(system).device()
    before = system.head()
    answers = unfit(system, f"unknown-{len(id)}", source, device, id)
    for answer in answers:
        assert answer.status == 404, answer
    files, job, begun, sent, tus = (answer.json() for answer in answers)
    assert files["errorCode"] == "NOT_FOUND"
    assert (job["code"], begun["code"]) == ("SESSION_NOT_FOUND", "SESSION_NOT_FOUND")
    assert (set(sent), set(tus)) == ({"error"}, {"error"})
    assert before == system.head()


def unfit(system: System, integration: str, source: Path, device: Any, session: str) -> list[Answer]:
    """What every kind of request that may attach is answered."""
    sent = {"Tus-Resumable": "1.0.0", "Upload-Length": "3", "Upload-Metadata": "target_path bm90ZQ=="}
    body = {"integrationId": integration, "type": "full"}
    return [
        system.sync(source, system.place(), headers=head(session)),
        system.post("/api/sync/jobs", body, headers=head(session)),
        system.post(f"/api/sync/integrations/{integration}/start", headers=head(session)),
        device.call("POST", "/api/v1/sync/upload", upload(b"1"), headers=head(session)),
        device.call("POST", "/api/v1/sync/tus", headers={**sent, **head(session)}),
    ]


def test_nothing_attaches_to_a_session_that_has_ended(system: System) -> None:
    source = system.folder(a="1")
    system.integration("ended-session", source, system.place())
    device = user(system).device()
    for end in ("complete", "cancel"):
        session = start(system)["sessionId"]
        ok(system, "POST", f"/{session}/{end}")
        before = system.head()
        for answer in unfit(system, "ended-session", source, device, session):
            assert answer.status == 409, answer
        assert before == system.head()
        assert ask(system, "POST", f"/{session}/heartbeat").status == 409


@pytest.fixture(scope="module")
def other(system: System) -> str:
    system.undrift("tenants", "add", "sessions-other")
    return system.key("sessions-admin", "admin", tenant="sessions-other")


def test_another_tenants_session_is_unknown(system: System, other: str) -> None:
    session = start(system)["sessionId"]
    for method, path in (("GET", ""), ("GET", "/status"), *(("POST", f"/{end}") for end in ("complete", "cancel"))):
        foreign = ask(system, method, f"/{session}{path}", token=other)
        unknown = ask(system, method, f"/{UNKNOWN}{path}", token=other)
        assert foreign.status == unknown.status == 404
        assert without_time(foreign) == without_time(unknown)
    source = system.folder(a="1")
    body = {"sourceDirectory": str(source), "targetDirectory": str(system.place())}
    assert system.post("/api/v1/sync/files", body, token=other, headers=head(session)).status == 404
    assert ok(system, "GET", "", token=other) == {"sessions": [], "totalCount": 0}
    assert status(system, session)["status"] == "in-progress"


def without_time(answer: Answer) -> Any:
    return {name: value for name, value in answer.json().items() if name != "timestamp"}


BAD: dict[str, dict[str, Any]] = {
    "empty": {},
    "no target": {"sourceLocation": "a"},
    "number": {"sourceLocation": 1, "targetLocation": "b"},
    "blank": {"sourceLocation": " ", "targetLocation": "b"},
    "control": {"sourceLocation": "a\u0007", "targetLocation": "b"},
    "windows": {"sourceLocation": "C:\\source", "targetLocation": "C:\\target"},
    "share": {"sourceLocation": "\\\\server\\share", "targetLocation": "b"},
    "type": {"sourceLocation": "a", "targetLocation": "b", "syncType": "Partial"},
    "databases": {"sourceLocation": "connection:a", "targetLocation": "connection:b"},
    "connection": {"sourceLocation": "connection:a b", "targetLocation": "b"},
    "long": {"sourceLocation": "a" * 4097, "targetLocation": "b"},
    "dots": {"sourceLocation": "/a/../b", "targetLocation": "/c"},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_what_is_no_session_is_refused(system: System, body: dict[str, Any]) -> None:
    before = system.head()
    answer = ask(system, "POST", "/start", body)
    assert (answer.status, answer.json()["errorCode"]) == (400, "INVALID_REQUEST")
    assert before == system.head()


def test_folders_outside_the_roots_or_in_one_another_are_refused(system: System) -> None:
    inside = system.folder(a="1")
    for source, target, code in (("/etc", inside, 403), (inside, "/etc/x", 403), (inside, inside / "b", 400)):
        body = {"sourceLocation": str(source), "targetLocation": str(target)}
        assert ask(system, "POST", "/start", body).status == code
    token = system.key("sessions-only", "sessions")
    body = {"sourceLocation": str(inside), "targetLocation": str(system.place())}
    assert ask(system, "POST", "/start", body, token=token).status == 403  # its job would need files:write
    rooted = system.key("sessions-rooted", "sessions", "files", roots=[inside])
    assert ask(system, "POST", "/start", body, token=rooted).status == 403
    assert ask(system, "POST", "/start", {**body, "targetLocation": "server1"}, token=token).status == 200


def test_a_connection_string_is_kept_nowhere(system: System) -> None:
    secret = "hunter2-very-secret"
    body = {
        "sourceLocation": f"Server=source;Database=db;User Id=sa;Password={secret}",
        "targetLocation": f"postgres://app:{secret}@db.example:5432/app?password={secret}",
    }
    assert ask(system, "POST", "/start", body, token=system.key("sessions-plain", "sessions")).status == 403
    made = ok(system, "POST", "/start", body)
    assert made["sourceIdentifier"] == "Server=source;Database=db;"
    assert made["targetIdentifier"] == "postgres://db.example:5432/app"
    again = ok(system, "POST", "/start", body)
    first, second = (
        next(one["data"] for one in system.events() if one["subject"] == f"sessions/main/{one_of['sessionId']}")
        for one_of in (made, again)
    )
    assert len(first["source"]["digest"]) == 64
    assert first["source"]["digest"] == second["source"]["digest"] != first["target"]["digest"]
    command = ["grep", "-rlFa", "-e", secret, str(system.directory), str(system.log)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""


def test_starting_again_under_one_key_is_one_session(system: System) -> None:
    body = {"sourceLocation": str(system.folder(a="1")), "targetLocation": str(system.place())}
    key = {"Idempotency-Key": "one-session"}
    first, second = (ask(system, "POST", "/start", body, headers=key) for _ in range(2))
    assert (first.status, first.body) == (200, second.body)
    other = ask(system, "POST", "/start", {**body, "syncType": "Incremental"}, headers=key)
    assert (other.status, other.json()["errorCode"]) == (422, "INVALID_REQUEST")


def test_completing_waits_for_what_runs(system: System) -> None:
    with system.idle():
        made = start(system, system.folder(a="1"), system.place())
        session = made["sessionId"]
        answer = ask(system, "POST", f"/{session}/complete", headers={"Prefer": "respond-async"})
        assert (answer.status, answer.headers["location"]) == (202, f"{BASE}/{session}/status")
        assert answer.json()["status"] == "in-progress"
        source = system.folder(b="2")
        assert system.sync(source, system.place(), headers=head(session)).status == 409
    assert until(lambda: status(system, session)["status"] == "completed")
    assert status(system, session)["result"]["changesApplied"] > 0
    assert told(system, session)[-1] == "sessions.completed"


def test_completing_many_times_at_once_is_one_end(system: System) -> None:
    with system.idle():
        session = start(system, system.folder(a="1"), system.place())["sessionId"]
    answers = at_once(8, lambda _: ask(system, "POST", f"/{session}/complete"))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert told(system, session).count("sessions.completed") == 1


def test_many_attach_to_one_session_at_once(system: System) -> None:
    session, device = start(system)["sessionId"], user(system).device()
    answers = at_once(
        12,
        lambda n: device.call("POST", "/api/v1/sync/upload", upload(b"1", f"many {n}"), headers=head(session)),
    )
    assert [answer.status for answer in answers] == [200] * 12
    shown = ok(system, "GET", f"/{session}")
    assert sorted(shown["uploads"]) == sorted(answer.json()["id"] for answer in answers)


def test_a_session_whose_job_fails_has_failed(system: System) -> None:
    made = start(system, system.place(), system.place())
    done = complete(system, made["sessionId"])
    assert (done["status"], done["message"]) == ("failed", "1 of 1 job did not complete")
    assert done["progressPercentage"] < 100
    assert (done["result"]["success"], len(done["result"]["errors"])) == (False, 1)
    assert done["result"]["errors"][0].startswith(made["jobId"])
    assert done == complete(system, made["sessionId"])
    assert told(system, made["sessionId"])[-1] == "sessions.failed"


def test_a_job_that_is_held_is_said_and_waited_for(system: System) -> None:
    many = {f"file{number}": "x" for number in range(9)}
    session = start(system)["sessionId"]
    system.integration("held-session", system.folder(a="1"), system.folder(**many), deleteMissingInTarget=True)
    body = {"integrationId": "held-session", "type": "full"}
    job = system.post("/api/sync/jobs", body, headers=head(session)).json()["jobId"]
    held = system.wait(job, "paused")
    answer = ask(system, "POST", f"/{session}/complete")
    assert (answer.status, answer.json()["status"]) == (202, "in-progress")
    assert answer.json()["message"].startswith("Waiting for somebody")
    system.ok("POST", f"/api/sync/jobs/{job}/resume", {"confirm": held["error"]["plan"]})
    assert complete(system, session)["status"] == "completed"


def test_cancelling_stops_the_jobs(system: System) -> None:
    with system.idle():
        made = start(system, system.folder(a="1"), system.place())
        session = made["sessionId"]
        done = ok(system, "POST", f"/{session}/cancel")
        assert (done["status"], done["result"]["success"]) == ("cancelled", False)
        assert system.status(made["jobId"]) == "stopped"
    assert done == ok(system, "POST", f"/{session}/cancel") == status(system, session)
    assert ask(system, "POST", f"/{session}/complete").status == 409
    finished = start(system)["sessionId"]
    complete(system, finished)
    assert ask(system, "POST", f"/{finished}/cancel").status == 409


def test_progress_never_goes_back(system: System) -> None:
    session, source = start(system)["sessionId"], system.folder(a="1")
    assert system.sync(source, system.place(), headers=head(session)).status == 200
    assert status(system, session)["progressPercentage"] == 99
    device = user(system).device()
    device.call("POST", "/api/v1/sync/upload", upload(b"1"), headers=head(session))
    assert status(system, session)["progressPercentage"] == 99


def test_a_session_as_it_was(system: System) -> None:
    session = start(system)["sessionId"]
    begun = system.wrote
    assert system.sync(system.folder(a="1"), system.place(), headers=head(session)).status == 200
    complete(system, session)
    now, then = ok(system, "GET", f"/{session}"), ok(system, "GET", f"/{session}?as_of={begun}")
    assert (then["status"], then["jobs"], then["result"], then["completedAt"]) == ("in-progress", [], None, None)
    assert now == ok(system, "GET", f"/{session}?as_of={system.head()}")
    assert (now["status"], len(now["jobs"]), now["bytesTransferred"]) == ("completed", 1, 1)
    assert ask(system, "GET", f"/{session}?as_of={begun - 1}").status == 404


def test_sessions_are_listed(system: System, other: str) -> None:
    ids = [ok(system, "POST", "/start", PAIR, token=other)["sessionId"] for _ in range(3)]
    ok(system, "POST", f"/{ids[0]}/complete", token=other)
    listed = ok(system, "GET", "", token=other)
    assert ([one["sessionId"] for one in listed["sessions"]], listed["totalCount"]) == (ids[::-1], 3)
    done = ok(system, "GET", "?status=completed", token=other)
    assert [one["sessionId"] for one in done["sessions"]] == ids[:1]
    second = ok(system, "GET", "?limit=1&offset=1", token=other)
    assert [one["sessionId"] for one in second["sessions"]] == [ids[1]]
    assert ask(system, "GET", "?status=pending", token=other).status == 400


PAIR = {"sourceLocation": "System1", "targetLocation": "System2"}


def test_what_clients_of_the_document_send_is_understood(system: System) -> None:
    """PostAsJsonAsync sends a charset and chunks; curl -d sends a form's type; completing sends nothing, or {}."""
    url, token = system.ready["url"], system.ready["admin_token"]
    common = ["curl", "-s", "-X", "POST", "-H", f"Authorization: Bearer {token}"]
    for sent in (
        ["-H", "Content-Type: application/json; charset=utf-8", "-H", "Transfer-Encoding: chunked"],
        ["-H", "Content-Type: application/json"],
        [],
    ):
        command = [*common, *sent, "-d", json.dumps(PAIR), f"{url}{BASE}/start"]
        made = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert made["sourceIdentifier"] == "System1"
        empty = ["-d", "{}"] if sent else []
        command = [*common, *empty, f"{url}{BASE}/{made['sessionId']}/complete"]
        done = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert done["status"] == "completed"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Sessions are abandoned after two seconds."""
    settings = f"{QUICK}\n[sessions]\nlease_s = 2.0\ntick_s = 0.1\n"
    system = System(tmp_path_factory.mktemp("sessions"), settings=settings)
    try:
        yield system.start()
    finally:
        system.stop()


def listed(system: System, id: str) -> Any:
    """As the list has it, which renews no lease."""
    return next(one for one in ok(system, "GET", "")["sessions"] if one["sessionId"] == id)


def test_an_abandoned_session_ends_itself_with_a_report(short: System) -> None:
    kept, left = start(short)["sessionId"], start(short)["sessionId"]
    source = short.folder(a="1")
    assert short.sync(source, short.place(), headers=head(left)).status == 200
    renewed = ok(short, "POST", f"/{kept}/heartbeat")
    assert renewed.keys() == {"sessionId", "expiresAt"}

    def ended() -> bool:
        status(short, kept)  # any call that names it renews it
        return bool(listed(short, left)["status"] != "in-progress")

    assert until(ended)
    found = listed(short, left)
    assert (found["status"], found["message"]) == ("failed", "Nobody named the session within its lease")
    assert found["result"]["changesApplied"] > 0
    assert found["progressPercentage"] == 99
    assert status(short, kept)["status"] == "in-progress"
    assert told(short, left).count("sessions.failed") == 1
    assert ok(short, "POST", f"/{left}/complete") == status(short, left)
    assert until(lambda: listed(short, kept)["status"] == "failed")
    assert until(lambda: short.sql("select count(*) from undrift.session_leases") == [(0,)])


def test_a_session_is_not_abandoned_while_its_job_is_open(short: System) -> None:
    with short.idle():
        made = start(short, short.folder(a="1"), short.place())
        gone = start(short)["sessionId"]
        assert until(lambda: listed(short, gone)["status"] == "failed")
        later = start(short)["sessionId"]
        assert until(lambda: listed(short, later)["status"] == "failed")
        assert listed(short, made["sessionId"])["status"] == "in-progress"
    assert until(lambda: listed(short, made["sessionId"])["status"] == "failed")
    assert listed(short, made["sessionId"])["result"]["changesApplied"] > 0


def test_what_was_asked_to_complete_completes_though_everything_is_killed(short: System) -> None:
    with short.idle():
        session = start(short, short.folder(a="1"), short.place())["sessionId"]
        answer = ask(short, "POST", f"/{session}/complete", headers={"Prefer": "respond-async"})
        assert answer.status == 202
        short.replaced("gateway", short.kill("gateway"))
        short.replaced("core", short.kill("core"))
    assert until(lambda: listed(short, session)["status"] == "completed")
    assert told(short, session).count("sessions.completed") == 1
