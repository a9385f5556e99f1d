"""What connectors bring, from pages to the log: resumed at every page, guarded, and each change exactly once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest
from msgspec import Raw

from domain import integrations, items, jobs
from projections import collections as collections_read
from services.worker.remotes import Remotes
from tests.worker import outside
from tests.worker.workshop import Workshop, many, pages, rows, until


async def test_items_are_created_updated_and_deleted(workshop: Workshop) -> None:
    id = await workshop.integration()
    assert await workshop.bring(id, [rows("a", "b"), rows("c")]) == jobs.Counters(3, 3, 0, 0, 0, 3 * 24)
    assert set(await workshop.holds(id)) == {("things", "a"), ("things", "b"), ("things", "c")}
    counters = await workshop.bring(id, [rows("a"), rows("b", value="2"), rows("d")])
    assert (counters.processed, counters.created, counters.updated, counters.deleted) == (3, 1, 1, 1)
    assert await workshop.holds(id) == {
        ("things", "a"): {"name": "a", "value": "1"},
        ("things", "b"): {"name": "b", "value": "2"},
        ("things", "d"): {"name": "d", "value": "1"},
    }


async def test_what_is_the_same_is_no_event(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a", "b")])
    before = await workshop.log_of(id)
    counters = await workshop.bring(id, [[("things", "b", {"value": "1", "name": "b"}, None), *rows("a")]])
    assert (counters.processed, counters.created, counters.updated) == (2, 0, 0)
    assert await workshop.log_of(id) == before


async def test_an_item_says_where_it_comes_from(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, [rows("a")])
    job = await workshop.queue(id)
    await workshop.end(job)
    [created] = await workshop.log_of(id)
    assert created.event == items.Created(
        collection=id,
        entity="things",
        item="a",
        number=1,
        hash=items.digest(b'{"name":"a","value":"1"}'),
        content=Raw(b'{"name":"a","value":"1"}'),
        revision=None,
        source=outside.KIND,
    )
    assert created.metadata.actor == f"job:{job}"
    await workshop.holds(id)
    [outcome] = await collections_read.outcomes(workshop.process.db, "main", job, 10)
    assert (outcome.item, outcome.before, outcome.after, outcome.op) == ("a", 0, 1, "created")


async def test_news_older_than_what_is_kept_are_none(workshop: Workshop) -> None:
    id = await workshop.integration()
    times = ["2026-01-01T00:00:00.000000Z", "2026-01-02T00:00:00.000000Z"]
    await workshop.bring(id, [[("things", "a", {"v": 2}, times[1])]])
    counters = await workshop.bring(id, [[("things", "a", {"v": 1}, times[0])]])
    assert (counters.processed, counters.updated) == (1, 0)
    assert await workshop.holds(id) == {("things", "a"): {"v": 2}}


async def test_of_an_item_that_comes_twice_the_last_counts(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [[*rows("a"), *rows("a", value="2")], rows("b"), rows("b"), rows("b", value="2")])
    assert await workshop.holds(id) == {
        ("things", "a"): {"name": "a", "value": "2"},
        ("things", "b"): {"name": "b", "value": "2"},
    }
    await workshop.bring(id, [rows("a", value="2"), rows("a"), rows("a", value="2"), rows("b", value="2")])
    assert (await workshop.holds(id))["things", "a"]["value"] == "2"


async def test_names_of_any_letters_are_told_apart(workshop: Workshop) -> None:
    id = await workshop.integration()
    names = ["a\tb", "a\nb", "a\\tb", "a\\", "é\u202e", "a/b", "'", '"', "%00", " ", "a\x01b", "😀" * 100]
    world = [[*rows(*names), *rows(*names, entity="people")]]
    assert (await workshop.bring(id, world)).created == 2 * len(names)
    counters = await workshop.bring(id, world)
    assert (counters.created, counters.updated, counters.deleted) == (0, 0, 0)
    assert {name for _, name in await workshop.holds(id)} == set(names)
    assert (await workshop.bring(id, [rows(*names), rows(*names[:4], entity="people")])).deleted == len(names) - 4


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b"])
async def test_an_item_that_cannot_be_kept_is_left_out_and_its_neighbours_are_not(
    workshop: Workshop, name: str
) -> None:
    id = await workshop.integration()
    counters = await workshop.bring(id, [[*rows("a"), *rows(name), *rows("b")]])
    assert (counters.processed, counters.created, counters.errors) == (3, 2, 1)
    assert set(await workshop.holds(id)) == {("things", "a"), ("things", "b")}


async def test_a_huge_item_is_left_out_and_never_taken_for_gone(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a", "b")])
    workshop.world(id, [[*rows("a", value="x" * items.MAX_BYTES), *rows("b", value="y" * (items.MAX_BYTES - 100))]])
    job = await workshop.queue(id)
    ended = await workshop.end(job)
    assert ended.counters == jobs.Counters(2, 0, 1, 0, 1, items.MAX_BYTES - 100 + len('{"name":"b","value":""}'))
    assert set(await workshop.holds(id)) == {("things", "a"), ("things", "b")}
    assert any("has 196" in line for line in await workshop.lines(job))


# Resumed.


@pytest.mark.parametrize("dies_at", range(7))
async def test_killed_at_any_page_it_goes_on_behind_it(workshop: Workshop, dies_at: int) -> None:
    """Nothing is lost, nothing said twice, and the counters are those of an undisturbed run."""
    id = await workshop.integration()
    await workshop.bring(id, [rows("gone"), many(2)])
    workshop.world(id, pages(many(21, "2"), 3), dies_at=[dies_at])
    job = await workshop.queue(id)
    ended = await workshop.end(job)
    assert ended.status == "completed"
    deleted = 0 if dies_at else 1
    counters = ended.counters
    assert (counters.processed, counters.created, counters.updated, counters.deleted) == (21, 19, 2, deleted)
    holds = await workshop.holds(id)
    assert {name: content["value"] for (_, name), content in holds.items() if name != "gone"} == {
        f"{number:05}": "2" for number in range(21)
    }
    assert (("things", "gone") in holds) == (not deleted)  # a resumed run never deletes
    assert len(await workshop.log_of(id)) == 3 + 21 + deleted


async def test_killed_at_every_page_it_comes_to_its_end(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, pages(many(20), 2), dies_at=list(range(1, 10)))
    job = await workshop.queue(id)
    ended = await workshop.end(job)
    assert (ended.status, ended.counters.processed, ended.counters.created) == ("completed", 20, 20)
    said = [event for event in await workshop.events_of(job) if isinstance(event, jobs.Progressed)]
    assert [event.progress for event in said] == sorted(event.progress for event in said)
    assert [event.counters.processed for event in said] == sorted(event.counters.processed for event in said)
    assert len([event for event in await workshop.events_of(job) if isinstance(event, jobs.Started)]) == 10


async def test_without_cursors_it_begins_again_and_counts_what_it_did(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, pages(many(9), 3), dies_at=[2], cursors=False)
    job = await workshop.queue(id)
    ended = await workshop.end(job)
    assert (ended.status, ended.counters.processed, ended.counters.created) == ("completed", 9, 9)


async def test_a_job_that_dies_before_its_first_page_is_given_up(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, [rows("a")], dies_at=[0, 0, 0])
    ended = await workshop.run(id)
    assert ended.status == "failed"
    assert "3 times" in str(ended.ended)


# The mark.


async def test_the_next_run_begins_with_the_mark_of_the_last(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a"), rows("b")])
    assert bytes((await workshop.mark(id)).mark) == b'{"pages":2}'
    workshop.world(id, [rows("a")], complete=False)
    job = await workshop.queue(id, "incremental_sync")
    await workshop.end(job)
    assert "mark {'pages': 2}, resumed False" in await workshop.lines(job)
    found = await workshop.mark(id)
    assert (bytes(found.mark), found.complete) == (b'{"pages":1}', True)
    assert len(await workshop.holds(id)) == 2


async def test_another_configuration_has_no_mark(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a")])
    elsewhere = Raw(msgspec.json.encode(outside.Spec(str(workshop.folder / id) + "/")))
    await workshop.process.store.execute(integrations, id, integrations.Change(config=elsewhere))
    job = await workshop.queue(id)
    await workshop.end(job)
    assert "mark None, resumed False" in await workshop.lines(job)


async def test_a_run_that_fails_leaves_the_mark(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a")])
    before = await workshop.mark(id)
    workshop.world(id, pages(many(5100), 500))
    assert (await workshop.run(id)).status == "failed"
    assert await workshop.mark(id) == before


# Guards.


async def test_many_deletions_are_held_and_confirmed_by_their_plan(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [many(40)])
    workshop.world(id, [many(15), rows("new")])
    job = await workshop.queue(id)
    held = await workshop.end(job)
    assert held.status == "paused"
    [event] = [event for event in await workshop.events_of(job) if isinstance(event, jobs.Held)]
    assert (event.reason, event.details["deleted"]) == ("Held: 25 of 40 items would be deleted", 25)
    assert len(await workshop.holds(id)) == 41
    await workshop.process.store.execute(jobs, job, jobs.Resume(confirm=held.plan))
    ended = await workshop.end(job)
    assert (ended.status, ended.counters.created, ended.counters.deleted) == ("completed", 1, 25)
    assert len(await workshop.holds(id)) == 16


async def test_a_plan_that_nobody_has_seen_is_not_carried_out(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [many(40)])
    workshop.world(id, [many(15)])
    job = await workshop.queue(id)
    held = await workshop.end(job)
    workshop.world(id, [many(10)])
    await workshop.process.store.execute(jobs, job, jobs.Resume(confirm=held.plan))
    ended = await workshop.end(job)
    assert isinstance(ended.ended, jobs.Failed)
    assert ended.ended.code == "plan_changed"
    assert len(await workshop.holds(id)) == 40


async def test_what_is_confirmed_and_has_come_back_is_no_trouble(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [many(40)])
    workshop.world(id, [many(15)])
    job = await workshop.queue(id)
    held = await workshop.end(job)
    workshop.world(id, [many(40)])
    await workshop.process.store.execute(jobs, job, jobs.Resume(confirm=held.plan))
    assert (await workshop.end(job)).status == "completed"
    assert len(await workshop.holds(id)) == 40


async def test_one_entity_that_comes_back_empty_is_held(workshop: Workshop) -> None:
    id = await workshop.integration()
    people = rows(*(f"p{number}" for number in range(11)), entity="people")
    await workshop.bring(id, [many(1000), people])
    workshop.world(id, [many(1000)])
    assert (await workshop.run(id)).status == "paused"
    assert len(await workshop.holds(id)) == 1011
    assert (await workshop.run(id, force=True)).counters.deleted == 11


async def test_a_few_deletions_need_nobody(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [many(10)])
    assert (await workshop.bring(id, [rows("a")])).deleted == 10


async def test_a_remote_that_sends_without_end_is_given_up(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, pages(many(6000), 500))
    ended = await workshop.run(id)
    assert isinstance(ended.ended, jobs.Failed)
    assert ended.ended.message == "The remote sends more than 5000 items"
    assert (ended.counters.created, ended.counters.deleted) == (5000, 0)


async def test_pages_that_repeat_are_suspected(workshop: Workshop) -> None:
    id = await workshop.integration()
    counters = await workshop.bring(id, pages(many(50), 10), repeats=12)
    assert counters.created == 50
    workshop.world(id, pages(many(50), 10), repeats=30)
    ended = await workshop.run(id)
    assert isinstance(ended.ended, jobs.Failed)
    assert "again and again" in ended.ended.message
    assert len(await workshop.holds(id)) == 50


async def test_garbage_leaves_what_is_there_and_may_pass(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a"), rows("b")])
    workshop.world(id, [rows("a", value="2"), rows("b", value="2")], garbage_at=1)
    job = await workshop.queue(id)
    ended = await workshop.end(job)
    reasons = [
        event.reason if isinstance(event, jobs.Paused) else event.message
        for event in await workshop.events_of(job)
        if isinstance(event, jobs.Paused | jobs.Failed)
    ]
    assert "cannot be understood (DecodeError" in reasons[0]
    assert ended.status in ("paused", "failed")
    assert {name: one["value"] for (_, name), one in (await workshop.holds(id)).items()} == {"a": "2", "b": "1"}


@pytest.mark.parametrize("time", [-1.0, 1e300, 1e18])
async def test_limits_that_make_no_sense_are_none(workshop: Workshop, time: float) -> None:
    id = await workshop.integration()
    assert (await workshop.bring(id, [rows("a"), rows("b")], asks=f"odd {time}", resets_at=time)).created == 2


# All at once.


async def test_what_belongs_together_comes_together(workshop: Workshop) -> None:
    id = await workshop.integration()
    counters = await workshop.bring(id, pages(many(2500), 500), atomic=True)
    assert (counters.processed, counters.created) == (2500, 2500)
    log = await workshop.log_of(id)
    assert log[-1].position - log[0].position == 2499
    after = await workshop.process.store.read(log[-1].position, 2)
    assert [one.topic for one in after] == ["collections.observed", "jobs.completed"]
    changed = [*many(2400), *rows("new"), *rows("00001", value="2")]
    counters = await workshop.bring(id, pages(changed, 500), atomic=True)
    assert (counters.created, counters.updated, counters.deleted) == (1, 1, 100)
    result = (await workshop.process.store.read(await workshop.process.store.head() - 1, 1))[0].event
    assert isinstance(result, jobs.Completed)
    assert bytes(result.result) == b'{"pages":5,"created":1,"updated":1,"deleted":100}'


async def test_of_what_belongs_together_nothing_comes_when_it_is_cut_short(workshop: Workshop) -> None:
    id = await workshop.integration()
    await workshop.bring(id, [rows("a")], atomic=True)
    before = await workshop.process.store.head()
    workshop.world(id, [rows("b"), rows("c")], atomic=True, stands_at=1)
    job = await workshop.queue(id)
    await until(lambda: workshop.lines(job))
    await workshop.process.store.execute(jobs, job, jobs.Stop())
    ended = await workshop.end(job)
    assert (ended.status, ended.counters.created) == ("stopped", 0)
    after = await workshop.process.store.read(before, 100)
    assert not [one for one in after if one.stream.startswith(("items/", "collections/"))]
    workshop.world(id, [rows("b"), rows("c")], atomic=True, dies_at=[1])
    assert (await workshop.run(id)).status == "completed"
    assert set(await workshop.holds(id)) == {("things", "b"), ("things", "c")}


# Stops, waits and others.


async def test_a_stop_reaches_a_source_that_waits(workshop: Workshop) -> None:
    id = await workshop.integration()
    workshop.world(id, pages(many(30), 10), stands_at=2)
    job = await workshop.queue(id)

    async def begun() -> bool:
        return (await workshop.job(job)).cursor is not None

    await until(begun)
    await workshop.process.store.execute(jobs, job, jobs.Stop())
    ended = await workshop.end(job)
    assert (ended.status, ended.counters.processed, ended.counters.created) == ("stopped", 20, 20)
    assert bytes((await workshop.mark(id)).mark) == b"null"


async def test_a_source_waits_for_its_remote(workshop: Workshop) -> None:
    """Until the time that the remote named, kept where every worker sees it."""
    id = await workshop.integration()
    remotes = Remotes(workshop.process.db, workshop.process.master)
    await remotes.learn(f"remote of {id}", None, None, 0.5)
    before = datetime.now(UTC)
    await workshop.bring(id, [rows("a")], asks=f"remote of {id}")
    assert (datetime.now(UTC) - before).total_seconds() > 0.4


async def test_what_somebody_else_writes_meanwhile_is_decided_again(workshop: Workshop) -> None:
    id = await workshop.integration()
    ids = [f"{number:05}" for number in range(300)]

    async def hook() -> int:
        written = 0
        for name in ids:
            content = items.canonical({"name": name, "value": "hook"})
            put = items.Put(id, "things", name, Raw(content), items.digest(content), None, "hook")
            done = await workshop.process.store.execute(items, items.stream_id(id, "things", name), put)
            written += len(done.events)
        return written

    workshop.world(id, pages(many(300), 50))
    written, ended = await asyncio.gather(hook(), workshop.run(id))
    assert ended.status == "completed"
    log = await workshop.log_of(id)
    assert len(log) == written + ended.counters.created + ended.counters.updated
    numbers: dict[str, list[int]] = {}
    for one in log:
        assert isinstance(one.event, items.Created | items.Updated)
        numbers.setdefault(one.event.item, []).append(one.event.number)
    assert set(numbers) == set(ids)
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
