"""Integrations: how they come, change and go, how their schedules fire, and how they are doing."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.system import Answer, System, at_once, tree, until

TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
SHOWN = {
    "integrationId",
    "name",
    "kind",
    "status",
    "syncInterval",
    "config",
    "createdAt",
    "lastSync",
    "nextSync",
    "breaker",
}
STATUS = {"integrationId", "name", "status", "lastSync", "nextSync", "syncInterval", "stats", "breaker"}


def status_of(system: System, id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = system.ok("GET", "/api/sync/integrations/status")["integrations"]
    return next(one for one in found if one["integrationId"] == id)


def refused(answer: Answer, status: int, code: str) -> None:
    assert (status, code) == (answer.status, answer.json()["code"]), answer
    assert answer.json()["success"] is False


def config(source: Path, target: Path, **more: Any) -> dict[str, Any]:
    return {"sourceDirectory": str(source), "targetDirectory": str(target), **more}


def jobs_of(system: System, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.ok("GET", f"/api/sync/jobs?integrationId={id}&limit=100")["jobs"]
    return found


# Coming, changing, going.


def test_a_new_integration_is_shown_as_it_was_made(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    body = {"id": "new-one", "name": "New", "kind": "files", "config": config(source, target), "syncInterval": 3600}
    answer = system.post("/api/sync/integrations", body)
    made = answer.json()
    assert answer.status == 200
    assert made.keys() == SHOWN
    assert (made["integrationId"], made["name"], made["kind"], made["status"]) == ("new-one", "New", "files", "active")
    assert (made["syncInterval"], made["lastSync"]) == (3600, None)
    assert TIME.fullmatch(made["createdAt"])
    due = datetime.fromisoformat(made["nextSync"]) - datetime.fromisoformat(made["createdAt"])
    assert due == timedelta(seconds=3600)
    assert made["config"]["sourceDirectory"] == str(source)
    assert system.ok("GET", "/api/sync/integrations/new-one") == made
    assert made in system.ok("GET", "/api/sync/integrations")["integrations"]


def test_the_status_of_an_integration_has_the_documents_shape(system: System) -> None:
    system.integration("shaped", system.folder(a="1"), system.place())
    fresh = status_of(system, "shaped")
    assert fresh.keys() == STATUS
    assert (fresh["lastSync"], fresh["nextSync"], fresh["syncInterval"]) == (None, None, None)
    assert fresh["stats"] == {"totalJobs": 0, "successRate": 0.0, "averageDuration": 0}
    job = system.wait(system.queue("shaped"))
    synced = status_of(system, "shaped")
    assert synced["lastSync"] == job["completedAt"]
    assert (synced["stats"]["totalJobs"], synced["stats"]["successRate"]) == (1, 1.0)
    assert isinstance(synced["stats"]["averageDuration"], int)
    with system.numb():
        id = system.queue("shaped")
        system.wait(id, "running")
        assert status_of(system, "shaped")["currentJob"] == {"id": id, "status": "running", "progress": 0}
    system.wait(id)


def test_the_share_of_successes_is_rounded_to_two_places(system: System) -> None:
    source = system.folder(a="1")
    system.integration("rated", source, system.place())
    system.wait(system.queue("rated"))
    system.wait(system.queue("rated"))
    source.rename(source.with_name("moved-away"))
    failed = system.wait(system.queue("rated"))
    assert failed["status"] == "failed"
    found = status_of(system, "rated")
    assert (found["status"], found["stats"]["totalJobs"], found["stats"]["successRate"]) == ("error", 3, 0.67)


def test_without_an_id_the_next_number_is_taken(system: System) -> None:
    body = {"name": "Numbered", "kind": "files", "config": config(system.folder(a="1"), system.place())}
    made = at_once(8, lambda _: system.ok("POST", "/api/sync/integrations", body)["integrationId"])
    assert len(set(made)) == 8
    assert all(re.fullmatch(r"files-integration-\d+", id) for id in made)


def test_an_id_is_taken_once(system: System) -> None:
    body = {"id": "taken", "name": "Taken", "kind": "files", "config": config(system.folder(a="1"), system.place())}
    answers = at_once(8, lambda _: system.post("/api/sync/integrations", body))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7
    refused(next(one for one in answers if one.status == 409), 409, "ALREADY_EXISTS")
    created = [one for one in system.events() if one["type"] == "integrations.created"]
    assert [one["subject"] for one in created].count("integrations/main/taken") == 1


@pytest.mark.parametrize("id", ["status", "Upper", "-x", "", "a" * 65, "a b", "a/b", "\u00e4", "a\n", "a_b", 5])
def test_an_id_has_few_letters(system: System, id: Any) -> None:
    body = {"id": id, "name": "x", "kind": "files", "config": config(system.roots / "a", system.roots / "b")}
    before = system.head()
    refused(system.post("/api/sync/integrations", body), 400, "VALIDATION_ERROR")
    assert before == system.head()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"kind": "nothing"}, 400),
        ({"name": ""}, 400),
        ({"name": "x" * 256}, 400),
        ({"config": {}}, 400),
        ({"config": {"sourceDirectory": "/etc", "targetDirectory": "/root"}}, 403),
        ({"config": {"sourceDirectory": "relative", "targetDirectory": "other"}}, 400),
        ({"config": {"sourceDirectory": "C:\\source", "targetDirectory": "C:\\target"}}, 400),
        ({"config": {"unknown": 1}}, 400),
        ({"config": {"sourceDirectory": "/a", "targetDirectory": "/b", "excludePatterns": ["*" * 17]}}, 400),
        ({"syncInterval": 0}, 400),
        ({"syncInterval": 31_536_001}, 400),
        ({"syncInterval": -5}, 400),
        ({"syncInterval": "60"}, 400),
    ],
)
def test_what_is_no_integration_is_refused(system: System, change: dict[str, Any], status: int) -> None:
    good = {"id": "refused", "name": "x", "kind": "files", "config": config(system.roots / "a", system.roots / "b")}
    before = system.head()
    answer = system.post("/api/sync/integrations", {**good, **change})
    refused(answer, status, "VALIDATION_ERROR" if status == 400 else "FORBIDDEN")
    assert before == system.head()


def test_folders_that_lie_in_each_other_are_refused(system: System) -> None:
    one, other = system.roots / "nest", system.roots / "nest" / "inner"
    for source, target in ((one, other), (other, one), (one, one)):
        body = {"id": "nested", "name": "x", "kind": "files", "config": config(source, target)}
        refused(system.post("/api/sync/integrations", body), 400, "VALIDATION_ERROR")


def test_what_is_left_out_of_a_change_stays(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    made = system.integration("changing", source, target, interval=3600, excludePatterns=["*.tmp"])
    path = "/api/sync/integrations/changing"
    renamed = system.ok("PUT", path, {"name": "Renamed"})
    assert {**made, "name": "Renamed"} == {**made, **renamed}
    assert "nextSync" not in renamed
    assert system.ok("GET", path)["name"] == "Renamed"
    without = system.ok("PUT", path, {"syncInterval": None})
    assert without["syncInterval"] is None
    assert system.ok("GET", path)["nextSync"] is None
    assert system.ok("GET", path)["config"]["excludePatterns"] == ["*.tmp"]
    refused(system.call("PUT", path, {"config": config(Path("/etc"), target)}), 403, "FORBIDDEN")
    refused(system.call("PUT", path, {"syncInterval": 0}), 400, "VALIDATION_ERROR")
    refused(system.call("PUT", "/api/sync/integrations/nothing", {"name": "x"}), 404, "INTEGRATION_NOT_FOUND")


def test_another_configuration_has_no_baseline(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    system.integration("rebased", source, target)
    system.wait(system.queue("rebased", "full"))
    assert system.wait(system.queue("rebased", "incremental"))["type"] == "incremental_sync"
    system.ok("PUT", "/api/sync/integrations/rebased", {"name": "Only the name"})
    assert system.wait(system.queue("rebased", "incremental"))["type"] == "incremental_sync"
    elsewhere = system.place()
    system.ok("PUT", "/api/sync/integrations/rebased", {"config": config(source, elsewhere)})
    assert system.wait(system.queue("rebased", "incremental"))["type"] == "full_sync"
    assert tree(elsewhere) == {"a": b"1"}


def test_a_deleted_integration_is_unknown_and_its_jobs_stay_listed(system: System) -> None:
    system.integration("leaving", system.folder(a="1"), system.place(), interval=3600)
    done = system.queue("leaving")
    system.wait(done)
    with system.idle():
        open_ = system.queue("leaving")
        answer = system.ok("DELETE", "/api/sync/integrations/leaving")
        assert answer == {"success": True, "deleted": "leaving"}
    path = "/api/sync/integrations/leaving"
    for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop")):
        refused(system.call(method, path + below), 404, "INTEGRATION_NOT_FOUND")
    assert {(one["id"], one["status"]) for one in jobs_of(system, "leaving")} == {
        (done, "completed"),
        (open_, "stopped"),
    }
    assert "leaving" not in [
        one["integrationId"] for one in system.ok("GET", "/api/sync/integrations/status")["integrations"]
    ]
    again = system.integration("leaving", system.folder(a="1"), system.place())
    assert again["lastSync"] is None
    assert system.wait(system.queue("leaving", "incremental"))["type"] == "full_sync"


# Starting and stopping.


def test_start_queues_a_sync_and_turns_the_schedule_on(system: System) -> None:
    system.integration("started", system.folder(a="1"), system.place(), interval=3600)
    system.ok("POST", "/api/sync/integrations/started/stop")
    assert (status_of(system, "started")["status"], status_of(system, "started")["nextSync"]) == ("stopped", None)
    body = {"syncType": "incremental", "scheduleImmediate": True}
    answer = system.ok("POST", "/api/sync/integrations/started/start", body)
    assert answer.keys() == {"success", "integrationId", "jobId", "message"}
    assert (answer["success"], answer["integrationId"], answer["message"]) == (True, "started", "Sync started")
    assert system.wait(answer["jobId"])["status"] == "completed"
    assert status_of(system, "started")["status"] == "active"
    assert TIME.fullmatch(status_of(system, "started")["nextSync"])


def test_start_without_a_body_and_without_a_job(system: System) -> None:
    system.integration("bodiless", system.folder(a="1"), system.place())
    answer = system.ok("POST", "/api/sync/integrations/bodiless/start")
    assert system.wait(answer["jobId"])["type"] == "full_sync"
    only = system.ok("POST", "/api/sync/integrations/bodiless/start", {"scheduleImmediate": False})
    assert "jobId" not in only
    assert len(jobs_of(system, "bodiless")) == 1
    refused(system.post("/api/sync/integrations/bodiless/start", {"syncType": "x"}), 400, "VALIDATION_ERROR")
    refused(system.post("/api/sync/integrations/nothing/start"), 404, "INTEGRATION_NOT_FOUND")


def test_stop_ends_its_jobs_and_turns_the_schedule_off(system: System) -> None:
    system.integration("halted", system.folder(a="1"), system.place(), interval=3600)
    system.wait(system.queue("halted"))
    with system.numb():
        running, waiting = system.queue("halted"), system.queue("halted")
        system.wait(running, "running")
        answer = system.ok("POST", "/api/sync/integrations/halted/stop")
        assert answer == {
            "success": True,
            "integrationId": "halted",
            "activeJobsStopped": 2,
            "message": "Integration sync stopped",
        }
    assert [system.wait(id)["status"] for id in (running, waiting)] == ["stopped", "stopped"]
    assert status_of(system, "halted")["status"] == "stopped"
    again = system.ok("POST", "/api/sync/integrations/halted/stop")
    assert again["activeJobsStopped"] == 0


def test_every_command_on_an_integration_is_carried_out_once(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    body = {"name": "Once", "kind": "files", "config": config(source, target), "syncInterval": 3600}
    path = "/api/sync/integrations/once"
    commands: list[tuple[str, str, Any]] = [
        ("POST", "/api/sync/integrations", {**body, "id": "once"}),
        ("POST", "/api/sync/integrations", body),
        ("PUT", path, {"name": "Twice", "syncInterval": 7200}),
        ("POST", path + "/start", {"syncType": "full"}),
        ("POST", path + "/stop", None),
        ("DELETE", path, None),
    ]
    said = []
    for number, (method, where, what) in enumerate(commands):
        key = {"Idempotency-Key": f"once-{number}"}
        answers = at_once(8, lambda _, r=(method, where, what), k=key: system.call(*r, headers=k))
        assert {answer.status for answer in answers} == {200}, answers
        assert len({answer.body for answer in answers}) == 1, answers
        said.append(answers[0])
    for number, (method, where, what) in enumerate(commands):
        later = system.call(method, where, what, headers={"Idempotency-Key": f"once-{number}"})
        assert (said[number].status, said[number].body) == (later.status, later.body)
    of_it = [one["type"].rpartition(".")[2] for one in system.events() if one["subject"].endswith("/once")]
    assert of_it == ["created", "changed", "stopped", "deleted"]


# Schedules.


def test_a_schedule_fires_by_itself_and_what_changed_is_brought_over(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    system.integration("ticking", source, target, interval=1)
    assert until(lambda: [one for one in jobs_of(system, "ticking") if one["status"] == "completed"])
    (source / "later").write_text("2")
    assert until(lambda: (target / "later").exists())
    system.ok("POST", "/api/sync/integrations/ticking/stop")
    queued = [one for one in system.events() if one["type"] == "jobs.queued"]
    mine = [one["data"] for one in queued if one["data"]["ticket"]["integration"] == "ticking"]
    assert {one["trigger"] for one in mine} == {"schedule"}
    assert len({one["due"] for one in mine}) == len(mine)
    assert mine[0]["ticket"]["type"] == "full_sync"
    assert {one["ticket"]["type"] for one in mine[1:]} <= {"incremental_sync"}
    count = len(jobs_of(system, "ticking"))
    system.integration("beside", system.folder(a="1"), system.place(), interval=1)
    assert until(lambda: len(jobs_of(system, "beside")) >= 2)  # time enough for the one that was stopped
    assert count == len(jobs_of(system, "ticking"))
    system.ok("DELETE", "/api/sync/integrations/beside")


def test_what_is_still_waiting_is_not_queued_again(system: System) -> None:
    with system.idle():
        system.integration("patient", system.folder(a="1"), system.place(), interval=1)
        assert until(lambda: jobs_of(system, "patient"))
        system.integration("witness", system.folder(a="1"), system.place(), interval=2)
        assert until(lambda: jobs_of(system, "witness"))
        assert len(jobs_of(system, "patient")) == 1
    assert until(lambda: len(jobs_of(system, "patient")) >= 2)
    for id in ("patient", "witness"):
        system.ok("DELETE", f"/api/sync/integrations/{id}")


def test_a_schedule_outlives_the_core_process(system: System) -> None:
    system.integration("enduring", system.folder(a="1"), system.place(), interval=1)
    assert until(lambda: jobs_of(system, "enduring"))
    system.replaced("core", system.kill("core"))
    count = len(jobs_of(system, "enduring"))
    assert until(lambda: len(jobs_of(system, "enduring")) > count)
    system.ok("DELETE", "/api/sync/integrations/enduring")


# What the configuration file declares.


def test_initialize_says_what_there_is(system: System) -> None:
    for _ in range(2):
        answer = system.ok("POST", "/api/sync/initialize")
        assert list(answer) == ["success", "message", "schedulerStatus", "integrationsFound"]
        assert (answer["success"], answer["message"]) == (True, "Sync system initialized")
        assert answer["schedulerStatus"] == "running"
        assert answer["integrationsFound"] == system.ok("GET", "/api/sync/integrations")["total"]


def test_initialize_says_the_same_under_the_same_key(system: System) -> None:
    def initialize(key: str) -> Answer:
        return system.post("/api/sync/initialize", headers={"Idempotency-Key": key})

    first = initialize("initialize-1")
    system.integration("initialized", system.place(), system.place())
    again = initialize("initialize-1")
    assert (first.status, first.body, first.position) == (again.status, again.body, again.position)
    now = initialize("initialize-2").json()
    assert now == {**first.json(), "integrationsFound": first.json()["integrationsFound"] + 1}
    answers = at_once(8, lambda _: initialize("initialize-3"))
    assert {(one.status, one.body) for one in answers} == {(200, answers[0].body)}
    system.ok("DELETE", "/api/sync/integrations/initialized")


def test_initialize_says_when_there_is_no_scheduler(system: System) -> None:
    with system.paused("core"):
        headers = {"Idempotency-Key": "initialize-4"}
        answer = system.post("/api/sync/initialize", headers=headers)
        assert answer.json()["schedulerStatus"] == "stopped"
    assert until(lambda: system.ok("POST", "/api/sync/initialize")["schedulerStatus"] == "running")
    assert system.post("/api/sync/initialize", headers=headers).body == answer.body


def test_a_declared_integration_is_there_and_comes_back(system: System) -> None:
    found = system.ok("GET", "/api/sync/integrations/declared")
    assert (found["name"], found["syncInterval"]) == ("Declared in the file", 3600)
    assert system.wait(system.queue("declared"))["status"] == "completed"
    assert tree(system.roots / "declared-target") == {"file": b"declared"}
    system.ok("DELETE", "/api/sync/integrations/declared")
    refused(system.get("/api/sync/integrations/declared"), 404, "INTEGRATION_NOT_FOUND")
    system.ok("POST", "/api/sync/initialize")
    assert system.ok("GET", "/api/sync/integrations/declared")["kind"] == "files"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "nothing"}, "Unknown kind"),
        ({"id": "Wrong"}, "id is 1 to 64"),
        ({"source": "{root}/a/b"}, "neither may lie in the other"),
        ({"source": "/etc"}, "outside"),
        ({"interval": "99999999999"}, "interval is 1 to"),
        ({"more": 'unknown = "x"'}, "unknown"),
        ({"beside": 'schedule = { fullCron = "61 * * * *" }'}, "schedule.fullCron: bad minute"),
        ({"beside": "schedule = { every = 9 }"}, "syncInterval: schedule says otherwise"),
        ({"beside": "schedule = { overlapping = 9 }"}, "unknown field `overlapping`"),
        ({"beside": "policy = { attempts = 0 }"}, "policy.attempts: expected 1 to 100"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_declaration_is_named_and_nothing_starts(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    one = {"id": "wrong", "kind": "files", "source": "{root}/b", "interval": "5", "more": "", "beside": "", **change}
    wrong = System(tmp_path)
    config = f'sourceDirectory = "{one["source"]}", targetDirectory = "{{root}}/a"'.format(root=wrong.roots)
    wrong.settings += f"""
[[integrations]]
id = "{one["id"]}"
name = "x"
kind = "{one["kind"]}"
sync_interval = {one["interval"]}
config = {{ {config}{", " if one["more"] else ""}{one["more"]} }}
{one["beside"]}
"""
    with pytest.raises(AssertionError):
        wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(30) == 2
    [said] = wrong.said().splitlines()
    assert said.startswith(f"undrift up: [[integrations]] {one['id']}: ")
    assert reason in said
    assert not (wrong.directory / "pg").exists()
