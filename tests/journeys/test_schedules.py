"""Schedules and policies as clients say and see them: what may be said, what is shown, how a breaker works."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.journeys.system import System, until

NIGHTLY = {"cron": "30 2 * * *", "timeZone": "Europe/Berlin", "overlap": "skip", "catchUp": "none", "jitter": 60}


def create(system: System, id: str, **more: Any) -> Any:
    config = {"sourceDirectory": str(system.folder(a="1")), "targetDirectory": str(system.place())}
    body = {"id": id, "name": id, "kind": "files", "config": config, **more}
    return system.ok("POST", "/api/sync/integrations", body)


def show(system: System, id: str) -> Any:
    return system.ok("GET", f"/api/sync/integrations/{id}", headers={"Undrift-Min-Position": str(system.wrote)})


def change(system: System, id: str, **body: Any) -> Any:
    return system.ok("PUT", f"/api/sync/integrations/{id}", body)


def status(system: System, id: str) -> Any:
    found = system.ok("GET", "/api/sync/integrations/status", headers={"Undrift-Min-Position": str(system.wrote)})[
        "integrations"
    ]
    return next(one for one in found if one["integrationId"] == id)


def jobs_of(system: System, id: str) -> list[Any]:
    found: list[Any] = system.ok("GET", f"/api/sync/jobs?integrationId={id}&limit=100")["jobs"]
    return found


def test_a_schedule_by_cron_is_shown_as_it_was_said(system: System) -> None:
    made = create(system, "nightly", schedule=NIGHTLY)
    assert made["schedule"] == NIGHTLY
    assert made["syncInterval"] is None
    assert show(system, "nightly") == made
    due = datetime.fromisoformat(made["nextSync"])
    assert due > datetime.now(UTC)
    assert status(system, "nightly")["nextSync"] == made["nextSync"]


def test_an_interval_said_as_a_schedule_is_shown_as_an_interval(system: System) -> None:
    assert create(system, "plainly", schedule={"every": 3600})["syncInterval"] == 3600
    assert "schedule" not in show(system, "plainly")
    changed = change(system, "plainly", syncInterval=7200, schedule={"overlap": "cancel_other", "fullEvery": 86400})
    assert changed["schedule"] == {"every": 7200, "overlap": "cancel_other", "fullEvery": 86400}
    assert change(system, "plainly", schedule=None)["syncInterval"] is None
    assert show(system, "plainly")["nextSync"] is None


def test_an_interval_takes_the_place_of_a_cron_and_leaves_the_rest(system: System) -> None:
    create(system, "turning", schedule=NIGHTLY)
    job = system.queue("turning")
    answer = system.ok("PUT", f"/api/sync/jobs/{job}/interval", {"interval": 600})
    assert (answer["oldInterval"], answer["newInterval"]) == (None, 600)
    found = show(system, "turning")
    rest = {name: value for name, value in NIGHTLY.items() if name != "cron"}
    assert (found["syncInterval"], found["schedule"]) == (600, {"every": 600, **rest})
    assert found["nextSync"] == answer["nextRun"]


def test_a_policy_is_shown_and_changed(system: System) -> None:
    assert create(system, "strict", policy={"attempts": 2, "timeout": 60_000})["policy"] == {
        "attempts": 2,
        "timeout": 60_000,
    }
    assert change(system, "strict", policy={"backoff": 5})["policy"] == {"backoff": 5}
    assert show(system, "strict")["policy"] == {"backoff": 5}
    assert "policy" not in change(system, "strict", policy=None)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"syncInterval": -5}, "syncInterval"),
    ({"syncInterval": 0}, "syncInterval"),
    ({"schedule": {"every": -5}}, "schedule.every"),
    ({"schedule": {"every": "often"}}, "schedule.every"),
    ({"schedule": {"cron": "every day"}}, "schedule.cron"),
    ({"schedule": {"cron": "0 25 * * *"}}, "schedule.cron"),
    ({"schedule": {"cron": "0 1 * * *", "timeZone": "Berlin"}}, "schedule.timeZone"),
    ({"schedule": {"every": 5, "overlap": "perhaps"}}, "schedule.overlap"),
    ({"schedule": {"every": 5, "catchUp": "some"}}, "schedule.catchUp"),
    ({"schedule": {"every": 5, "jitter": 6}}, "schedule.jitter"),
    ({"schedule": {"every": 5, "crom": "* * * * *"}}, "crom"),
    ({"schedule": {}}, "schedule"),
    ({"schedule": {"cron": "0 1 * * *"}, "syncInterval": 5}, "syncInterval"),
    ({"policy": {"attempts": 0}}, "policy.attempts"),
    ({"policy": {"retries": 3}}, "retries"),
]


@pytest.mark.parametrize(("said", "field"), WRONG, ids=[str(said)[:50] for said, _ in WRONG])
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    system: System, said: dict[str, Any], field: str
) -> None:
    if system.get("/api/sync/integrations/firm").status == 404:
        create(system, "firm", syncInterval=3600)
    before, head = show(system, "firm"), system.head()
    config = {"sourceDirectory": str(system.folder(a="1")), "targetDirectory": str(system.place())}
    create_ = {"id": "never", "name": "never", "kind": "files", "config": config, **said}
    for answer in (
        system.post("/api/sync/integrations", create_),
        system.call("PUT", "/api/sync/integrations/firm", said),
    ):
        assert answer.status == 400, answer
        found = answer.json()
        assert found.keys() == {"success", "error", "code"}
        assert (found["success"], found["code"]) == (False, "VALIDATION_ERROR")
        assert field in found["error"]
    assert system.get("/api/sync/integrations/never").status == 404
    assert show(system, "firm") == before
    ours = [one for one in system.events(head) if one["type"].startswith("integrations.")]
    assert ours == []


def test_the_document_says_what_may_be_said(system: System) -> None:
    parts = system.ok("GET", "/schema/openapi.json")["components"]["schemas"]
    schedule, policy = parts["StrictSchedule"], parts["StrictPolicy"]
    assert schedule["properties"]["overlap"]["enum"] == ["cancel_other", "queue", "skip"]
    assert schedule["properties"]["catchUp"]["enum"] == ["all", "none", "one"]
    assert schedule["properties"]["every"]["minimum"] == 1
    assert "how many of the times that were missed are run" in " ".join(schedule["description"].split())
    assert policy["properties"]["attempts"]["maximum"] == 100
    assert "times in milliseconds" in policy["description"]


def test_a_job_that_will_be_tried_again_says_when(system: System) -> None:
    """Its remote is a port on which nobody listens."""
    config = {"baseUrl": "http://127.0.0.1:1", "workspace": "acme", "apiKey": f"plane_api_{'0' * 32}"}
    policy = {"attempts": 3, "backoff": 3_600_000, "backoffMax": 3_600_000}
    body = {"id": "away", "name": "away", "kind": "plane", "config": config, "policy": policy}
    system.ok("POST", "/api/sync/integrations", body)
    job = system.queue("away")
    found = system.wait(job)
    assert found["status"] == "paused"
    error = found["error"]
    assert (error["code"], error["tried"]) == ("remote_unavailable", 1)
    assert error["message"]
    wait = datetime.fromisoformat(error["nextTry"]) - datetime.now(UTC)
    assert 0 < wait.total_seconds() <= 3600
    assert status(system, "away")["breaker"] == {"state": "closed", "failures": 1}
    system.ok("POST", f"/api/sync/jobs/{job}/resume")
    assert until(lambda: system.job(job).get("error", {}).get("code") == "remote_unavailable")
    assert system.call("DELETE", f"/api/sync/jobs/{job}").status == 409
    stopped = system.ok("POST", "/api/sync/integrations/away/stop")
    assert stopped["activeJobsStopped"] == 1
    assert system.status(job) == "stopped"


def test_full_runs_beside_incremental_ones(system: System) -> None:
    create(system, "both", schedule={"every": 1, "fullEvery": 2})
    assert until(lambda: {one["type"] for one in jobs_of(system, "both")} == {"full_sync", "incremental_sync"})
    system.ok("DELETE", "/api/sync/integrations/both")


def test_the_breaker_stops_a_schedule_that_fails_and_a_job_by_hand_closes_it(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    config = {"sourceDirectory": str(source), "targetDirectory": str(target)}
    body = {"id": "breaking", "name": "b", "kind": "files", "config": config, "syncInterval": 1}
    policy = {"breakerFailures": 2, "breakerPause": 3_600_000, "attempts": 1}
    source.rename(source.with_name("away"))
    made = system.ok("POST", "/api/sync/integrations", {**body, "policy": policy})
    assert made["breaker"] == {"state": "closed", "failures": 0}
    assert until(lambda: status(system, "breaking")["breaker"]["state"] == "open")
    breaker = status(system, "breaking")["breaker"]
    assert breaker.keys() == {"state", "failures", "openedAt", "nextProbe"}
    assert breaker["failures"] == 2
    opened, probe = (datetime.fromisoformat(breaker[name]) for name in ("openedAt", "nextProbe"))
    assert (probe - opened).total_seconds() == 3600
    assert status(system, "breaking")["status"] == "error"
    count = len(jobs_of(system, "breaking"))
    create(system, "witness-of-breaking", syncInterval=1)  # time enough for the one whose breaker is open
    assert until(lambda: len(jobs_of(system, "witness-of-breaking")) >= 3)
    assert len(jobs_of(system, "breaking")) == count == 2
    assert system.wait(system.queue("breaking"))["status"] == "failed"
    assert status(system, "breaking")["breaker"]["failures"] == 3
    source.with_name("away").rename(source)
    assert system.wait(system.queue("breaking"))["status"] == "completed"
    assert status(system, "breaking")["breaker"]["failures"] == 0
    assert until(lambda: len(jobs_of(system, "breaking")) > count + 2)
    for id in ("breaking", "witness-of-breaking"):
        system.ok("DELETE", f"/api/sync/integrations/{id}")
