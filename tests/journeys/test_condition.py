"""Who watches an instance is told what is not as it should be, and what its jobs take."""

from __future__ import annotations

import re
from typing import Any

from tests.journeys.system import ADMIN, System, until

LINE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")


def figures(system: System) -> dict[tuple[str, str], float]:
    """By name and labels, as they stand in the text."""
    text = system.get("/metrics").body.decode()
    found = (LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    return {(match[1], match[2] or ""): float(match[3]) for match in found if match is not None}


def ready(system: System) -> Any:
    return system.ok("GET", "/readyz")


def one(system: System) -> str:
    system.post(
        "/api/sync/integrations",
        {
            "id": "condition",
            "name": "Condition",
            "kind": "files",
            "config": {"sourceDirectory": f"{system.roots}/c1", "targetDirectory": f"{system.roots}/c2"},
        },
    )
    return "condition"


def test_all_is_well(system: System) -> None:
    assert until(lambda: ready(system)["status"] == "ready")
    found = ready(system)
    assert found.keys() == {"status", "head", "applied"}
    assert figures(system)["undrift_degraded", ""] == 0
    assert until(lambda: figures(system)["undrift_relay_lag_events", ""] == 0)
    assert not any("Degraded" in line for line in said(system))


def said(system: System) -> list[str]:
    return [str(line) for line in system.undrift("status").get("reasons", [])]


def test_parked_events_are_told_of(system: System) -> None:
    system.sql(
        "insert into undrift.parked (projection, generation, pos, stream_id, reason)"
        " values ('tests', 1, 1, 'x/main/y', 'for a test') returning 1"
    )
    try:
        assert until(lambda: ready(system)["status"] == "degraded")
        assert ready(system)["reasons"] == ["1 events are parked; `undrift doctor` names them"]
        found = figures(system)
        assert (found["undrift_parked_events", ""], found["undrift_degraded", ""]) == (1, 1)
        assert said(system) == ready(system)["reasons"]
    finally:
        system.sql("delete from undrift.parked where projection = 'tests' returning 1")
    assert until(lambda: ready(system)["status"] == "ready")


def test_a_nats_that_stands_still_is_told_of_and_requests_are_served(system: System) -> None:
    with system.paused("nats"):
        assert until(lambda: ready(system)["status"] == "degraded")
        assert any("HTTP only" in reason for reason in ready(system)["reasons"])
        assert system.get("/api/sync/jobs").status == 200
    assert until(lambda: ready(system)["status"] == "ready")


def test_a_relay_that_stands_still_is_told_of(system: System) -> None:
    with system.paused("core"):
        one(system)
        assert until(lambda: ready(system)["status"] == "degraded")
        [reason] = ready(system)["reasons"]
        assert re.fullmatch(r"the relay is \d+ events behind, the oldest for more than 10 s", reason)
        assert figures(system)["undrift_relay_lag_events", ""] >= 1
    assert until(lambda: ready(system)["status"] == "ready")


def test_what_jobs_took_adds_up_by_kind(system: System) -> None:
    system.whole()
    before = figures(system)
    system.integration("condition-files", system.folder(a="x" * 100_000, b="y" * 50_000), system.place())
    system.wait(system.queue("condition-files"), "completed")
    system.integration("condition-fails", system.place(), system.place())
    system.wait(system.queue("condition-fails"), "failed")
    kind = 'kind="files"'

    def more(name: str, labels: str = kind) -> float:
        return figures(system)[name, labels] - before.get((name, labels), 0)

    assert until(lambda: more("undrift_job_runs_total") >= 2)
    assert more("undrift_jobs_total", f'{kind},status="completed"') == 1
    assert more("undrift_jobs_total", f'{kind},status="failed"') == 1
    assert more("undrift_job_bytes_total") == 150_000
    assert more("undrift_job_items_total") == 2
    assert 0 < more("undrift_job_cpu_seconds_total") < 60
    assert more("undrift_job_seconds_total") > 0
    assert 10 * 2**20 < figures(system)["undrift_job_peak_bytes", kind] < 2**30
    found = {one["integrationId"]: one for one in system.ok("GET", "/api/sync/integrations/status")["integrations"]}
    usage = found["condition-files"]["usage"]
    assert (usage["runs"], usage["bytes"], usage["items"]) == (1, 150_000, 2)
    assert usage["cpuTime"] >= 0
    assert usage["peakMemory"] > 10 * 2**20
    assert found["condition-fails"]["usage"]["runs"] == 1
    assert "usage" not in found["declared"] or found["declared"]["usage"]["runs"] > 0


def test_what_remotes_allow_is_shown_by_integration_without_their_names(system: System) -> None:
    system.sql(
        "with r as (insert into undrift.remotes (name, remaining, reset_at)"
        " values ('0123456789abcdef', 37, '2030-01-01T00:00:00Z') returning name)"
        " insert into undrift.remote_uses (tenant, integration, remote) select 'main', 'quota-shown', name from r"
        " returning 1"
    )
    labels = 'integration="quota-shown",tenant="main"'
    found = figures(system)
    names = {key[0]: value for key, value in found.items() if "quota-shown" in key[1]}
    assert names == {"undrift_remote_remaining": 37, "undrift_remote_reset_timestamp_seconds": 1893456000}, labels
    assert b"0123456789abcdef" not in system.get("/metrics", token=ADMIN).body
    system.sql("delete from undrift.remotes where name = '0123456789abcdef' returning 1")
