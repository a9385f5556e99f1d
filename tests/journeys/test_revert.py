"""Undo over HTTP: a finished job's work is put back by another job, once."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from msgspec import Raw

from domain import jobs
from infra.eventstore.store import Decided, Loaded
from tests.journeys.system import System, tree
from tests.journeys.test_collections import bring, read
from tests.projections.histories import open_store

_numbers = itertools.count(1)


def reverted(system: System, job: str, **more: Any) -> Any:
    """The job that undid another, once it has ended."""
    answer = system.ok("POST", f"/api/sync/jobs/{job}/revert", **more)
    assert (answer["success"], answer["status"]) == (True, "queued")
    return system.wait(answer["jobId"])


def test_a_folder_sync_is_undone(system: System) -> None:
    source, target = system.folder(a="1", b__c="2"), system.place()
    system.integration("undone", source, target, deleteMissingInTarget=True)
    system.wait(system.queue("undone"))
    before = tree(target)
    (source / "a").unlink()
    (source / "new").write_text("3")
    job = system.queue("undone", options={"force": True})
    system.wait(job)
    done = reverted(system, job)
    assert (done["status"], done["kind"]) == ("completed", "revert")
    counts = {"processed": 2, "created": 1, "updated": 0, "deleted": 1, "errors": 0}
    assert done["result"] == {**counts, "conflictCount": 0, "conflicts": []}
    assert tree(target) == before
    again = reverted(system, job)["result"]
    assert (again["created"], again["updated"], again["deleted"], again["conflictCount"]) == (0, 0, 0, 0)
    assert tree(target) == before


async def _ended(url: str, job: str, collection: str) -> None:
    """A job of a collection that has come to its end, as a worker would have left it."""
    ticket = jobs.Ticket(job=job, kind="plane", type="full_sync", lane="later", integration=collection)
    events: list[jobs.Event] = [
        jobs.Queued(ticket=ticket, spec=Raw(b"{}")),
        jobs.Completed(ticket=ticket, counters=jobs.Counters(), result=Raw(b"{}"), duration_ms=1),
    ]
    async with open_store(url) as store:
        writing = asyncio.create_task(store.writer.run())
        await store.append([Decided(jobs, job, Loaded(jobs.initial), events)])
        writing.cancel()


def test_a_collection_is_undone_and_conflicts_are_listed(system: System) -> None:
    collection = bring(system, ("a", "kept", {"v": 1}), ("a", "changed", {"v": 1}))
    job = f"sync-job-reverting-{next(_numbers)}"
    asyncio.run(_ended(system.ready["database_url"], job, collection))
    bring(system, ("a", "changed", {"v": 2}), ("a", "new", {}), ("a", "moved", {}), collection=collection, job=job)
    bring(system, ("a", "moved", {"by": "somebody"}), collection=collection)
    done = reverted(system, job)
    assert done["result"] == {
        "processed": 3,
        "created": 0,
        "updated": 1,
        "deleted": 1,
        "errors": 0,
        "conflictCount": 1,
        "conflicts": [{"path": "a/moved", "reason": "it has changed since"}],
    }
    found = {one["id"]: one["content"] for one in read(system, f"/{collection}/items")["items"]}
    assert found == {"kept": {"v": 1}, "changed": {"v": 1}, "moved": {"by": "somebody"}}


def test_the_same_key_reverts_once(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    system.integration("undone-once", source, target)
    job = system.queue("undone-once")
    system.wait(job)
    headers = {"Idempotency-Key": "undo-it"}
    first, second = (system.call("POST", f"/api/sync/jobs/{job}/revert", headers=headers) for _ in range(2))
    assert (first.status, second.body) == (200, first.body)
    assert system.wait(first.json()["jobId"])["result"]["deleted"] == 1


def test_what_cannot_be_reverted_says_why(system: System) -> None:
    assert system.post("/api/sync/jobs/sync-job-never/revert").status == 404
    source, target = system.folder(a="1"), system.place()
    system.integration("not-yet", source, target)
    with system.idle():
        job = system.queue("not-yet")
        queued = system.post(f"/api/sync/jobs/{job}/revert")
        assert (queued.status, "queued job cannot be reverted" in queued.json()["error"]) == (409, True)
        system.ok("POST", f"/api/sync/jobs/{job}/stop")
    stopped = system.post(f"/api/sync/jobs/{job}/revert")
    assert (stopped.status, "completed" in stopped.json()["error"]) == (409, True)
    system.ok("DELETE", f"/api/sync/jobs/{job}")
    assert system.post(f"/api/sync/jobs/{job}/revert").status == 404


def test_a_revert_of_a_folder_is_none_of_a_revert(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    system.integration("undone-twice", source, target)
    job = system.queue("undone-twice")
    system.wait(job)
    revert = reverted(system, job)
    answer = system.post(f"/api/sync/jobs/{revert['id']}/revert")
    assert (answer.status, answer.json()["code"]) == (409, "INVALID_STATE")


def test_nobody_undoes_outside_of_his_roots(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    system.integration("not-yours", source, target)
    job = system.queue("not-yours")
    system.wait(job)
    token = system.key("elsewhere", "jobs:write", roots=[system.folder()])
    assert system.post(f"/api/sync/jobs/{job}/revert", token=token).status == 403
    assert tree(target) == {"a": b"1"}


def test_no_integration_is_of_that_kind(system: System) -> None:
    answer = system.post("/api/sync/integrations", {"name": "x", "kind": "revert", "config": {}})
    assert answer.status == 400
