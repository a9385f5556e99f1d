"""What is read about integrations: schedule, baseline, estimates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from domain import integrations, jobs, messages
from domain.policies import Policy
from domain.schedules import Overlap, Schedule
from infra.eventstore.store import Store
from projections import integrations as read
from projections.table import schema
from services import projector
from tests.projections.clock import set_log
from tests.projections.histories import T0, World, fill, open_store

CREATE = integrations.Create("i", "name", "files", Raw(b'{"a":1}'), 60)


class Told:
    """Says commands and shows the row that comes of them."""

    def __init__(self, store: Store) -> None:
        self._store, self._world = store, World(0)
        self._versions: dict[str, int] = {}
        self._position = 0

    async def integration(self, *commands: messages.Command) -> read.Row | None:
        return await self._say(integrations, "i", commands)

    async def job(self, id: str, *commands: messages.Command) -> read.Row | None:
        return await self._say(jobs, id, commands)

    async def queue(self, id: str, type: jobs.Type = "full_sync", due: datetime | None = None) -> read.Row | None:
        ticket = jobs.Ticket(job=id, kind="files", type=type, lane="later", integration="i")
        queued = jobs.Queued(ticket=ticket, spec=Raw(b"{}"), trigger="schedule" if due else "request", due=due)
        return await self.job(id, jobs.Queue(queued), jobs.Start(fence=1, worker="w", at=T0))

    async def at(self, time: datetime) -> None:
        """What comes next is of that time."""
        await set_log(self._store, time)

    async def _say(self, context: Any, id: str, commands: tuple[messages.Command, ...]) -> read.Row | None:
        said = [event for command in commands for event in self._world.say(context, "main", id, command)]
        await fill(self._store.database, said, self._versions)
        events = await self._store.read(self._position, 1000)
        async with self._store.database.transaction() as connection:
            await projector.fold_page(connection, read, schema(read), events)
        self._position += len(events)
        return await read.get(self._store.database, "main", "i")


@pytest.fixture
async def told(database: str) -> AsyncIterator[Told]:
    async with open_store(database) as store:
        await projector.prepare(store.database)
        yield Told(store)


def complete(duration_ms: int = 5) -> jobs.Complete:
    return jobs.Complete(jobs.Counters(), Raw(b"{}"), duration_ms)


FAIL = jobs.Fail("sync_failed", "no", jobs.Counters())
HOLD = jobs.Hold("much", "plan", jobs.Counters())


async def test_a_completed_full_sync_is_a_baseline(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("a", "incremental_sync")
    row = await told.job("a", complete())
    assert row is not None
    assert row.baseline_at is None
    await told.queue("b")
    row = await told.job("b", complete())
    assert row is not None
    assert row.baseline_at == row.last_sync is not None


@pytest.mark.parametrize("rest", [FAIL, HOLD, jobs.Pause("shutdown")], ids=lambda command: type(command).__name__)
async def test_a_resumed_full_sync_is_a_baseline_too(told: Told, rest: messages.Command) -> None:
    await told.integration(CREATE)
    await told.queue("a")
    row = await told.job("a", rest)
    assert row is not None
    assert row.baseline_at is None
    row = await told.job("a", jobs.Resume(), jobs.Start(fence=2, worker="w", at=T0), complete())
    assert row is not None
    assert row.baseline_at is not None


async def test_a_full_sync_of_an_older_configuration_is_no_baseline(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("before")
    await told.integration(integrations.Change(config=Raw(b'{"a":2}')))
    row = await told.job("before", complete())
    assert row is not None
    assert (row.baseline_at, row.completed) == (None, 1)
    await told.queue("after")
    row = await told.job("after", complete())
    assert row is not None
    assert row.baseline_at is not None
    row = await told.integration(integrations.Change(name="other"))
    assert row is not None
    assert row.baseline_at is not None
    row = await told.integration(integrations.Change(config=Raw(b'{"a":3}')))
    assert row is not None
    assert row.baseline_at is None


async def test_full_syncs_that_never_complete_do_not_pile_up(told: Told) -> None:
    await told.integration(CREATE)
    for number in range(120):
        await told.queue(f"a{number}")
        row = await told.job(f"a{number}", FAIL)
    assert row is not None
    assert (len(row.full_open), row.failed, row.last_failed) == (100, 120, True)


async def test_estimates_are_the_median_of_the_last_ten(told: Told) -> None:
    await told.integration(CREATE)
    for number in range(12):
        await told.queue(f"a{number}")
        row = await told.job(f"a{number}", complete(duration_ms=number * 100))
    assert row is not None
    assert row.recent_full == tuple(range(200, 1200, 100))
    assert (row.estimate("full_sync"), row.estimate("incremental_sync")) == (650, 0)


SECOND, MINUTE = timedelta(seconds=1), timedelta(seconds=60)


async def due(told: Told, now: datetime) -> list[str]:
    return [id for _, id in await read.due(told._store.database, now)]


async def open_of(told: Told) -> dict[str, read.Open]:
    return {one.job: one for one in await read.open_jobs(told._store.database, "main", "i")}


async def test_a_run_settles_its_due_time(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    first = row.created_at + MINUTE
    assert row.next_due == row.next_fires == row.next_sync == first
    assert await due(told, first) == ["i"]
    assert await due(told, first - timedelta(microseconds=1)) == []
    row = await told.queue("a", "incremental_sync", due=first)
    assert row is not None
    assert row.next_due == first + MINUTE
    assert await due(told, first + SECOND) == []
    opened = (await open_of(told))["a"]
    assert (opened.scheduled, opened.entry, opened.due, opened.started) == (True, "main", first, True)
    assert opened.overdue_at == first + timedelta(seconds=300)
    await told.job("a", complete())
    assert await open_of(told) == {}
    assert await due(told, first + MINUTE) == ["i"]


async def test_a_run_of_a_later_time_settles_those_before(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    assert row.next_due is not None
    row = await told.queue("a", "incremental_sync", due=row.next_due + 5 * MINUTE)
    assert row is not None
    assert row.next_due == row.created_at + 7 * MINUTE
    row = await told.queue("b", "incremental_sync", due=row.created_at)  # of a schedule of before
    assert row is not None
    assert row.next_due == row.created_at + 7 * MINUTE


async def test_jitter_shows_when_it_fires_and_keeps_the_grid(told: Told) -> None:
    row = await told.integration(replace(CREATE, interval=None, schedule=Schedule(every=60, jitter=30)))
    assert row is not None
    assert row.next_due == row.created_at + MINUTE
    assert row.next_fires is not None
    assert row.next_due <= row.next_fires <= row.next_due + MINUTE / 2
    assert await due(told, row.next_fires) == ["i"]
    assert await due(told, row.next_fires - timedelta(microseconds=1)) == []


async def test_a_full_run_does_what_others_due_by_then_would(told: Told) -> None:
    schedule = Schedule(every=60, full_every=300)
    row = await told.integration(replace(CREATE, interval=None, schedule=schedule))
    assert row is not None
    begun = row.created_at
    assert (row.next_due, row.full_due) == (begun + MINUTE, begun + 5 * MINUTE)
    row = await told.queue("a", due=begun + 5 * MINUTE)
    assert row is not None
    assert (row.next_due, row.full_due) == (begun + 6 * MINUTE, begun + 10 * MINUTE)
    assert (await open_of(told))["a"].entry == "full"
    row = await told.queue("b", "incremental_sync", due=begun + 6 * MINUTE)
    assert row is not None
    assert (row.next_due, row.full_due) == (begun + 7 * MINUTE, begun + 10 * MINUTE)


async def test_another_timing_begins_anew_and_another_name_does_not(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    first = row.next_due
    row = await told.integration(integrations.Change(name="other", policy=Policy(attempts=3)))
    assert row is not None
    assert (row.next_due, row.rules) == (first, Policy(attempts=3))
    row = await told.integration(integrations.Change(schedule=Schedule(cron="0 0 1 1 *", time_zone="Asia/Kolkata")))
    assert row is not None
    assert row.next_due is not None
    assert (row.next_due.month, row.next_due.day, row.next_due.hour, row.next_due.minute) == (12, 31, 18, 30)
    assert (row.interval, row.plan) == (None, Schedule(cron="0 0 1 1 *", time_zone="Asia/Kolkata"))


async def test_what_is_overdue_is_known_until_it_is_run(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    assert row.next_due is not None
    first = row.next_due
    row = await told.integration(integrations.Miss(first))
    assert row is not None
    assert (row.overdue, row.next_due) == (first, first)
    later = first + 10 * MINUTE
    row = await told.integration(integrations.Miss(first + MINUTE, "main", None, later))
    assert row is not None
    assert (row.overdue, row.next_due) == (first + MINUTE, later)


async def test_a_scheduled_job_that_nobody_begins_is_late_once(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    assert row.next_due is not None
    first, database = row.next_due, told._store.database
    ticket = jobs.Ticket(job="a", kind="files", type="incremental_sync", lane="later", integration="i")
    await told.job("a", jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"), trigger="schedule", due=first)))
    at = first + timedelta(seconds=300)
    assert await read.late(database, at) == []
    assert [one.job for one in await read.late(database, at + SECOND)] == ["a"]
    row = await told.integration(integrations.Miss(first, "main", "a"))
    assert row is not None
    assert row.overdue is None
    assert await read.late(database, at + SECOND) == []


@pytest.mark.parametrize(
    ("overlap", "type", "moves"),
    [
        ("queue", "incremental_sync", (False, False)),
        ("skip", "incremental_sync", (True, False)),
        ("skip", "full_sync", (True, True)),
        ("cancel_other", "incremental_sync", (False, False)),
        ("cancel_other", "full_sync", (True, False)),
    ],
)
async def test_what_an_open_job_leaves_out(
    told: Told, overlap: Overlap, type: jobs.Type, moves: tuple[bool, bool]
) -> None:
    """Runs every minute, full ones every 70 seconds; a job is open from second 50 to second 75."""
    begun = datetime(2030, 1, 1, tzinfo=UTC)
    await told.at(begun)
    schedule = Schedule(every=60, full_every=70, overlap=overlap)
    row = await told.integration(replace(CREATE, interval=None, schedule=schedule))
    assert row is not None
    assert (row.created_at, row.next_due) == (begun, begun + MINUTE)
    await told.at(begun + 50 * SECOND)
    await told.queue("a", type)
    await told.at(begun + 75 * SECOND)
    row = await told.job("a", complete())
    assert row is not None
    assert row.next_due == begun + (2 * MINUTE if moves[0] else MINUTE)
    assert row.full_due == begun + (140 * SECOND if moves[1] else 70 * SECOND)


async def test_what_was_missed_before_a_job_began_is_not_left_out_for_it(told: Told) -> None:
    begun = datetime(2030, 1, 1, tzinfo=UTC)
    await told.at(begun)
    await told.integration(replace(CREATE, interval=None, schedule=Schedule(every=60, overlap="skip")))
    await told.at(begun + 90 * SECOND)
    await told.queue("a")
    await told.at(begun + 150 * SECOND)
    row = await told.job("a", complete())
    assert row is not None
    assert row.next_due == begun + MINUTE


@pytest.mark.parametrize("overlap", ["queue", "skip"])
async def test_a_job_that_rests_until_its_next_attempt_is_open(told: Told, overlap: Overlap) -> None:
    begun = datetime(2030, 1, 1, tzinfo=UTC)
    await told.at(begun)
    await told.integration(replace(CREATE, interval=None, schedule=Schedule(every=60, overlap=overlap)))
    await told.queue("a", "incremental_sync")
    until = begun + 90 * SECOND
    row = await told.job("a", jobs.Pause("no answer", "remote_unavailable", until, jobs.Counters(3)))
    assert row is not None
    assert (row.failures, row.failed_at, row.last_failed) == (1, begun, False)
    database = told._store.database
    assert (await open_of(told))["a"].retry_at == until
    assert await read.retries(database, until - SECOND) == []
    assert [one.job for one in await read.retries(database, until)] == ["a"]
    await told.at(begun + 95 * SECOND)
    await told.job("a", jobs.Resume(running=False, retry=until))
    assert (await open_of(told))["a"].retry_at is None
    row = await told.job("a", jobs.Start(fence=2, worker="w", at=T0), complete())
    assert row is not None
    assert (row.failures, row.next_due) == (0, begun + (MINUTE if overlap == "queue" else 2 * MINUTE))
    assert await open_of(told) == {}


async def test_failures_in_a_row_are_counted_until_something_works_or_is_changed(told: Told) -> None:
    await told.integration(CREATE)
    for number in range(3):
        await told.queue(f"a{number}")
        row = await told.job(f"a{number}", jobs.Fail("remote_refused", "no", jobs.Counters()))
    assert row is not None
    assert (row.failures, row.failed_at, row.last_failed) == (3, row.failed_at, True)
    await told.queue("held")
    row = await told.job("held", HOLD)
    assert row is not None
    assert row.failures == 3
    row = await told.integration(integrations.Change(name="other"))
    assert row is not None
    assert row.failures == 3
    row = await told.integration(integrations.Change(config=Raw(b'{"a":9}')))
    assert row is not None
    assert row.failures == 0
    await told.queue("b")
    await told.job("b", FAIL)
    await told.queue("c")
    row = await told.job("c", complete())
    assert row is not None
    assert row.failures == 0


async def test_a_stopped_schedule_is_never_due(told: Told) -> None:
    await told.integration(CREATE)
    row = await told.integration(integrations.Stop(), integrations.Change(interval=30))
    assert row is not None
    assert (row.active, row.interval, row.next_due) == (False, 30, None)
    row = await told.queue("a", due=T0)
    assert row is not None
    assert row.next_due is None
    row = await told.integration(integrations.Start())
    assert row is not None
    assert row.next_due is not None
    row = await told.integration(integrations.Change(interval=None))
    assert row is not None
    assert row.next_due is None


async def test_a_deleted_integration_is_gone_and_its_jobs_do_not_bring_it_back(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("a")
    assert await told.integration(integrations.Delete()) is None
    assert await told.job("a", complete()) is None
    row = await told.integration(CREATE)
    assert row is not None
    assert (row.total, row.baseline_at) == (0, None)
    assert await read.list_(told._store.database, "second") == []
    assert await read.list_(told._store.database, "main") == [row]
