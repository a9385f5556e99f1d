"""Plane, from outside: what its API shows becomes a collection, whatever happens to it and to us on the way."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.doubles.plane import Plane
from tests.doubles.plane_world import Record
from tests.journeys.system import ADMIN, Answer, System, children, until

SECRET = "plane_wh_0123456789abcdef"
_numbers = itertools.count(1)


@dataclass
class Link:
    """An integration of the system under test with a Plane of its own."""

    system: System
    plane: Plane
    id: str = field(default_factory=lambda: f"plane-{next(_numbers)}-{os.getpid()}")

    def create(self, **config: Any) -> Any:
        whole = {"baseUrl": self.plane.url, "workspace": "acme", "apiKey": self.plane.key.token, **config}
        body = {"id": self.id, "name": "Plane.so Integration", "kind": "plane", "config": whole}
        return self.system.ok("POST", "/api/sync/integrations", body)

    def run(self, type: str = "full_sync", **options: Any) -> Any:
        """A job to its end, which must be a good one."""
        job = self.system.wait(self.queue(type, **options))
        assert job["status"] == "completed", job
        return job

    def queue(self, type: str = "full_sync", **options: Any) -> str:
        return self.system.queue(self.id, type, options=options)

    def items(self, entity: str, deleted: bool = False) -> dict[str, Any]:
        """What the collection holds, id -> content."""
        found: dict[str, Any] = {}
        cursor = ""
        while True:
            query = f"entity={entity}&limit=200" + ("&deleted=true" if deleted else "") + cursor
            path = f"/api/sync/collections/{self.id}/items?{query}"
            page = self.system.ok("GET", path, headers={"Undrift-Min-Position": str(self.system.wrote)})
            found |= {one["id"]: one["content"] for one in page["items"]}
            if page["nextCursor"] is None:
                return found
            cursor = f"&cursor={page['nextCursor']}"

    def events(self) -> list[tuple[str, str]]:
        """What the log says of this collection's items, in order."""
        rows = self.system.sql(
            "select topic, convert_from(state, 'utf8')::json->>'item' from undrift.events"
            " where stream_id like %s order by pos",
            f"items/main/{self.id}.%",
        )
        return [(topic.removeprefix("items."), item) for topic, item in rows]

    def reasons(self) -> dict[str, str]:
        rows = self.system.sql(
            "select convert_from(state, 'utf8')::json->>'item', convert_from(state, 'utf8')::json->>'reason'"
            " from undrift.events where stream_id like %s and topic = 'items.deleted'",
            f"items/main/{self.id}.%",
        )
        return dict(rows)

    def same(self) -> None:
        """The collection holds exactly what Plane shows."""
        world = self.plane.world
        for kind in ("projects", "states", "labels", "cycles", "modules", "work_items"):
            shown = {one["id"] for project in world.records["projects"] for one in world.listed(kind, project)}
            shown = set(world.records["projects"]) if kind == "projects" else shown
            found = self.items(kind)
            assert found.keys() == shown, kind
            assert {id: one["name"] for id, one in found.items()} == {
                id: world.records[kind][id]["name"] for id in shown
            }

    def hook(self, kind: str, action: str, record: Record, secret: str = SECRET, **headers: str) -> Answer:
        own, body = self.plane.webhook(kind, action, record, secret)
        return self.system.post(f"/api/sync/integrations/{self.id}/hooks/plane", body, headers={**own, **headers})


@pytest.fixture
def plane() -> Iterator[Plane]:
    with Plane() as running:
        yield running


@pytest.fixture
def link(system: System, plane: Plane) -> Link:
    return Link(system, plane)


def old(plane: Plane, project: str) -> None:
    """Everything there is was made and changed an hour ago."""
    with plane.world.still():
        for kind in plane.world.records:
            for one in plane.world.of(kind, None if kind == "projects" else project):
                one["created_at"] -= timedelta(hours=1)
                one["updated_at"] = one["created_at"]


# Full, incremental, selective.


