"""Metrics as the EonaCat document has them, equal to what the log tells otherwise; and figures for Prometheus."""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import datetime
from typing import Any

import pytest

from tests.journeys.system import ADMIN, System, until
from tests.journeys.test_condition import figures

NAMES = [
    "totalSyncOperations",
    "successfulSyncs",
    "failedSyncs",
    "averageSyncDuration",
    "totalDataTransferred",
    "cloudStorageUsage",
]
KINDS = ("files", "databases", "plane", "network", "servers")


def metrics(system: System, token: str = ADMIN) -> Any:
    return system.ok("GET", "/api/v1/metrics", token=token)


def counted(system: System, token: str = ADMIN) -> dict[str, Any]:
    """The same from the event feed, by the history of each job."""
    jobs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in system.events(token=token):
        if event["subject"].startswith("jobs/"):
            jobs[event["subject"]].append(event)
    found = {"completed": 0, "failed": 0}
    took_ms, moved = 0, 0
    for events in jobs.values():
        tickets = [event["data"]["ticket"] for event in events if "ticket" in event["data"]]
        if tickets[0]["kind"] not in KINDS:
            continue
        moved += sum((event["data"].get("usage") or {}).get("bytes", 0) for event in events)
        turns = [event for event in events if event["type"] in ENDS]
        if turns and turns[-1]["type"] in ("jobs.completed", "jobs.failed"):
            found[turns[-1]["type"].removeprefix("jobs.")] += 1
            begun = next(event for event in events if event["type"] == "jobs.started")
            took_ms += round((at(turns[-1]) - at(begun)).total_seconds() * 1000)
    total = found["completed"] + found["failed"]
    return {
        "totalSyncOperations": total,
        "successfulSyncs": found["completed"],
        "failedSyncs": found["failed"],
        "averageSyncDuration": took_ms / total if total else 0,
        "totalDataTransferred": moved,
        "cloudStorageUsage": {"azure": 0, "s3": 0},
    }


ENDS = ("jobs.started", "jobs.resumed", "jobs.stopped", "jobs.completed", "jobs.failed")


def at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])


