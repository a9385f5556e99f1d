"""Schedules as they fire: across changes of the clocks, a restart and hours of downtime. The tables are by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import Raw

from domain import integrations, jobs
from domain.policies import Policy
from domain.schedules import CatchUp, Overlap, Schedule
from projections import integrations as read
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
    runs, overdue = await world.told()
    return runs, overdue


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