def test_a_full_sync_brings_everything_there_is(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    for name in ("Rockets", "Boats"):
        project = world.project(name, owner)
        world.add("labels", project, owner, name="bug", color="#f00")
        world.add("cycles", project, owner, name="One", owned_by=owner)
        world.add("modules", project, owner, name="Engine")
        world.items(project, owner, 60)
    link.create()
    job = link.run()
    link.same()
    assert {name: job["result"][name] for name in ("created", "updated", "deleted", "errors")} == {
        "created": 2 * (1 + 5 + 1 + 1 + 1 + 1 + 60),
        "updated": 0,
        "deleted": 0,
        "errors": 0,
    }
    assert job["result"]["processed"] >= job["result"]["created"]
    members = link.items("members")
    assert {one["display_name"] for one in members.values()} == {"ada"}
    assert {one["project"] for one in members.values()} == set(world.records["projects"])
    assert all(one.path.endswith("/") for one in link.plane.requests)


def test_a_second_sync_of_the_same_changes_nothing(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 30)
    link.create()
    link.run()
    before = link.events()
    for type in ("full_sync", "incremental_sync"):
        result = link.run(type)["result"]
        assert (result["created"], result["updated"], result["deleted"]) == (0, 0, 0)
    assert link.events() == before


def test_an_incremental_sync_asks_only_for_what_changed(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    ids = world.items(project, owner, 250)
    old(link.plane, project)
    link.create(overlap=60)
    link.run()
    asked = len(link.plane.requests)
    world.change("work_items", ids[7], name="Changed")
    (new,) = world.items(project, owner, 1, "New")
    job = link.run("incremental_sync")
    link.same()
    assert (job["type"], job["result"]["created"], job["result"]["updated"]) == ("incremental_sync", 1, 1)
    assert link.events()[-2:] in ([("created", new), ("updated", ids[7])], [("updated", ids[7]), ("created", new)])
    pages = [one for one in link.plane.requests[asked:] if one.path.endswith("/work-items/")]
    assert [(one.query["order_by"], one.query["cursor"]) for one in pages] == [("-updated_at", "50:0:0")]


def test_an_incremental_sync_looks_back_over_its_overlap(link: Link) -> None:
    """What was changed before the mark and became visible only later is found all the same."""
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    first, second, third = world.items(project, owner, 3)
    old(link.plane, project)
    link.create(overlap=120)
    link.run()
    early = datetime.now(UTC) - timedelta(seconds=60)
    world.change("work_items", first, name="Late", updated_at=early)
    world.change("work_items", second, name="Too late, seen all the same", updated_at=early - timedelta(seconds=120))
    world.change("work_items", third, name="Too late", updated_at=early - timedelta(seconds=121))
    link.run("incremental_sync", batchSize=1)
    names = [link.items("work_items")[id]["name"] for id in (first, second, third)]
    assert names == ["Late", "Too late, seen all the same", "Item 3"]


def test_an_incremental_sync_without_a_baseline_is_a_full_one(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 3)
    link.create()
    job = link.run("incremental_sync")
    assert job["type"] == "full_sync"
    link.same()


def test_a_project_that_comes_into_sight_later_is_read_from_its_beginning(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 3)
    hidden = world.project("Secret", owner)
    world.items(hidden, owner, 5)
    old(link.plane, hidden)
    world.members[hidden] = []
    link.create(overlap=1)
    job = link.run()
    assert {one["name"] for one in link.items("work_items").values()} == {"Item 1", "Item 2", "Item 3"}
    assert any("cannot be read" in line["message"] for line in job["logs"])
    world.members[hidden] = [owner]
    link.run("incremental_sync")
    link.same()


def test_an_instance_without_one_of_the_lists_is_read_without_it(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    ids = world.items(project, owner, 60)
    old(link.plane, project)
    link.create(overlap=60)
    link.plane.fault("/members/", times=None, status=404, body=b"{}")
    job = link.run()
    assert any("The members of project" in line["message"] for line in job["logs"])
    link.same()
    link.plane.requests.clear()
    link.run("incremental_sync")
    assert len(link.plane.asked("/work-items/")) == 1
    world.remove("work_items", ids[0])
    assert link.run()["result"]["deleted"] == 1


def test_a_selective_sync_brings_what_was_chosen(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    rockets, boats = world.project("Rockets", owner), world.project("Boats", owner)
    for project in (rockets, boats):
        world.items(project, owner, 3)
    link.create()
    link.run("selective_sync", entities=["work-items"], projects=["rockets"])
    assert {one["project"] for one in link.items("work_items").values()} == {rockets}
    assert (link.items("states"), link.items("projects")) == ({}, {})
    link.run("selective_sync", exclude=["work_items", "states", "ROCKETS"])
    assert link.items("projects").keys() == {boats}
    assert link.items("states") == {}
    assert len(link.items("work_items")) == 3
    world.remove("work_items", next(iter(link.items("work_items"))))
    link.run("selective_sync", entities=["work_items"])
    assert len(link.items("work_items")) == 6  # nothing is deleted by a selective run


@pytest.mark.parametrize(
    ("type", "options"),
    [("selective_sync", {}), ("full_sync", {"entities": ["states"]}), ("selective_sync", {"entities": ["cats"]})],
)
def test_a_choice_that_cannot_be_made_is_refused(link: Link, type: str, options: Any) -> None:
    link.create()
    body = {"integrationId": link.id, "type": type, "options": options}
    answer = link.system.post("/api/sync/jobs", body)
    assert (answer.status, answer.json()["code"]) == (400, "VALIDATION_ERROR")


def test_the_configuration_may_limit_the_projects(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    rockets, boats = world.project("Rockets", owner), world.project("Boats", owner)
    link.create(projects=["ROCKETS"])
    link.run()
    assert link.items("projects").keys() == {rockets}
    assert {one["project"] for one in link.items("states").values()} == {rockets}
    link.system.ok("PUT", f"/api/sync/integrations/{link.id}", {"config": changed(link, projects=[boats])})
    link.run("incremental_sync")
    assert link.items("projects").keys() == {rockets, boats}


def changed(link: Link, **config: Any) -> Any:
    """The configuration as it is shown, changed."""
    shown: dict[str, Any] = link.system.ok("GET", f"/api/sync/integrations/{link.id}")["config"]
    return {**shown, **config}


# Deletions.


def test_what_is_gone_is_deleted_by_a_full_sync_and_by_no_other(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project, other = world.project("Rockets", owner), world.project("Boats", owner)
    ids = world.items(project, owner, 30)
    world.items(other, owner, 5)
    label = world.add("labels", project, owner, name="bug", color="#f00")
    link.create()
    link.run()
    world.remove("work_items", ids[3])
    world.remove("labels", label)
    world.remove("projects", other)
    assert link.run("incremental_sync")["result"]["deleted"] == 0
    job = link.run()
    link.same()
    assert job["result"]["deleted"] == 1 + 1 + (1 + 5 + 5 + 1)
    assert link.reasons()[ids[3]] == "deleted"
    assert ids[3] in link.items("work_items", deleted=True)


def test_a_mass_deletion_waits_for_a_person(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    ids = world.items(project, owner, 40)
    link.create()
    link.run()
    for id in ids[:30]:
        world.remove("work_items", id)
    job = link.system.wait(link.queue(), "paused")
    assert len(link.items("work_items")) == 40
    plan = job["error"]["plan"]
    link.system.ok("POST", f"/api/sync/jobs/{job['id']}/resume", {"confirm": plan})
    assert link.system.wait(job["id"], "completed")["result"]["deleted"] == 30
    link.same()


def test_what_is_archived_goes_unless_it_is_wanted(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    first, second, _ = world.items(project, owner, 3)
    link.create()
    link.run()
    world.archive("work_items", first)
    link.run(includeArchived=True)
    assert link.items("work_items")[first]["archived_at"] is not None
    world.archive("work_items", second)
    link.run()
    assert link.items("work_items").keys().isdisjoint({first, second})
    assert link.reasons() == {first: "archived", second: "archived"}


def test_an_archived_project_goes_with_all_that_is_in_it(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project, kept = world.project("Rockets", owner), world.project("Boats", owner)
    world.items(project, owner, 3)
    world.items(kept, owner, 30)
    link.create()
    link.run()
    world.archive("projects", project)
    link.run(includeArchived=True)
    assert len(link.items("work_items")) == 33
    link.run()
    assert link.items("projects").keys() == {kept}
    assert set(link.reasons().values()) == {"archived"}
    assert {one["project"] for one in link.items("work_items").values()} == {kept}


# Lists that move while they are read.


def test_nothing_is_lost_when_rows_shift_while_they_are_read(link: Link) -> None:
    """Behind every page a row that was read is taken away, so the next page skips one that was not; each second time
    another comes at the end, so that the count stays the same."""
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    ids = world.items(project, owner, 100)
    old(link.plane, project)
    taken = iter(ids)

    def shift() -> None:
        with world.still():
            world.remove("work_items", next(taken))
            if len(world.records["work_items"]) % 2:
                world.items(project, owner, 1, "New")

    link.create()
    link.plane.fault(r"GET .*/work-items/\?.*cursor=\d+:[1-9]", times=12, before=shift)
    link.run(batchSize=10)
    link.plane.faults.clear()
    shown = {one["id"] for one in world.listed("work_items", project)}
    assert link.items("work_items").keys() >= shown
    link.run()
    link.same()


def test_rows_that_come_twice_count_once(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    world.items(project, owner, 40)
    old(link.plane, project)
    link.create()

    def insert() -> None:
        made = world.items(project, owner, 3)
        for n, id in enumerate(made):  # in front of all others
            world.records["work_items"][id]["created_at"] -= timedelta(days=1, seconds=n)

    link.plane.fault(r"GET .*/work-items/\?.*cursor=\d+:[1-9]", times=3, before=insert)
    link.run(batchSize=10)
    link.same()
    created = [item for topic, item in link.events() if topic == "created"]
    assert len(created) == len(set(created))


# Ends at every page.


@pytest.mark.parametrize("victim", ["child", pytest.param("worker", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_every_page_comes_to_its_end(link: Link, victim: str) -> None:
    world, owner = link.plane.world, link.plane.owner
    for name in ("Rockets", "Boats"):
        project = world.project(name, owner)
        world.items(project, owner, 25)
        old(link.plane, project)
    gone = next(iter(world.records["work_items"]))
    link.create()
    link.run()
    world.remove("work_items", gone)
    for id in list(world.records["work_items"])[::5]:
        world.change("work_items", id, name="Changed")
    pages: set[str] = set()

    def kill() -> None:
        line = link.plane.requests[-1]
        page = f"{line.path}{line.query.get('cursor')}"
        if page in pages:
            return
        pages.add(page)
        if victim == "worker":
            link.system.kill("worker")
            return
        for pid in children(link.system.pids.get("worker", 0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    pattern = r"/(work-items|states)/\?" if victim == "child" else r"/work-items/\?"
    fault = link.plane.fault(pattern, times=None, before=kill)
    job = link.system.wait(link.queue(batchSize=10))
    link.plane.faults.remove(fault)
    assert job["status"] == "completed", job
    assert len(pages) >= 6
    assert job["result"]["deleted"] == 0  # a run that was resumed has not seen everything at one time
    names = {id: one["name"] for id, one in link.items("work_items").items()}
    assert all(names[id] == one["name"] for id, one in world.records["work_items"].items())
    link.system.whole()
    link.run()
    link.same()


# The remote's patience, and ours.


def test_a_storm_of_refusals_is_waited_out(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 20)
    link.create()
    link.plane.storm(5, "0", "/work-items/", after=1)
    link.plane.storm(2, "0", "/states/")
    link.run(batchSize=10)
    link.same()


def test_a_quota_is_kept_to_and_never_overdrawn(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 20)
    link.plane.key.per_minute, link.plane.window_s = 7, 1.0
    link.create()
    link.run(batchSize=10)
    link.same()
    assert [one for one in link.plane.requests if one.status == 429] == []


def test_a_remote_that_wants_to_be_left_alone_for_long_is(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 2)
    link.create(patience=1)
    link.plane.storm(1, "1800", "/states/")
    job = link.system.wait(link.queue(), "failed", "paused")
    assert "left alone" in str(job["error"]["message"])
    assert len(link.plane.asked("/states/")) == 1


@pytest.mark.parametrize(
    "what", [{"status": 502}, {"drop": True}, {"cut": 20}, {"body": b"<html>", "media": "text/html"}]
)
def test_trouble_that_passes_is_asked_again(link: Link, what: Any) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 2)
    link.create()
    link.plane.fault("/work-items/", times=2, **what)
    link.run()
    link.same()


# Garbage.


def garbage(**change: Any) -> Any:
    return {"edit": lambda page: {**page, **change}}


def endless(page: Record) -> Record:
    return {**page, "next_page_results": True, "next_cursor": "50:1:0"}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param({"edit": endless}, id="for ever the same"),
        pytest.param({"body": b'{"results": ['}, id="half JSON"),
        pytest.param({"body": b"[" * 100_000}, id="deep"),
        pytest.param({"body": b"x" * 40_000_000}, id="large"),
        pytest.param(garbage(results="none"), id="no rows"),
        pytest.param(garbage(results=[1, None, "x"]), id="rows that are none"),
        pytest.param(garbage(next_page_results="maybe"), id="no end"),
        pytest.param({"status": 500, "body": b""}, id="broken"),
    ],
)
def test_garbage_damages_nothing(link: Link, what: Any) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 60)
    link.create(timeout=5)
    link.run()
    before = link.events()
    fault = link.plane.fault(r"/work-items/\?", times=None, **what)
    job = link.system.wait(link.queue(), "failed", "paused", "queued", "running", patience_s=1)
    if job["status"] in ("queued", "running"):
        link.system.post(f"/api/sync/jobs/{job['id']}/stop", {"graceful": False})
    assert until(lambda: link.system.status(job["id"]) in ("failed", "paused", "stopped"))
    assert link.events() == before
    link.plane.faults.remove(fault)
    link.run()
    assert link.events() == before


@pytest.mark.parametrize("total", [-1, 10_000_000, None, "many", True])
def test_counts_are_only_claims(link: Link, total: Any) -> None:
    world, owner = link.plane.world, link.plane.owner
    world.items(world.project("Rockets", owner), owner, 60)
    link.create()
    link.plane.fault(r"/work-items/\?", times=None, **garbage(total_count=total, total_results=total, count=total))
    job = link.run()
    link.same()
    assert job["progress"] == 100


def test_more_rows_than_anybody_has_are_not_taken(link: Link) -> None:
    """Ten million rows that go on and on: whenever that is stopped, what was there before is."""
    world, owner = link.plane.world, link.plane.owner
    ids = world.items(world.project("Rockets", owner), owner, 5)
    link.create()
    link.run()
    template = link.items("work_items")[ids[0]]
    made: list[str] = []

    def more(page: Record) -> Record:
        rows = [{**template, "id": f"made-{len(made) + n}"} for n in range(20)]
        made.extend(one["id"] for one in rows)
        return {**page, "results": rows, "next_page_results": True, "total_count": 10_000_000}

    fault = link.plane.fault(r"/work-items/\?", times=None, edit=more)
    job = link.queue(batchSize=100)
    assert until(lambda: len(made) > 100)
    link.system.post(f"/api/sync/jobs/{job}/stop", {"graceful": False})
    link.system.wait(job, "stopped")
    assert link.items("work_items").keys() >= set(ids)
    link.plane.faults.remove(fault)
    link.run(force=True)
    link.same()


def test_one_bad_item_does_not_hold_its_neighbours(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    first, huge, last = world.items(project, owner, 3)
    world.change("work_items", huge, description_html="x" * 300_000)
    link.create()

    def nameless(page: Record) -> Record:
        return {**page, "results": [{"name": "nobody"}, *page["results"]]}

    link.plane.fault("/work-items/", edit=nameless)
    job = link.run()
    assert link.items("work_items").keys() == {first, last}
    assert job["result"]["errors"] == 2
    assert any("left out" in line["message"] for line in job["logs"])


# Time zones.


def test_the_zone_of_the_keys_owner_changes_nothing(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    ids = world.items(world.project("Rockets", owner), owner, 5)
    link.create()
    link.run()
    before = link.items("work_items")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", before[ids[0]]["updated_at"])
    for zone in ("Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati"):
        link.plane.key.timezone = zone
        assert link.run()["result"]["updated"] == 0
    world.change("work_items", ids[0], name="Changed")
    assert link.run("incremental_sync")["result"]["updated"] == 1
    assert link.items("work_items")[ids[0]]["name"] == "Changed"


# Keys.


def test_a_wrong_key_fails_at_once_with_words_for_a_person(link: Link) -> None:
    link.plane.world.project("Rockets", link.plane.owner)
    for status in (403, 401):
        link.plane.bad_key_status = status
        wrong = Link(link.system, link.plane)
        wrong.create(apiKey="plane_api_wrong")
        asked = len(link.plane.requests)
        job = link.system.wait(wrong.queue(), "failed")
        assert "does not accept the API key" in job["error"]["message"]
        assert len(link.plane.requests) == asked + 1
        wrong.system.ok(
            "PUT", f"/api/sync/integrations/{wrong.id}", {"config": changed(wrong, apiKey=link.plane.key.token)}
        )
        wrong.system.ok("POST", f"/api/sync/jobs/{job['id']}/resume")
        assert link.system.wait(job["id"], "completed")
        wrong.same()


def test_a_workspace_that_is_none_is_named(link: Link) -> None:
    link.create(workspace="nowhere")
    job = link.system.wait(link.queue(), "failed")
    assert "nowhere" in job["error"]["message"]


def test_a_key_is_never_shown_and_nowhere_in_clear(link: Link) -> None:
    link.plane.world.project("Rockets", link.plane.owner)
    system, secret = link.system, link.plane.key.token
    made = link.create(webhookSecret=SECRET)
    assert {"apiKey", "webhookSecret"}.isdisjoint(made["config"])
    shown = [made, system.ok("GET", f"/api/sync/integrations/{link.id}"), system.ok("GET", "/api/sync/integrations")]
    renamed = system.ok("PUT", f"/api/sync/integrations/{link.id}", {"config": changed(link, overlap=7)})
    assert renamed["config"]["overlap"] == 7
    job = link.run()  # the key that was left out is the one that was set
    texts = [str(shown), str(renamed), str(job), str(system.events()), system.said()]
    assert not any(secret in text or SECRET in text for text in texts)
    rows = system.sql("select convert_from(state, 'utf8') from undrift.events where stream_id like %s", f"%{link.id}%")
    assert not any(secret in text for (text,) in rows)
    assert any("sealed:" in text for (text,) in rows)
    kept = system.sql("select count(*) from undrift_keys.secrets where sealed like %s", f"%{secret}%".encode())
    assert kept == [(0,)]


def test_a_secret_goes_with_the_last_that_refers_to_it(link: Link) -> None:
    def kept() -> int:
        return int(link.system.sql("select count(*) from undrift_keys.secrets")[0][0])

    before = kept()
    link.create(webhookSecret=SECRET)
    assert kept() == before + 2
    path = f"/api/sync/integrations/{link.id}"
    link.system.ok("PUT", path, {"config": changed(link, apiKey="plane_api_another")})
    assert kept() == before + 2
    link.system.ok("PUT", path, {"config": changed(link, webhookSecret=None)})
    assert kept() == before + 1
    link.system.ok("DELETE", path)
    assert kept() == before


def test_a_reference_is_no_secret(link: Link) -> None:
    link.create()
    config = {"workspace": "acme", "apiKey": "sealed:0123456789abcdef0123456789abcdef"}
    body = {"name": "Thief", "kind": "plane", "config": config}
    assert link.system.post("/api/sync/integrations", body).status == 400
    answer = link.system.call("PUT", f"/api/sync/integrations/{link.id}", {"config": config})
    assert answer.status == 400


# Webhooks.


def test_webhooks_bring_changes_at_once(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    label = world.add("labels", project, owner, name="bug", color="#f00")
    ids = world.items(project, owner, 3)
    link.create(webhookSecret=SECRET)
    link.run()
    record = world.change("work_items", ids[0], name="Hooked", labels=[label], assignees=[owner])
    assert (link.hook("work_items", "updated", record).json()["status"]) == "applied"
    assert link.items("work_items")[ids[0]]["name"] == "Hooked"
    new = world.add("work_items", project, owner, name="New")
    assert link.hook("work_items", "created", world.records["work_items"][new]).json()["status"] == "applied"
    gone = world.records["work_items"][ids[1]]
    world.remove("work_items", ids[1])
    assert link.hook("work_items", "deleted", gone).json() == {"success": True, "status": "applied"}
    cycle = world.add("cycles", project, owner, name="One", owned_by=owner)
    assert link.hook("cycles", "created", world.records["cycles"][cycle]).json()["status"] == "applied"
    before = link.events()
    assert link.run("incremental_sync")["result"]["updated"] == 0  # a list says the same as a webhook
    assert link.events() == before
    link.same()
    actor = link.system.sql(
        "select distinct metadata::json->>'actor' from undrift.events"
        " where stream_id like %s and topic = 'items.deleted'",
        f"items/main/{link.id}.%",
    )
    assert actor == [(f"hook:{link.id}",)]


def test_a_webhook_that_comes_late_or_again_changes_nothing(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    (id,) = world.items(world.project("Rockets", owner), owner, 1)
    link.create(webhookSecret=SECRET)
    link.run()
    early = dict(world.change("work_items", id, name="Early"))
    late = dict(world.change("work_items", id, name="Late"))
    own, body = link.plane.webhook("work_items", "updated", late, SECRET)
    path = f"/api/sync/integrations/{link.id}/hooks/plane"
    answers = [link.system.post(path, body, headers=own) for _ in range(3)]
    assert [one.body for one in answers] == [answers[0].body] * 3
    assert link.hook("work_items", "updated", early).json()["status"] == "unchanged"
    assert [topic for topic, item in link.events() if item == id] == ["created", "updated"]
    world.remove("work_items", id)
    link.hook("work_items", "deleted", late)
    assert link.hook("work_items", "updated", late).json()["status"] == "unchanged"
    assert link.items("work_items") == {}


@pytest.mark.parametrize("signature", ["", "0" * 64, "nonsense", "\u00e4".encode().hex()])
def test_a_webhook_without_its_signature_is_refused(link: Link, signature: str) -> None:
    world, owner = link.plane.world, link.plane.owner
    (id,) = world.items(world.project("Rockets", owner), owner, 1)
    link.create(webhookSecret=SECRET)
    record = world.records["work_items"][id]
    answer = link.hook("work_items", "updated", record, **{"X-Plane-Signature": signature})
    assert (answer.status, answer.json()["success"], answer.json()["code"]) == (401, False, "UNAUTHORIZED")
    assert link.hook("work_items", "updated", record, secret="another").status == 401
    assert link.items("work_items") == {}


def test_a_webhook_needs_an_integration_that_takes_them(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    (id,) = world.items(world.project("Rockets", owner), owner, 1)
    record = world.records["work_items"][id]
    assert link.hook("work_items", "updated", record).status == 404
    link.create()  # without a secret nothing can be signed
    assert link.hook("work_items", "updated", record).status == 401


def test_webhooks_about_other_things_are_accepted_and_ignored(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    project = world.project("Rockets", owner)
    (id,) = world.items(project, owner, 1)
    link.create(webhookSecret=SECRET, projects=["NOTHERE"])
    path = f"/api/sync/integrations/{link.id}/hooks/plane"
    for event, action, data in (
        ("issue_comment", "created", {"id": "x"}),
        ("cycle_issue", "deleted", {"id": "x"}),
        ("something_new", "updated", {"id": "x"}),
        ("issue", "exploded", {"id": "x"}),
        ("issue", "updated", {"id": id}),
        ("issue", "updated", {"id": 7, "updated_at": "2026-01-01T00:00:00Z"}),
    ):
        own, body = link.plane.delivery(event, action, data, SECRET)
        answer = link.system.post(path, body, headers=own)
        assert (answer.status, answer.json()) == (200, {"success": True, "status": "ignored"}), event
    record = world.records["work_items"][id]
    assert link.hook("work_items", "updated", record).json()["status"] == "ignored"  # of another project
    assert link.events() == []


# Tests of an integration.


def checked(link: Link) -> dict[str, tuple[bool, str]]:
    answer = link.system.ok("POST", f"/api/sync/integrations/{link.id}/test")
    assert answer["integrationId"] == link.id
    assert answer["success"] == all(one["ok"] for one in answer["checks"])
    return {one["name"]: (one["ok"], one["message"]) for one in answer["checks"]}


def test_an_integration_that_is_well(link: Link) -> None:
    link.plane.world.project("Rockets", link.plane.owner)
    link.create()
    head = link.system.head()
    found = checked(link)
    assert {name: ok for name, (ok, _) in found.items()} == dict.fromkeys(
        ("address", "credentials", "workspace", "permissions"), True
    )
    assert link.system.head() == head


def test_what_is_wrong_with_an_integration_is_said(link: Link) -> None:
    link.plane.world.project("Rockets", link.plane.owner)
    wrong: dict[str, dict[str, Any]] = {
        "address": {"baseUrl": "http://127.0.0.1:1"},
        "credentials": {"apiKey": "plane_api_wrong"},
        "workspace": {"workspace": "nowhere"},
        "projects": {"projects": ["NOTHERE"]},
    }
    for name, config in wrong.items():
        one = Link(link.system, link.plane)
        one.create(**config)
        found = checked(one)
        assert found[name][0] is False, name
        assert "check config." in found[name][1] or "set a valid config." in found[name][1]
    link.plane.world.members = {project: [] for project in link.plane.world.members}
    link.create()
    assert checked(link)["permissions"][0] is False


def test_folders_are_tested_too(system: System) -> None:
    system.integration("tested-files", system.folder(a="1"), system.place())
    answer = system.ok("POST", "/api/sync/integrations/tested-files/test")
    assert [(one["name"], one["ok"]) for one in answer["checks"]] == [("source", True), ("target", True)]
    system.integration("untested-files", system.place(), system.place())
    answer = system.ok("POST", "/api/sync/integrations/untested-files/test")
    assert (answer["success"], answer["checks"][0]["ok"]) == (False, False)
    assert system.post("/api/sync/integrations/never-made/test").status == 404
    assert (
        system.post("/api/sync/integrations/tested-files/test", token=system.key("reader", "jobs:read")).status == 403
    )


def test_directories_are_tested_too(system: System, plane: Plane) -> None:
    for path in ("users", "qmail_servers", "raida_servers"):
        plane.fault(f"/service/{path}", times=None, status=200, body=b"")
    lists = {"name": "Directories", "kind": "network"}
    nowhere = "http://127.0.0.1:1"
    for directories, good in (([plane.url], True), ([plane.url, nowhere], False)):
        body = {**lists, "config": {"directories": directories}}
        id = system.ok("POST", "/api/sync/integrations", body)["integrationId"]
        answer = system.ok("POST", f"/api/sync/integrations/{id}/test")
        assert (answer["success"], len(answer["checks"])) == (good, 1 + len(directories))
        system.ok("DELETE", f"/api/sync/integrations/{id}")


def test_the_feed_tells_of_items(link: Link) -> None:
    world, owner = link.plane.world, link.plane.owner
    (id,) = world.items(world.project("Rockets", owner), owner, 1)
    link.create()
    job = link.run()
    mine = [one for one in link.system.events(token=ADMIN) if one["type"] == "items.created"]
    assert any(one["data"]["item"] == id and one["data"]["collection"] == link.id for one in mine)
    found = link.system.ok("GET", f"/api/sync/collections/{link.id}/items/work_items/{id}")
    assert (found["jobId"], found["source"], found["version"]) == (job["id"], "plane", 1)
