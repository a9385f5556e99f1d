"""Schedules as they fire: across changes of the clocks, a restart and hours of downtime. The tables are by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import Raw

from domain import errors, integrations, jobs
from domain.policies import Policy
from domain.schedules import CatchUp, Overlap, Schedule
from projections import integrations as read
from services import doctor
from tests.projections.clock import Scene, open_scene

STEP = timedelta(minutes=15)
CONFIG = Raw(b'{"sourceDirectory":"/a","targetDirectory":"/b"}')
DONE = jobs.Counters()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
async def scene(database: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(database, tmp_path, utc("2027-01-01T00:00")) as opened:
        yield opened


def create(schedule: Schedule, policy: Policy | None = None) -> integrations.Create:
    return integrations.Create("i", "name", "files", CONFIG, schedule=schedule, policy=policy)


class World:
    """Schedulers, and a worker that takes the oldest job when none runs and needs `lasts` for it."""

    def __init__(self, scene: Scene, lasts: timedelta) -> None:
        self.scene, self._lasts = scene, lasts
        self._running: tuple[str, datetime] | None = None
        self.fence = 0

    async def run(self, begins: datetime, ends: datetime, away: tuple[datetime, datetime] | None = None) -> None:
        """Both schedulers are away from the first of these times until the second, and then are new ones."""
        now = begins
        while now <= ends:
            await self.scene.to(now)
            await self._work()
            if away is None or not away[0] <= now < away[1]:
                if away is not None and now == away[1]:
                    self.scene.schedulers = [self.scene.scheduler() for _ in self.scene.schedulers]
                await self.scene.tick()
                await self._work()
            now += STEP

    async def _work(self) -> None:
        scene = self.scene
        for one in await read.open_jobs(scene.store.database, "main", "i"):
            state = (await scene.store.load(jobs, f"jobs/main/{one.job}")).state
            if state.status == "stopping":
                await scene.say(jobs, one.job, jobs.EndStop(DONE))
                self._running = None
            elif self._running is not None and self._running == (one.job, scene.now - self._lasts):
                await scene.say(jobs, one.job, jobs.Complete(DONE, Raw(b"{}"), 1))
                self._running = None
        queued = [one for one in await read.open_jobs(scene.store.database, "main", "i") if not one.started]
        if self._running is None and queued:
            self.fence += 1
            await scene.say(jobs, queued[0].job, jobs.Start(fence=self.fence, worker="w", at=scene.now))
            self._running = (queued[0].job, scene.now)

    async def told(self) -> tuple[list[str], list[str]]:
        """Runs as `due>began=how it ended`, in the order in which they were queued, and what was overdue."""
        runs: dict[str, list[str]] = {}
        overdue = []
        for one in await self.scene.log():
            match one.event:
                case jobs.Queued(due=due) if due is not None:
                    runs[one.id] = [f"{due:%H:%M}", "", ""]
                case jobs.Started() if one.id in runs:
                    runs[one.id][1] = f">{one.recorded_at:%H:%M}"
                case jobs.Stopped():
                    runs[one.id][2] = "=stopped"
                case jobs.Completed() if one.id in runs:
                    runs[one.id][2] = "=done"
                case integrations.Overdue(due=due):
                    overdue.append(f"{due:%H:%M}")
        return ["".join(parts) for parts in runs.values()], overdue


# Nights in which clocks change, in UTC: zone, expression, begins, ends, and when both schedulers go away for three
# hours, after which two new ones begin. Each job is done within a quarter of an hour, so none meets another and the
# overlap does not matter. A run is overdue after five minutes.

#: 31 October 2027, Berlin: summer time until 01:00. 1 o'clock is 23:00; 2 o'clock is 00:00, and again 01:00, where
#: nothing is run; 3 o'clock is 02:00. Away from 00:30 until 03:30: 02:00 and 03:00 are missed.
AUTUMN = ("Europe/Berlin", "0 1-7 * * *", "2027-10-30T22:30", "2027-10-31T05:45", "2027-10-31T00:30")
#: 28 March 2027, Berlin: summer time from 01:00. 1 o'clock is 00:00; there is no 2 o'clock, which with 3 o'clock is
#: 01:00; 4 o'clock is 02:00. Away from 00:30 until 03:30: 01:00, 02:00 and 03:00 are missed.
SPRING = ("Europe/Berlin", "0 1-7 * * *", "2027-03-27T23:30", "2027-03-28T05:15", "2027-03-28T00:30")
#: 7 November 2027, New York: summer time until 06:00. Midnight is 04:00; 1 o'clock is 05:00, and again 06:00, where
#: nothing is run; 2 o'clock is 07:00. Away from 05:30 until 08:30: 07:00 and 08:00 are missed.
FALL = ("America/New_York", "0 0-6 * * *", "2027-11-07T03:30", "2027-11-07T10:15", "2027-11-07T05:30")
#: 14 March 2027, New York: summer time from 07:00. Midnight is 05:00, 1 o'clock is 06:00; there is no 2 o'clock, which
#: with 3 o'clock is 07:00. Away from 06:30 until 09:30: 07:00, 08:00 and 09:00 are missed.
MARCH = ("America/New_York", "0 0-6 * * *", "2027-03-14T04:30", "2027-03-14T10:15", "2027-03-14T06:30")

#: Place, catch-up; the runs as `due>began`; what is overdue.
SHORT: list[tuple[tuple[str, ...], CatchUp, list[str], list[str]]] = [
    (AUTUMN, "none", ["23:00>23:00", "00:00>00:00", "04:00>04:00", "05:00>05:00"], ["02:00"]),
    (AUTUMN, "one", ["23:00>23:00", "00:00>00:00", "03:00>03:30", "04:00>04:00", "05:00>05:00"], ["02:00"]),
    (
        AUTUMN,
        "all",
        ["23:00>23:00", "00:00>00:00", "02:00>03:30", "03:00>03:45", "04:00>04:00", "05:00>05:00"],
        ["02:00", "03:00"],
    ),
    (SPRING, "none", ["00:00>00:00", "04:00>04:00", "05:00>05:00"], ["01:00"]),
    (SPRING, "one", ["00:00>00:00", "03:00>03:30", "04:00>04:00", "05:00>05:00"], ["01:00"]),
    # Of those that were missed one begins every quarter of an hour, so 04:00 has to wait for 03:00.
    (
        SPRING,
        "all",
        ["00:00>00:00", "01:00>03:30", "02:00>03:45", "03:00>04:00", "04:00>04:15", "05:00>05:00"],
        ["01:00", "02:00", "03:00", "04:00"],
    ),
    (FALL, "none", ["04:00>04:00", "05:00>05:00", "09:00>09:00", "10:00>10:00"], ["07:00"]),
    (FALL, "one", ["04:00>04:00", "05:00>05:00", "08:00>08:30", "09:00>09:00", "10:00>10:00"], ["07:00"]),
    (
        FALL,
        "all",
        ["04:00>04:00", "05:00>05:00", "07:00>08:30", "08:00>08:45", "09:00>09:00", "10:00>10:00"],
        ["07:00", "08:00"],
    ),
    (MARCH, "none", ["05:00>05:00", "06:00>06:00", "10:00>10:00"], ["07:00"]),
    (MARCH, "one", ["05:00>05:00", "06:00>06:00", "09:00>09:30", "10:00>10:00"], ["07:00"]),
    (
        MARCH,
        "all",
        ["05:00>05:00", "06:00>06:00", "07:00>09:30", "08:00>09:45", "09:00>10:00", "10:00>10:15"],
        ["07:00", "08:00", "09:00", "10:00"],
    ),
]

#: The autumn night in Berlin, where each job takes two and a half hours: overlap, catch-up; the runs as `due>began=how
#: it ended`, what waits at the end without more than its due time; what is overdue.
LONG: list[tuple[Overlap, CatchUp, list[str], list[str]]] = [
    # 00:00 waits for the end of 23:00. Back again, nothing is made up for; 04:00 begins as 00:00 ends; 05:00 waits.
    (
        "queue",
        "none",
        ["23:00>23:00=done", "00:00>01:30=done", "04:00>04:00", "05:00"],
        ["00:00", "02:00", "05:00"],
    ),
    # Back again, 03:00 is queued for both that were missed; 04:00 waits behind it, and 05:00 for a place to wait.
    (
        "queue",
        "one",
        ["23:00>23:00=done", "00:00>01:30=done", "03:00>04:00", "04:00"],
        ["00:00", "02:00", "03:00", "04:00", "05:00"],
    ),
    # One of those that were missed waits at a time.
    (
        "queue",
        "all",
        ["23:00>23:00=done", "00:00>01:30=done", "02:00>04:00", "03:00"],
        ["00:00", "02:00", "03:00", "04:00"],
    ),
    # 00:00 is left out for 23:00, 05:00 for 04:00.
    ("skip", "none", ["23:00>23:00=done", "04:00>04:00"], ["02:00"]),
    ("skip", "one", ["23:00>23:00=done", "03:00>03:30"], ["02:00"]),
    ("skip", "all", ["23:00>23:00=done", "02:00>03:30"], ["02:00"]),
    # Each run ends the one before, if that is not done.
    (
        "cancel_other",
        "none",
        ["23:00>23:00=stopped", "00:00>00:00=done", "04:00>04:00=stopped", "05:00>05:00"],
        ["02:00"],
    ),
    (
        "cancel_other",
        "one",
        ["23:00>23:00=stopped", "00:00>00:00=done", "03:00>03:30=stopped", "04:00>04:00=stopped", "05:00>05:00"],
        ["02:00"],
    ),
    (
        "cancel_other",
        "all",
        [
            "23:00>23:00=stopped",
            "00:00>00:00=done",
            "02:00>03:30=stopped",
            "03:00>03:45=stopped",
            "04:00>04:00=stopped",
            "05:00>05:00",
        ],
        ["02:00", "03:00"],
    ),
]


async def night(
    scene: Scene, place: tuple[str, ...], lasts: timedelta, overlap: Overlap, catch_up: CatchUp
) -> tuple[list[str], list[str]]:
    zone, cron, begins, ends, away = place
    schedule = Schedule(cron=cron, time_zone=zone, overlap=overlap, catch_up=catch_up, tolerance=300)
    await scene.to(utc(begins))
    await scene.say(integrations, "i", create(schedule))
    # The first run of all is a full one, which an incremental one would not stop.
    await scene.say(jobs, "first", jobs.Queue(jobs.Queued(FULL, Raw(b"{}"))))
    await scene.say(jobs, "first", jobs.Start(fence=1, worker="w", at=scene.now), jobs.Complete(DONE, Raw(b"{}"), 1))
    scene.schedulers = [scene.scheduler(), scene.scheduler()]
    world = World(scene, lasts)
    world.fence = 1
    await world.run(utc(begins), utc(ends), (utc(away), utc(away) + timedelta(hours=3)))
    await rebuilt_is_the_same(scene)
    return await world.told()


async def rebuilt_is_the_same(scene: Scene) -> None:
    async with doctor.shadow(scene.store.database, read) as (connection, beside):
        await doctor.fold(scene.store, connection, read, beside, await scene.store.head())
        assert await doctor.differing(connection, read, beside) is None


FULL = jobs.Ticket(job="first", kind="files", type="full_sync", lane="later", integration="i")


@pytest.mark.parametrize("overlap", ["queue", "skip", "cancel_other"])
@pytest.mark.parametrize(("place", "catch_up", "expected", "late"), SHORT)
async def test_a_night_with_a_change_of_the_clocks_and_three_hours_away(
    scene: Scene, place: tuple[str, ...], catch_up: CatchUp, expected: list[str], late: list[str], overlap: Overlap
) -> None:
    runs, overdue = await night(scene, place, timedelta(minutes=15), overlap, catch_up)
    assert (expected, late) == ([run.removesuffix("=done") for run in runs], overdue)


@pytest.mark.parametrize(("overlap", "catch_up", "expected", "late"), LONG)
async def test_a_night_of_long_jobs(
    scene: Scene, overlap: Overlap, catch_up: CatchUp, expected: list[str], late: list[str]
) -> None:
    assert (expected, late) == await night(scene, AUTUMN, timedelta(hours=2, minutes=30), overlap, catch_up)


# Beside the nights.

T0 = utc("2027-06-01T00:00")
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


async def queued(scene: Scene) -> list[tuple[str, datetime]]:
    """Type and due time of the scheduled jobs, as they were queued."""
    found: list[tuple[str, datetime]] = []
    for one in await scene.log():
        if isinstance(one.event, jobs.Queued) and one.event.due is not None:
            found.append((one.event.requested_type or one.event.ticket.type, one.event.due))
    return found


async def begin(scene: Scene, schedule: Schedule, policy: Policy | None = None) -> None:
    await scene.to(T0)
    await scene.say(integrations, "i", create(schedule, policy))


async def work(scene: Scene, job: str, *commands: jobs.Command) -> None:
    await scene.say(jobs, job, jobs.Start(fence=scene.fence(), worker="w", at=scene.now), *commands)


async def last(scene: Scene) -> str:
    """The job that was queued last."""
    return [one.id for one in await scene.log() if isinstance(one.event, jobs.Queued)][-1]


COMPLETE = jobs.Complete(DONE, Raw(b"{}"), 1)


async def test_a_full_run_and_one_that_is_not_are_due_together(scene: Scene) -> None:
    """The full one does both."""
    await begin(scene, Schedule(every=3600, full_every=7200))
    for hour in (1, 2, 3, 4):
        await scene.to(T0 + hour * HOUR)
        assert await scene.tick() == 1
        assert await scene.tick() == 0
        await work(scene, await last(scene), COMPLETE)
    assert await queued(scene) == [
        ("incremental_sync", T0 + HOUR),
        ("full_sync", T0 + 2 * HOUR),
        ("incremental_sync", T0 + 3 * HOUR),
        ("full_sync", T0 + 4 * HOUR),
    ]


@pytest.mark.parametrize("overlap", ["skip", "cancel_other"])
async def test_a_long_full_run_is_not_ended_for_an_incremental_one(scene: Scene, overlap: Overlap) -> None:
    await begin(scene, Schedule(every=60, full_every=90, overlap=overlap))
    await scene.to(T0 + 90 * timedelta(seconds=1))
    assert await scene.tick() == 1
    full = await last(scene)
    await work(scene, full)
    for minute in (2, 3):
        await scene.to(T0 + minute * MINUTE)
        if minute == 3:
            await scene.say(jobs, full, COMPLETE)
        assert await scene.tick() == (minute == 3)
    assert (await scene.store.load(jobs, f"jobs/main/{full}")).state.status == "completed"
    seconds = [(type, (due - T0) // timedelta(seconds=1)) for type, due in await queued(scene)]
    assert seconds == [("full_sync", 90), ("full_sync", 180)]


async def test_nothing_is_decided_from_what_is_not_up_to_date(scene: Scene) -> None:
    await begin(scene, Schedule(every=60))
    await scene.to(T0 + MINUTE)
    await scene.store.execute(integrations, "i", integrations.Stop())  # and the read model does not know
    assert await scene.schedulers[0].tick() == 0
    await scene.to(T0 + 2 * MINUTE)
    assert await scene.tick() == 0
    assert await queued(scene) == []


async def test_a_decision_is_right_for_the_moment_that_was_looked_at(scene: Scene) -> None:
    """The read model takes ten minutes to come so far: what was in time then is not overdue."""
    await begin(scene, Schedule(every=60, tolerance=30, catch_up="none"))
    await scene.to(T0 + MINUTE)
    await scene.store.execute(integrations, "i", integrations.Change(name="other"))
    assert await scene.schedulers[0].tick() == 0
    await scene.to(T0 + 11 * MINUTE)
    assert await scene.tick() == 1
    assert await queued(scene) == [("incremental_sync", T0 + MINUTE)]


async def test_whoever_decides_twice_decides_once(scene: Scene) -> None:
    """As a scheduler that was killed behind its append, and began anew with what it had read before."""
    await begin(scene, Schedule(every=60, overlap="cancel_other"))
    row = await scene.row()
    assert row.next_due is not None
    await scene.to(T0 + MINUTE)
    for expected in (True, False, False):
        again = scene.scheduler()
        assert await again._fire(row, "main", row.next_due, row.next_due, [], scene.now) is expected
    await scene.fold()
    assert len(await queued(scene)) == 1


async def test_a_schedule_that_was_stopped_meanwhile_does_not_fire(scene: Scene) -> None:
    await begin(scene, Schedule(every=60))
    row = await scene.row()
    assert row.next_due is not None
    await scene.say(integrations, "i", integrations.Stop())
    with pytest.raises(errors.InvalidState):
        await scene.scheduler()._fire(row, "main", row.next_due, row.next_due, [], scene.now)
    assert await queued(scene) == []


async def test_jitter_spreads_and_the_order_stays(scene: Scene) -> None:
    await begin(scene, Schedule(every=3600, jitter=1800))
    for hour in (1, 2, 3):
        fires = (await scene.row()).next_fires
        assert fires is not None
        assert T0 + hour * HOUR <= fires <= T0 + hour * HOUR + HOUR / 2
        await scene.to(fires - timedelta(milliseconds=1))
        assert await scene.tick() == 0
        await scene.to(fires)
        assert await scene.tick() == 1
        await work(scene, await last(scene), COMPLETE)
    assert [due for _, due in await queued(scene)] == [T0 + hour * HOUR for hour in (1, 2, 3)]


async def test_a_job_that_no_worker_begins_is_overdue_once(scene: Scene) -> None:
    await begin(scene, Schedule(every=3600, tolerance=60))
    await scene.to(T0 + HOUR)
    assert await scene.tick() == 1
    for minute in (1, 2, 3):
        await scene.to(T0 + HOUR + minute * MINUTE)
        await scene.tick()
    [overdue] = [one for one in await scene.log() if isinstance(one.event, integrations.Overdue)]
    assert overdue.event == integrations.Overdue("name", T0 + HOUR, "main", await last(scene))
    assert overdue.recorded_at == T0 + HOUR + 2 * MINUTE


# What failed.

FAIL = jobs.Fail("remote_refused", "no", DONE)


async def test_an_attempt_follows_at_its_time_and_once(scene: Scene) -> None:
    await begin(scene, Schedule(every=3600))
    scene.schedulers.append(scene.scheduler())
    await scene.to(T0 + HOUR)
    assert await scene.tick() == 1
    job, until = await last(scene), T0 + HOUR + 10 * MINUTE
    await work(scene, job, jobs.Pause("no answer", "remote_unavailable", until, DONE))
    await scene.to(until - timedelta(seconds=1))
    await scene.tick()
    assert (await scene.store.load(jobs, f"jobs/main/{job}")).state.status == "paused"
    await scene.to(until)
    for _ in range(3):
        await scene.tick()
    log = await scene.store.stream(f"jobs/main/{job}")
    resumed = [(one.event, one.recorded_at) for one in log if isinstance(one.event, jobs.Resumed)]
    assert [(event.running, event.retry, at) for event, at in resumed] == [(False, True, until)]


@pytest.mark.parametrize(("overlap", "expected"), [("queue", 0), ("skip", 0), ("cancel_other", 1)])
async def test_a_job_between_two_attempts_is_in_the_way_as_one_that_runs(
    scene: Scene, overlap: Overlap, expected: int
) -> None:
    await begin(scene, Schedule(every=3600, overlap=overlap))
    await scene.to(T0 + HOUR)
    await scene.say(jobs, "full", jobs.Queue(jobs.Queued(FULL, Raw(b"{}"))))
    await work(scene, "full", COMPLETE)
    assert await scene.tick() == 1
    job = await last(scene)
    await work(scene, job, jobs.Pause("no answer", "remote_unavailable", T0 + 3 * HOUR, DONE))
    await scene.to(T0 + 2 * HOUR)
    assert await scene.tick() == expected
    status = (await scene.store.load(jobs, f"jobs/main/{job}")).state.status
    assert status == ("stopped" if expected else "paused")


async def test_an_open_breaker_lets_one_run_try_at_a_time(scene: Scene) -> None:
    policy = Policy(breaker_failures=2, breaker_pause=3 * 3_600_000)
    await begin(scene, Schedule(every=3600, tolerance=60), policy)
    for hour in (1, 2):
        await scene.to(T0 + hour * HOUR)
        assert await scene.tick() == 1
        await work(scene, await last(scene), FAIL)
    for hour in (3, 4):  # open since 02:00, until 05:00
        await scene.to(T0 + hour * HOUR)
        assert await scene.tick() == 0
    await scene.to(T0 + 5 * HOUR)
    assert await scene.tick() == 1
    probe = await last(scene)
    await scene.to(T0 + 6 * HOUR)
    assert await scene.tick() == 0  # the probe is under way
    await work(scene, probe, COMPLETE)
    assert await scene.tick() == 1
    dues = [(due - T0) // HOUR for _, due in await queued(scene)]
    assert dues == [1, 2, 5, 6]
    overdue = [one.event.due for one in await scene.log() if isinstance(one.event, integrations.Overdue)]
    assert [(due - T0) // HOUR for due in overdue] == [3, 5]
