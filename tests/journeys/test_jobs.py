"""Jobs as the Sync Management document has them: shapes byte for byte, states, filters, keys, consistency."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.system import ADMIN, Answer, System, at_once, tree, until

TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
FIVE = {"processed", "created", "updated", "deleted", "errors"}
LISTED = {"id", "kind", "type", "status", "progress", "createdAt"}
COMPLETED = LISTED | {"integrationId", "startedAt", "completedAt", "duration", "result"}


@pytest.fixture(scope="module")
def folders(system: System) -> tuple[Path, Path]:
    return system.folder(a="one", deep__b="two"), system.place()


@pytest.fixture(scope="module")
def plain(system: System, folders: tuple[Path, Path]) -> str:
    """The id of an integration without a schedule that has been synced in full, when no other job is left."""
    left = system.ok("POST", "/api/sync/jobs/stop-all")["jobs"]
    for id in left:
        system.wait(id)
    system.integration("plain", *folders)
    assert system.wait(system.queue("plain"))["status"] == "completed"
    return "plain"


def refused(answer: Answer, status: int, code: str) -> None:
    found = answer.json()
    assert (status, code) == (answer.status, found["code"]), answer
    assert found.keys() - {"details"} == {"success", "error", "code"}
    assert found["success"] is False
    assert found["error"]


# Shapes.


def test_a_new_job_answers_as_the_document_says(system: System, plain: str) -> None:
    body = {
        "integrationId": plain,
        "type": "full_sync",
        "options": {"force": False, "includeArchived": False, "batchSize": 50},
    }
    answer = system.post("/api/sync/jobs", body)
    found = answer.json()
    assert answer.status == 200
    assert list(found) == ["success", "jobId", "status", "estimatedDuration"]
    assert (found["success"], found["status"]) == (True, "queued")
    assert found["estimatedDuration"] >= 0
    assert answer.headers["content-type"] == "application/json"
    assert answer.position > 0
    assert system.wait(found["jobId"])["status"] == "completed"


def test_a_completed_job_in_the_list_and_alone(system: System, plain: str) -> None:
    id = system.queue(plain)
    system.wait(id)
    listed = next(one for one in system.ok("GET", "/api/sync/jobs")["jobs"] if one["id"] == id)
    assert listed.keys() == COMPLETED
    assert (listed["type"], listed["status"], listed["progress"]) == ("full_sync", "completed", 100)
    assert all(TIME.fullmatch(listed[name]) for name in ("createdAt", "startedAt", "completedAt"))
    assert listed["createdAt"] <= listed["startedAt"] <= listed["completedAt"]
    assert listed["result"].keys() == FIVE
    assert all(type(count) is int for count in [*listed["result"].values(), listed["duration"]])
    alone = system.job(id)
    assert alone.keys() - {"stage"} == COMPLETED | {"stats", "logs"}
    assert alone["stats"] == alone["result"]
    assert alone["logs"][0].keys() == {"timestamp", "level", "message"}
    assert TIME.fullmatch(alone["logs"][0]["timestamp"])
    assert {line["level"] for line in alone["logs"]} <= {"debug", "info", "warn", "error"}


def test_what_does_not_apply_is_absent_while_a_job_waits_and_runs(system: System, plain: str) -> None:
    with system.idle():
        id = system.queue(plain)
        alone = system.job(id)
        assert alone.keys() == LISTED | {"integrationId", "stats", "logs"}
        assert (alone["status"], alone["progress"], alone["logs"]) == ("queued", 0, [])
    assert system.wait(id)["status"] == "completed"
    with system.numb():
        id = system.queue(plain)
        alone = system.wait(id, "running")
        assert alone.keys() - {"stage"} == LISTED | {"integrationId", "startedAt", "stats", "logs"}
        assert "result" not in next(one for one in system.ok("GET", "/api/sync/jobs")["jobs"] if one["id"] == id)
    assert system.wait(id)["status"] == "completed"


def test_no_value_of_this_family_is_null_in_a_job(system: System, plain: str) -> None:
    for answer in (system.get("/api/sync/jobs?limit=100"), system.get(f"/api/sync/jobs/{system.queue(plain)}")):
        assert b"null" not in answer.body


def test_the_stages_of_a_files_job_have_the_documents_words(system: System, plain: str) -> None:
    id = system.queue(plain)
    system.wait(id)
    words = {"initializing", "scanning", "planning", "copying", "reconciling_deletes", "verifying", "finalizing"}
    mine = [one for one in system.events() if one["subject"].endswith(f"/{id}")]
    stages = {one["data"]["stage"] for one in mine if one["type"] == "jobs.progressed"}
    assert stages
    assert stages <= words


# Lists.


def test_lists_are_newest_first_counted_whole_and_clamped(system: System, plain: str) -> None:
    with system.idle():
        ids = [system.queue(plain) for _ in range(3)]
        found = system.ok("GET", f"/api/sync/jobs?integrationId={plain}&status=queued")
        assert (ids[::-1], 3) == ([one["id"] for one in found["jobs"]], found["total"])
        pending = system.ok("GET", f"/api/sync/jobs?integrationId={plain}&status=pending")
        assert pending == found
        for limit, count in (("1", 1), ("0", 1), ("-5", 1), ("2", 2), ("1000", 3), ("9" * 40, 3)):
            page = system.ok("GET", f"/api/sync/jobs?integrationId={plain}&status=queued&limit={limit}")
            assert (count, 3) == (len(page["jobs"]), page["total"])
    for id in ids:
        system.wait(id)
    assert system.ok("GET", "/api/sync/jobs?integrationId=nothing") == {"jobs": [], "total": 0}


def test_without_a_limit_twenty_are_listed_and_never_more_than_a_hundred(system: System, plain: str) -> None:
    with system.idle():
        ids = [system.queue(plain) for _ in range(102)]
        found = system.ok("GET", "/api/sync/jobs?status=queued")
        assert len(found["jobs"]) == 20
        assert found["total"] >= 102
        assert len(system.ok("GET", "/api/sync/jobs?status=queued&limit=5000")["jobs"]) == 100
        stopped = system.ok("POST", "/api/sync/jobs/stop-all", {"integrationId": plain})
    assert set(ids) == set(stopped["jobs"])


@pytest.mark.parametrize("query", ["status=lost", "status=", "limit=many", "limit=1.5", "status=%00", "status=%ff"])
def test_a_filter_that_means_nothing_is_refused(system: System, query: str) -> None:
    refused(system.get(f"/api/sync/jobs?{query}"), 400, "VALIDATION_ERROR")


@pytest.mark.parametrize("status", ["queued", "running", "paused", "stopping", "stopped", "completed", "failed"])
def test_every_state_is_a_filter(system: System, plain: str, status: str) -> None:
    found = system.ok("GET", f"/api/sync/jobs?status={status}&limit=100")
    assert {one["status"] for one in found["jobs"]} <= {status}


# What clients send.


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
    ],
)
def test_curl_needs_no_media_type(system: System, plain: str, headers: dict[str, str]) -> None:
    body = json.dumps({"integrationId": plain, "type": "incremental_sync"}).encode()
    answer = system.post("/api/sync/jobs", body, headers=headers)
    assert answer.status == 200, answer
    assert system.wait(answer.json()["jobId"])["type"] == "incremental_sync"


def test_a_body_may_come_in_pieces_of_unknown_length(system: System, plain: str) -> None:
    body = json.dumps({"integrationId": plain, "type": "full"}).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\n\r\n"
    answer = system.post("/api/sync/jobs", chunked, headers={"Transfer-Encoding": "chunked"})
    assert answer.status == 200, answer
    system.wait(answer.json()["jobId"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"integrationId": "plain", "type": "full_sync" /* comment */}',
        b'{"integrationId": "plain"}',
        b'{"type": "full_sync"}',
        b'{"integrationId": "plain", "type": "sideways_sync"}',
        b'{"integrationId": 1, "type": "full_sync"}',
        b'{"integrationId": "", "type": "full_sync"}',
        b'{"integrationId": "plain", "type": "full_sync", "options": {"batchSize": 0}}',
        b'{"integrationId": "plain", "type": "full_sync", "options": {"batchSize": 1e999}}',
        b'{"integrationId": "plain", "type": "full_sync", "options": {"force": "yes"}}',
        b'{"integrationId": "plain", "type": "selective_sync"}',
        b'{"integrationId": "plain", "type": "selective_sync", "options": {"entities": ["../../etc"]}}',
        b'{"integrationId": "plain", "type": "selective_sync", "options": {"entities": ["/etc"]}}',
        b'{"integrationId": "plain", "type": "full_sync", "options": {"exclude": ["' + b"*" * 17 + b'"]}}',
        b'{"integrationId": "pl\\u0000ain", "type": "full_sync"}',
        b'{"integrationId": "pl\xffain", "type": "full_sync"}',
        b"[" * 100_000,
        b'{"options":' * 1000 + b"{}" + b"}" * 1000,
        b'{"integrationId": "plain", "type": "full_sync", "n": ' + b"9" * 5000 + b"}",
        "\ufeff{}".encode("utf-16"),
    ],
    ids=range(23),
)
def test_what_is_no_job_is_refused_and_leaves_nothing(system: System, plain: str, body: bytes) -> None:
    before = system.head()
    refused(system.post("/api/sync/jobs", body), 400, "VALIDATION_ERROR")
    assert before == system.head()


def test_media_that_is_not_json_is_refused(system: System, plain: str) -> None:
    for type in ("text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16"):
        refused(system.post("/api/sync/jobs", b"{}", headers={"Content-Type": type}), 415, "UNSUPPORTED_MEDIA_TYPE")
    refused(system.post("/api/sync/jobs", b"{}", headers={"Content-Encoding": "gzip"}), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_what_is_too_large_is_refused(system: System, plain: str) -> None:
    body = json.dumps({"integrationId": plain, "type": "full", "x": "x" * (11 * 1024 * 1024)}).encode()
    refused(system.post("/api/sync/jobs", body), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    "type", ["full", "full_sync", "incremental", "incremental_sync", "selective", "selective_sync"]
)
def test_types_have_two_spellings_and_one_is_emitted(system: System, plain: str, type: str) -> None:
    id = system.queue(plain, type, options={"entities": ["deep"]})
    assert system.wait(id)["type"] == f"{type.removesuffix('_sync')}_sync"


def test_an_incremental_job_without_a_baseline_is_a_full_one_and_says_so(system: System) -> None:
    system.integration("fresh", system.folder(a="1"), system.place())
    answer = system.post("/api/sync/jobs", {"integrationId": "fresh", "type": "incremental_sync"})
    found = system.wait(answer.json()["jobId"])
    assert (found["type"], found["status"]) == ("full_sync", "completed")
    assert any("baseline" in line["message"] and line["level"] == "warn" for line in found["logs"])
    again = system.wait(system.queue("fresh", "incremental_sync"))
    assert again["type"] == "incremental_sync"


def test_an_estimate_comes_from_history(system: System) -> None:
    system.integration("estimated", system.folder(a="1"), system.place())
    first = system.ok("POST", "/api/sync/jobs", {"integrationId": "estimated", "type": "full"})
    assert first["estimatedDuration"] == 0
    took = system.wait(first["jobId"])
    second = system.ok("POST", "/api/sync/jobs", {"integrationId": "estimated", "type": "full"})
    [ended] = [
        one["data"]["duration_ms"]
        for one in system.events()
        if one["type"] == "jobs.completed" and one["subject"].endswith(took["id"])
    ]
    assert ended == second["estimatedDuration"]
    system.wait(second["jobId"])


def test_an_unknown_integration_and_an_unknown_job(system: System) -> None:
    body = {"integrationId": "nothing", "type": "full_sync"}
    refused(system.post("/api/sync/jobs", body), 404, "INTEGRATION_NOT_FOUND")
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("POST", "/stop"),
        ("POST", "/resume"),
    ):
        for id in ("nothing", "sync-job-1", "x" * 3000, "%F0%9F%92%A9", "a%7Cb", "..", "%2e%2e"):
            answer = system.call(method, f"/api/sync/jobs/{id}{path}")
            assert answer.status in (404, 405), (method, id, answer)
            assert answer.json()["success"] is False
    refused(system.call("PUT", "/api/sync/jobs/nothing/interval", {"interval": 5}), 404, "JOB_NOT_FOUND")


def test_stop_all_is_no_job(system: System) -> None:
    refused(system.get("/api/sync/jobs/stop-all"), 405, "METHOD_NOT_ALLOWED")
    refused(system.get("/api/sync/nowhere"), 404, "NOT_FOUND")
    answer = system.call("PATCH", "/api/sync/jobs")
    refused(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("method", ["TRACE", "QUERY", "PROPFIND", "get", "X"])
def test_a_method_that_nobody_knows_is_not_allowed(system: System, plain: str, method: str) -> None:
    for path in ("/api/sync/jobs", "/api/sync/jobs/x", f"/api/sync/integrations/{plain}/start", "/api/sync/initialize"):
        answer = system.call(method, path)
        assert answer.status in (400, 405), answer
        if answer.status == 405:
            refused(answer, 405, "METHOD_NOT_ALLOWED")


# States.


def test_a_queued_job_is_stopped_at_once(system: System, plain: str) -> None:
    with system.idle():
        id = system.queue(plain)
        refused(system.call("DELETE", f"/api/sync/jobs/{id}"), 409, "INVALID_STATE")
        refused(system.post(f"/api/sync/jobs/{id}/resume"), 409, "INVALID_STATE")
        answer = system.ok("POST", f"/api/sync/jobs/{id}/stop")
        assert list(answer) == ["success", "jobId", "status", "message"]
        assert (answer["success"], answer["jobId"], answer["status"]) == (True, id, "stopped")
        stopped = system.job(id)
    assert (stopped["status"], "startedAt" in stopped, stopped["result"]["processed"]) == ("stopped", False, 0)
    for path in ("stop", "resume"):
        refused(system.post(f"/api/sync/jobs/{id}/{path}"), 409, "INVALID_STATE")
    assert system.status(id) == "stopped"


def test_a_running_job_is_stopping_until_its_worker_has_stopped(system: System, plain: str) -> None:
    with system.numb():
        id = system.queue(plain)
        system.wait(id, "running")
        for _ in range(2):  # said twice: already so
            answer = system.ok("POST", f"/api/sync/jobs/{id}/stop", {"graceful": True})
            assert answer == {"success": True, "jobId": id, "status": "stopping", "message": "Job stop requested"}
        assert system.status(id) == "stopping"
        refused(system.call("DELETE", f"/api/sync/jobs/{id}"), 409, "INVALID_STATE")
        refused(system.post(f"/api/sync/jobs/{id}/resume"), 409, "INVALID_STATE")
        requests = [one for one in system.events() if one["subject"].endswith(id)]
        assert [one["type"] for one in requests].count("jobs.stop_requested") == 1
    assert system.wait(id)["status"] == "stopped"


def test_a_hard_stop_ends_a_child_that_does_not_answer(system: System, plain: str) -> None:
    with system.numb():
        id = system.queue(plain)
        system.wait(id, "running")
        system.ok("POST", f"/api/sync/jobs/{id}/stop")  # gracefully: it does not listen
        system.ok("POST", f"/api/sync/jobs/{id}/stop", {"graceful": False})
        assert system.wait(id)["status"] == "stopped"


def test_stop_all_stops_what_is_queued_or_running(system: System, plain: str) -> None:
    system.integration("other", system.folder(a="1"), system.place())
    system.wait(system.queue("other"))
    with system.numb():
        running, waiting, other = system.queue(plain), system.queue(plain), system.queue("other")
        system.wait(running, "running")
        system.wait(other, "running")
        mine = system.ok("POST", "/api/sync/jobs/stop-all", {"integrationId": plain})
        assert mine == {"success": True, "stoppedJobs": 2, "jobs": [running, waiting]}
        assert system.status(waiting) == "stopped"
        every = system.ok("POST", "/api/sync/jobs/stop-all")
        assert every == {"success": True, "stoppedJobs": 1, "jobs": [other]}  # one was stopping already
        assert system.ok("POST", "/api/sync/jobs/stop-all") == {"success": True, "stoppedJobs": 0, "jobs": []}
    assert [system.wait(id)["status"] for id in (running, other)] == ["stopped", "stopped"]


def test_what_selects_too_much_is_refused(system: System, plain: str) -> None:
    many = [f"{number:0100d}" for number in range(9_000)]
    body = {"integrationId": plain, "type": "selective", "options": {"entities": many}}
    before = system.head()
    refused(system.post("/api/sync/jobs", body), 413, "PAYLOAD_TOO_LARGE")
    assert before == system.head()


def test_stop_all_finds_what_somebody_else_queued_a_moment_ago(system: System, plain: str) -> None:
    with system.idle():
        before = [system.queue(plain)]
        before.append(
            str(system.ok("POST", "/api/sync/jobs", {"integrationId": plain, "type": "full"}, token=ADMIN)["jobId"])
        )
        stopped = system.ok("POST", "/api/sync/jobs/stop-all", {"integrationId": plain})
    assert set(before) == set(stopped["jobs"])


def test_a_failed_job_is_resumed_when_its_cause_is_gone(system: System) -> None:
    source = system.place()
    system.integration("failing", source, system.place())
    id = system.queue("failing")
    failed = system.wait(id)
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "sync_failed"
    assert any(line["level"] == "error" for line in failed["logs"])
    refused(system.post(f"/api/sync/jobs/{id}/stop"), 409, "INVALID_STATE")
    source.mkdir()
    (source / "late").write_text("here")
    answer = system.ok("POST", f"/api/sync/jobs/{id}/resume")
    assert answer == {"success": True, "jobId": id, "status": "running", "message": "Job resumed"}
    completed = system.wait(id)
    assert (completed["status"], completed["result"]["created"]) == ("completed", 1)
    assert "error" not in completed
    refused(system.post(f"/api/sync/jobs/{id}/resume"), 409, "INVALID_STATE")


def test_of_many_who_resume_stop_or_delete_at_once_one_does(system: System, plain: str) -> None:
    system.integration("raced", system.place(), system.place())
    id = system.queue("raced")
    assert system.wait(id)["status"] == "failed"
    with system.idle():
        resumed = at_once(16, lambda _: system.post(f"/api/sync/jobs/{id}/resume"))
        assert sorted(answer.status for answer in resumed) == [200] + [409] * 15
        waiting = system.queue(plain)
        stopped = at_once(16, lambda _: system.post(f"/api/sync/jobs/{waiting}/stop"))
        assert sorted(answer.status for answer in stopped) == [200] + [409] * 15
        deleted = at_once(16, lambda _: system.call("DELETE", f"/api/sync/jobs/{waiting}"))
        assert sorted(answer.status for answer in deleted) == [200] + [404] * 15
    assert system.wait(id)["status"] == "failed"
    types = [one["type"] for one in system.events() if one["subject"].endswith((id, waiting))]
    assert [types.count(f"jobs.{name}") for name in ("resumed", "stopped", "deleted")] == [1, 1, 1]


def test_a_job_resumed_while_another_of_its_integration_runs_is_queued(system: System) -> None:
    source = system.place()
    system.integration("behind", source, system.place())
    failed = system.queue("behind")
    assert system.wait(failed)["status"] == "failed"
    source.mkdir()
    with system.numb():
        running = system.queue("behind")
        system.wait(running, "running")
        answer = system.ok("POST", f"/api/sync/jobs/{failed}/resume")
        assert (answer["status"], answer["jobId"]) == ("queued", failed)
    assert [system.wait(id)["status"] for id in (running, failed)] == ["completed", "completed"]


def test_a_held_job_waits_paused_until_its_plan_is_confirmed(system: System) -> None:
    source, target = system.folder(a="1"), system.folder(a="1", b="2", c="3", d="4")
    system.integration("held", source, target, deleteMissingInTarget=True)
    id = system.queue("held")
    paused = system.wait(id)
    assert (paused["status"], paused["error"]["code"]) == ("paused", "held")
    plan = paused["error"]["plan"]
    assert len(tree(target)) == 4
    again = system.ok("POST", f"/api/sync/jobs/{id}/resume")
    assert again["status"] == "running"
    assert until(lambda: system.status(id) == "paused")  # nobody has confirmed anything
    wrong = system.ok("POST", f"/api/sync/jobs/{id}/resume", {"confirm": "0" * 64})
    assert wrong["status"] == "running"
    assert system.wait(id, "failed")["error"]["code"] == "plan_changed"
    assert len(tree(target)) == 4
    system.ok("POST", f"/api/sync/jobs/{id}/resume", {"confirm": plan})
    completed = system.wait(id, "completed")
    assert completed["result"]["deleted"] == 3
    assert tree(target) == {"a": b"1"}


def test_a_held_job_is_stopped_where_it_waits(system: System) -> None:
    source, target = system.folder(a="1"), system.folder(b="2")
    system.integration("given-up", source, target, deleteMissingInTarget=True)
    id = system.queue("given-up")
    assert system.wait(id)["status"] == "paused"
    assert system.ok("POST", "/api/sync/jobs/stop-all", {"integrationId": "given-up"})["stoppedJobs"] == 0
    assert system.ok("POST", f"/api/sync/jobs/{id}/stop")["status"] == "stopped"
    assert tree(target) == {"b": b"2"}


def test_one_job_of_an_integration_runs_at_a_time_and_others_are_not_held_up(system: System, plain: str) -> None:
    system.integration("meanwhile", system.folder(a="1"), system.place())
    with system.numb():
        first, second = system.queue(plain), system.queue(plain)
        other = system.queue("meanwhile")
        system.wait(first, "running")
        system.wait(other, "running")
        assert system.status(second) == "queued"
    assert [system.wait(id)["status"] for id in (first, second, other)] == ["completed"] * 3
    started = {one["id"]: one for one in system.ok("GET", "/api/sync/jobs?limit=100")["jobs"]}
    assert started[first]["completedAt"] <= started[second]["startedAt"]


def test_jobs_take_only_declared_edges(system: System, plain: str) -> None:
    running = {"jobs.started", "jobs.progressed", "jobs.checkpointed"}
    leaving = {*running, "jobs.stop_requested"}
    edges = {
        "jobs.queued": {""},
        "jobs.started": {*running, "jobs.queued", "jobs.resumed"},
        "jobs.progressed": leaving,
        "jobs.checkpointed": leaving,
        "jobs.stop_requested": {*leaving, "jobs.resumed"},
        "jobs.stopped": {"jobs.queued", "jobs.stop_requested", "jobs.held", "jobs.paused", "jobs.progressed"},
        "jobs.completed": leaving,
        "jobs.failed": {*leaving, "jobs.held"},
        "jobs.held": leaving,
        "jobs.paused": leaving,
        "jobs.resumed": {"jobs.failed", "jobs.held", "jobs.paused"},
        "jobs.deleted": {"jobs.completed", "jobs.failed", "jobs.stopped", "jobs.held"},
    }
    latest: dict[str, str] = {}
    progress: dict[str, int] = {}
    for event in system.events():
        if event["subject"].startswith("jobs/"):
            subject, type = event["subject"], event["type"]
            assert latest.get(subject, "") in edges[type], (subject, type)
            latest[subject] = type
            if type == "jobs.progressed":
                assert event["data"]["progress"] >= progress.get(subject, 0)
                progress[subject] = event["data"]["progress"]
    assert latest


# Deleting.


def test_a_deleted_job_is_unknown_and_its_log_is_kept(system: System, plain: str) -> None:
    id = system.queue(plain)
    system.wait(id)
    lines = system.ok("GET", f"/api/sync/jobs/{id}/logs")
    assert lines["logs"]
    answer = system.ok("DELETE", f"/api/sync/jobs/{id}", {"deleteLogs": False})
    assert answer == {"success": True, "deleted": id}
    refused(system.get(f"/api/sync/jobs/{id}"), 404, "JOB_NOT_FOUND")
    refused(system.call("DELETE", f"/api/sync/jobs/{id}"), 404, "JOB_NOT_FOUND")
    refused(system.post(f"/api/sync/jobs/{id}/resume"), 404, "JOB_NOT_FOUND")
    assert id not in [one["id"] for one in system.ok("GET", "/api/sync/jobs?limit=100")["jobs"]]
    assert system.ok("GET", f"/api/sync/jobs/{id}/logs") == lines


def test_a_job_is_deleted_with_its_log(system: System, plain: str) -> None:
    id = system.queue(plain)
    system.wait(id)
    assert system.ok("DELETE", f"/api/sync/jobs/{id}", {"deleteLogs": True}) == {"success": True, "deleted": id}
    assert system.ok("GET", f"/api/sync/jobs/{id}/logs")["logs"] == []
    assert system.sql("select count(*) from undrift.job_logs where job = %s", id) == [(0,)]


def test_log_lines_are_paged(system: System, plain: str) -> None:
    id = system.queue(plain)
    system.wait(id)
    every = system.ok("GET", f"/api/sync/jobs/{id}/logs")
    found, after = [], 0
    while page := system.ok("GET", f"/api/sync/jobs/{id}/logs?after={after}&limit=1"):
        if not page["logs"]:
            break
        assert len(page["logs"]) == 1
        found += page["logs"]
        after = page["next"]
    assert every["logs"] == found
    assert every["next"] == after


# The schedule of a job.


def test_the_interval_of_a_job_is_that_of_its_integration(system: System) -> None:
    system.integration("timely", system.folder(a="1"), system.place(), interval=3000)
    id = system.queue("timely")
    answer = system.ok("PUT", f"/api/sync/jobs/{id}/interval", {"interval": 600})
    assert list(answer) == ["success", "jobId", "oldInterval", "newInterval", "nextRun"]
    assert (answer["success"], answer["jobId"], answer["oldInterval"], answer["newInterval"]) == (True, id, 3000, 600)
    assert TIME.fullmatch(answer["nextRun"])
    [status] = [one for one in statuses(system) if one["integrationId"] == "timely"]
    assert (status["syncInterval"], status["nextSync"]) == (600, answer["nextRun"])
    same = system.ok("PUT", f"/api/sync/jobs/{id}/interval", {"interval": 600})
    assert (same["oldInterval"], same["newInterval"], same["nextRun"]) == (600, 600, answer["nextRun"])
    system.wait(id)


@pytest.mark.parametrize("interval", [0, -1, 31_536_001, 1.5, "600", None, True])
def test_an_interval_is_a_second_to_a_year(system: System, plain: str, interval: Any) -> None:
    id = system.ok("GET", f"/api/sync/jobs?integrationId={plain}&limit=1")["jobs"][0]["id"]
    refused(system.call("PUT", f"/api/sync/jobs/{id}/interval", {"interval": interval}), 400, "VALIDATION_ERROR")


def test_a_job_without_an_integration_has_no_interval(system: System) -> None:
    answer = system.sync(system.folder(a="1"), system.place(), headers={"Prefer": "respond-async"})
    id = answer.json()["jobId"]
    refused(system.call("PUT", f"/api/sync/jobs/{id}/interval", {"interval": 5}), 409, "INVALID_STATE")
    assert "integrationId" not in system.wait(id)


def statuses(system: System) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.ok("GET", "/api/sync/integrations/status")["integrations"]
    return found


# Keys of idempotency.


def test_the_same_request_twice_is_carried_out_once(system: System, plain: str) -> None:
    body, headers = {"integrationId": plain, "type": "full"}, {"Idempotency-Key": "twice"}
    first = system.post("/api/sync/jobs", body, headers=headers)
    head = system.head()
    second = system.post("/api/sync/jobs", body, headers=headers)
    assert (first.status, first.body, first.position) == (200, second.body, second.position)
    system.wait(first.json()["jobId"])
    queued = [one for one in system.events(head) if one["type"] == "jobs.queued"]
    assert queued == []


def test_thirty_two_at_once_are_one(system: System, plain: str) -> None:
    body, headers = {"integrationId": plain, "type": "full"}, {"Idempotency-Key": "thirty-two"}
    before = system.head()
    answers = at_once(32, lambda _: system.post("/api/sync/jobs", body, headers=headers))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.position for answer in answers}) == 1
    system.wait(answers[0].json()["jobId"])
    assert [one["type"] for one in system.events(before)].count("jobs.queued") == 1


def test_every_command_on_a_job_is_carried_out_once(system: System, plain: str) -> None:
    with system.idle():
        id = system.queue(plain)
        for method, path, body in (
            ("PUT", f"/api/sync/jobs/{id}/interval", {"interval": 86400}),
            ("POST", f"/api/sync/jobs/{id}/stop", None),
            ("POST", "/api/sync/jobs/stop-all", {"integrationId": plain}),
            ("DELETE", f"/api/sync/jobs/{id}", {"deleteLogs": True}),
        ):
            headers = {"Idempotency-Key": f"{method} once".replace(" ", "-") + path.rpartition("/")[2]}
            answers = at_once(8, lambda _, r=(method, path, body, headers): system.call(*r[:3], headers=r[3]))
            assert {answer.status for answer in answers} == {200}, answers
            assert len({answer.body for answer in answers}) == 1, answers
            later = system.call(method, path, body, headers=headers)
            assert (200, answers[0].body) == (later.status, later.body)
    of_it = [one["type"] for one in system.events() if one["subject"].endswith(id)]
    assert of_it == ["jobs.queued", "jobs.stopped", "jobs.deleted"]


def test_a_key_stands_for_one_request(system: System, plain: str) -> None:
    headers = {"Idempotency-Key": "one-request"}
    first = system.post("/api/sync/jobs", {"integrationId": plain, "type": "full"}, headers=headers)
    system.wait(first.json()["jobId"])
    before = system.head()
    other = {"integrationId": plain, "type": "incremental"}
    refused(system.post("/api/sync/jobs", other, headers=headers), 422, "KEY_REUSED")
    refused(system.post("/api/sync/jobs/stop-all", headers=headers), 422, "KEY_REUSED")
    refused(system.call("DELETE", f"/api/sync/jobs/{first.json()['jobId']}", headers=headers), 422, "KEY_REUSED")
    assert before == system.head()


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "with space", "caf\u00e9"])
def test_a_key_that_is_none_is_refused(system: System, plain: str, key: str) -> None:
    answer = system.post("/api/sync/jobs/stop-all", {"integrationId": "x"}, headers={"Idempotency-Key": key})
    refused(answer, 400, "VALIDATION_ERROR")


def test_a_refused_command_may_be_tried_again_under_its_key(system: System) -> None:
    headers, body = {"Idempotency-Key": "refused-first"}, {"integrationId": "not-there-yet", "type": "full"}
    refused(system.post("/api/sync/jobs", body, headers=headers), 404, "INTEGRATION_NOT_FOUND")
    system.integration("not-there-yet", system.folder(a="1"), system.place())
    answer = system.post("/api/sync/jobs", body, headers=headers)
    assert answer.status == 200
    system.wait(answer.json()["jobId"])


def test_a_key_outlives_the_gateway(system: System, plain: str) -> None:
    body, headers = {"integrationId": plain, "type": "full"}, {"Idempotency-Key": "outlives"}
    first = system.post("/api/sync/jobs", body, headers=headers)
    system.replaced("gateway", system.kill("gateway"))
    second = system.post("/api/sync/jobs", body, headers=headers)
    assert (first.status, first.body, first.position) == (second.status, second.body, second.position)
    system.wait(first.json()["jobId"])


# Consistency.


def test_whoever_writes_reads_it(system: System, plain: str) -> None:
    with system.idle():
        for _ in range(20):
            id = system.queue(plain)
            assert system.status(id) == "queued"
            assert system.ok("GET", "/api/sync/jobs?limit=1")["jobs"][0]["id"] == id
            system.ok("POST", f"/api/sync/jobs/{id}/stop")
            assert system.status(id) == "stopped"


def test_others_read_it_from_its_position_on(system: System, plain: str) -> None:
    with system.idle():
        for _ in range(10):
            answer = system.post("/api/sync/jobs", {"integrationId": plain, "type": "full"})
            headers = {"Undrift-Min-Position": str(answer.position)}
            found = system.get(f"/api/sync/jobs/{answer.json()['jobId']}", token=ADMIN, headers=headers)
            assert found.status == 200
            assert found.position >= answer.position
        system.ok("POST", "/api/sync/jobs/stop-all")


def test_a_position_that_is_not_reached_is_said_to_be_so(system: System) -> None:
    ahead = {"Undrift-Min-Position": str(system.head() + 1_000_000)}
    answer = system.get("/api/sync/jobs", headers=ahead)
    refused(answer, 503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    refused(system.get("/api/sync/jobs", headers={"Undrift-Min-Position": "x"}), 400, "VALIDATION_ERROR")


def test_nothing_hangs_on_nats(system: System, plain: str) -> None:
    with system.paused("nats"):
        id = system.queue(plain)
        assert system.wait(id)["status"] == "completed"
        assert system.queue(plain)
    system.whole()