def sync(system: System, source: Any, target: Any, token: str = ADMIN) -> int:
    body = {"sourceDirectory": str(source), "targetDirectory": str(target)}
    return system.post("/api/v1/sync/files", body, token=token).status


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Both ends of each duration are told in whole milliseconds, and so is the average: it may differ by two."""
    near = abs(found["averageSyncDuration"] - expected["averageSyncDuration"]) <= 2
    return near and {**found, "averageSyncDuration": 0} == {**expected, "averageSyncDuration": 0}


def test_the_document_s_names_and_numbers(system: System) -> None:
    found = metrics(system)
    assert [*found] == NAMES
    assert [*found["cloudStorageUsage"]] == ["azure", "s3"]
    assert all(type(found[name]) is int and found[name] >= 0 for name in NAMES[:-1])
    assert found["totalSyncOperations"] == found["successfulSyncs"] + found["failedSyncs"]


def test_a_sync_is_in_the_metrics_as_soon_as_it_was_answered(system: System) -> None:
    system.undrift("tenants", "add", "metrics")
    token = system.key("metrics-all", "files", "jobs", "feeds", tenant="metrics")
    zero = {**dict.fromkeys(NAMES[:-1], 0), "cloudStorageUsage": {"azure": 0, "s3": 0}}
    assert metrics(system, token) == zero
    source = system.folder(a="x" * 1000, b="y" * 500)
    target = system.place()
    assert sync(system, source, target, token) == 200
    found = metrics(system, token)
    assert (found["totalSyncOperations"], found["successfulSyncs"], found["failedSyncs"]) == (1, 1, 0)
    assert found["totalDataTransferred"] == 1500
    assert sync(system, source, target, token) == 200  # nothing to move
    assert sync(system, system.place(), target, token) == 500  # no such source
    found = metrics(system, token)
    assert (found["totalSyncOperations"], found["successfulSyncs"], found["failedSyncs"]) == (3, 2, 1)
    assert found["totalDataTransferred"] == 1500
    assert same(found, counted(system, token))


def test_they_equal_the_log_whatever_else_happens(system: System) -> None:
    """A job that is stopped, one that fails and is resumed and completes, one that only fails."""
    system.whole()
    source, late = system.folder(a="1"), system.place()
    system.integration("metrics-late", late, system.place())
    job = system.queue("metrics-late")
    system.wait(job, "failed")
    before = metrics(system)
    assert same(before, counted(system))
    late.mkdir()
    (late / "now").write_text("it is there")
    system.ok("POST", f"/api/sync/jobs/{job}/resume")
    system.wait(job, "completed")
    system.integration("metrics-stopped", source, system.place())
    with system.idle():
        stopped = system.queue("metrics-stopped")
        system.ok("POST", f"/api/sync/jobs/{stopped}/stop")
    system.wait(stopped, "stopped")
    assert until(lambda: metrics(system)["successfulSyncs"] > before["successfulSyncs"])
    after = metrics(system)
    assert (after["failedSyncs"], after["totalSyncOperations"]) == (
        before["failedSyncs"] - 1,
        before["totalSyncOperations"],
    )
    assert until(lambda: same(metrics(system), counted(system)))


def test_what_is_no_sync_is_not_counted(system: System) -> None:
    before = metrics(system)
    system.sql(
        "insert into rm_syncs_1.syncs select 'main', 'reverts-of-tests', 5, 5, 5, 5, 5, 0, 0, 0, 0, 0, 0 returning 1"
    )
    try:
        assert metrics(system)["totalSyncOperations"] == before["totalSyncOperations"]
    finally:
        system.sql("delete from rm_syncs_1.syncs where kind = 'reverts-of-tests' returning 1")


@pytest.mark.parametrize("scope", ["files", "merges:read"])
def test_who_may_not_read_jobs_may_not_read_their_sums(system: System, scope: str) -> None:
    answer = system.get("/api/v1/metrics", token=system.key(f"metrics-{scope}", scope))
    assert (answer.status, answer.json()["errorCode"]) == (403, "FORBIDDEN")
    assert system.get("/api/v1/metrics").status == 401


# Prometheus.

FIXED = (
    "undrift_notifier_lag_events",
    "undrift_pending_deliveries",
    "undrift_pending_deliveries_oldest_seconds",
    "undrift_open_conflicts",
    "undrift_open_conflicts_oldest_seconds",
    "undrift_open_sessions",
    "undrift_open_sessions_oldest_seconds",
)


def test_every_lag_has_a_figure(system: System) -> None:
    assert until(lambda: all((name, "") in figures(system) for name in FIXED))
    found = figures(system)
    behind = {labels for name, labels in found if name == "undrift_projection_behind_events"}
    assert {f'projection="{name}"' for name in ("jobs", "library", "syncs", "sessions", "webhooks")} <= behind
    assert until(
        lambda: all(n == 0 for (name, _), n in figures(system).items() if name == "undrift_projection_behind_events")
    )
    assert until(lambda: figures(system)["undrift_notifier_lag_events", ""] == 0)


def test_a_reader_that_stands_still_falls_behind(system: System) -> None:
    with system.paused("core"):
        system.post("/api/sync/jobs/stop-all", {"integrationId": "nobody"})
        system.integration("metrics-behind", system.place(), system.place())
        found = figures(system)
        assert found["undrift_projection_behind_events", 'projection="jobs"'] >= 1
        assert found["undrift_notifier_lag_events", ""] >= 1
    assert until(lambda: figures(system)["undrift_notifier_lag_events", ""] == 0)


def test_what_waits_in_a_lane_grows_older(system: System) -> None:
    later = 'lane="later"'
    system.integration("metrics-queue", system.folder(a="1"), system.place())
    with system.idle():
        job = system.queue("metrics-queue")
        assert until(lambda: figures(system)["undrift_queued_jobs", later] >= 1)
        first = figures(system)["undrift_queued_jobs_oldest_seconds", later]
        assert until(lambda: figures(system)["undrift_queued_jobs_oldest_seconds", later] > first + 0.5)
    system.wait(job)
    assert until(lambda: figures(system)["undrift_queued_jobs", later] == 0)
    assert figures(system)["undrift_queued_jobs_oldest_seconds", later] == 0


def test_durations_are_a_histogram(system: System) -> None:
    assert sync(system, system.folder(a="1"), system.place()) == 200
    found = figures(system)
    buckets = [
        found["undrift_job_duration_seconds_bucket", f'kind="files",le="{most}"']
        for most in ("0.1", "1.0", "10.0", "60.0", "600.0", "3600.0", "+Inf")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["undrift_job_duration_seconds_count", 'kind="files"'] >= 1
    assert found["undrift_job_duration_seconds_sum", 'kind="files"'] > 0


def test_labels_are_of_fixed_sets(system: System) -> None:
    """Nothing that clients make up grows the number of series; integrations with a quota are bounded by themselves."""
    text = system.get("/metrics").body.decode()
    names = {
        label
        for line in text.splitlines()
        if not line.startswith(("#", "undrift_remote_"))
        for label in re.findall(r'[{,]([a-z_]+)="', line)
    }
    assert names == {"kind", "lane", "le", "method", "projection", "route", "status"}
    before = sum(line.startswith("undrift_") for line in text.splitlines())
    for number in range(5):
        system.get(f"/api/v1/nothing-{number}")
        system.get(f"/api/sync/jobs/none-{number}")
    after = [line for line in system.get("/metrics").body.decode().splitlines() if line.startswith("undrift_")]
    assert len(after) <= before + 20
    assert not any("none-" in line or "nothing-" in line for line in after)
