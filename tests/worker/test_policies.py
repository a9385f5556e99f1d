"""Policies with a real worker, a real scheduler and a remote that fails: attempts, the breaker, time-outs, limits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import integrations, jobs, kinds, messages
from domain.policies import Policy
from infra import config, configfile
from infra.blobs import Blobs
from infra.bus import Bus
from infra.leases import Leases
from projections import collections as collections_read
from projections import integrations as integrations_read
from services import integrations as declared
from services import projector
from services.main import Process
from services.scheduler import Scheduler
from services.worker import children, progress, sources
from services.worker.role import Worker
from tests.projections.histories import ended, open_store, open_tail
from tests.worker import flaky
from tests.worker.flaky import Remote, serving

LIVE = (integrations_read, collections_read)
ENDED = ("completed", "failed", "stopped")
HOUR = 3_600_000
QUICK = Policy(attempts=4, backoff=40, backoff_max=80, breaker_failures=0)


@dataclass
class Plant:
    """A scheduler, a projector and workers on one log."""

    process: Process
    remote: Remote
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def integration(self, policy: Policy | None, interval: int | None = None) -> str:
        id = f"flaky-{next(self.numbers)}"
        spec = Raw(msgspec.json.encode(flaky.Spec(self.remote.url)))
        create = integrations.Create(id, id, flaky.KIND, spec, interval, policy=policy)
        await self.process.store.execute(integrations, id, create)
        return id

    async def queue(self, id: str, trigger: jobs.Trigger = "request", **more: Any) -> str:
        job = f"job-{next(self.numbers)}"
        spec = Raw(msgspec.json.encode(flaky.Spec(self.remote.url)))
        ticket = jobs.Ticket(job=job, kind=flaky.KIND, type="full_sync", lane="later", integration=id)
        await self.say(job, jobs.Queue(jobs.Queued(ticket=ticket, spec=spec, trigger=trigger, **more)))
        return job

    async def say(self, job: str, command: messages.Command) -> None:
        await self.process.store.execute(jobs, job, command)

    async def job(self, job: str) -> jobs.Job:
        state: jobs.Job = (await self.process.store.load(jobs, f"jobs/main/{job}")).state
        return state

    async def once(self, job: str, *statuses: str) -> jobs.Job:
        async def there() -> jobs.Job | None:
            state = await self.job(job)
            return state if state.status in statuses else None

        found: jobs.Job = await until(there)
        return found

    async def pauses(self, job: str) -> list[jobs.Paused]:
        log = await self.process.store.stream(f"jobs/main/{job}")
        return [one.event for one in log if isinstance(one.event, jobs.Paused)]

    async def lines(self, job: str) -> list[str]:
        return [one.message for one in await progress.lines(self.process.db, "main", job, 0, 1000)]

    async def row(self, id: str) -> integrations_read.Row:
        head = await self.process.store.head()

        async def seen() -> bool:
            return min((await projector.positions(self.process.db, LIVE)).values()) >= head

        await until(seen)
        row = await integrations_read.get(self.process.db, "main", id)
        assert row is not None
        return row

    async def breaker(self, id: str) -> str:
        row = await self.row(id)
        return declared.breaker(self.process.settings, row, datetime.now(UTC)).state


async def until(true: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while not (found := await true()):
            await asyncio.sleep(0.02)
        return found


@asynccontextmanager
async def open_plant(
    url: str, directory: Path, remote: Remote, workers: int = 1, **settings: Any
) -> AsyncIterator[Plant]:
    overrides: dict[str, Any] = {
        "data_dir": str(directory / "data"),
        "jobs.beat_s": 0.1,
        "jobs.poll_s": 0.05,
        "jobs.lease_s": 1.0,
        "scheduler.tick_s": 0.05,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    loaded = configfile.load(environ={}, overrides=list(overrides.items()))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(url))
        tail = await stack.enter_async_context(open_tail(store))
        await projector.prepare(store.database, LIVE)

        def process(name: str) -> Process:
            return Process(
                name=name,
                settings=loaded,
                master=b"m" * 32,
                db=store.database,
                store=store,
                writer=store.writer,
                tail=tail,
                bus=Bus("nats://127.0.0.1:9"),
                governor=Bus("nats://127.0.0.1:9"),
                leases=Leases(store.database, name, loaded.jobs.lease_s),
                blobs=Blobs(directory / "blobs"),
                epoch=1,
            )

        made = process("core")
        work = [
            store.writer.run(),
            projector.Projector(made.db, store, tail, loaded.projector, LIVE).run(),
            Scheduler(made).run(),
        ]
        for number in range(workers):
            kept = children.Children(4)
            stack.push_async_callback(kept.close)
            work.append(Worker(process(f"worker-{number}"), ("now", "later"), kept).serve())
        for task in map(asyncio.ensure_future, work):
            stack.push_async_callback(ended, task)
        yield Plant(made, remote)


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    async with serving() as made:
        yield made


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PROGRAM", "tests.worker.flaky")
    monkeypatch.setattr(kinds, "KINDS", flaky.KINDS)
    monkeypatch.setattr(sources, "SOURCES", flaky.SOURCES)


@pytest.fixture
async def plant(database: str, tmp_path: Path, remote: Remote) -> AsyncIterator[Plant]:
    async with open_plant(database, tmp_path, remote) as made:
        yield made


# Attempts.


async def test_what_may_pass_is_tried_again_from_where_it_was(plant: Plant) -> None:
    plant.remote.refuses, plant.remote.only_page = [503, 503], 1
    job = await plant.queue(await plant.integration(QUICK))
    state = await plant.once(job, *ENDED)
    assert (state.status, state.counters.created, state.counters.processed) == ("completed", 6, 6)
    assert plant.remote.hits == [0, 1, 1, 1, 2]
    first, second = await plant.pauses(job)
    assert (first.code, first.reason, first.tried) == ("remote_unavailable", "The remote answers 503", 1)
    assert second.tried == 2
    for pause in (first, second):
        assert pause.counters is not None
        assert (pause.counters.created, pause.until is not None) == (2, True)
    lines = await plant.lines(job)
    assert next(line for line in lines if line.startswith("Attempt")).startswith("Attempt 2 follows at 20")
    assert lines.count("The remote answers 503") == 2


async def test_attempts_are_bounded(plant: Plant) -> None:
    plant.remote.always = 503
    job = await plant.queue(await plant.integration(QUICK))
    state = await plant.once(job, *ENDED)
    assert isinstance(state.ended, jobs.Failed)
    assert (state.ended.code, state.ended.message) == ("remote_unavailable", "The remote answers 503")
    assert plant.remote.hits == [0] * 4
    assert [pause.tried for pause in await plant.pauses(job)] == [1, 2, 3]


async def test_each_page_that_came_through_gives_it_new_attempts(plant: Plant) -> None:
    plant.remote.refuses = [503, 503, 503]
    job = await plant.queue(await plant.integration(Policy(attempts=2, backoff=10, breaker_failures=0)))
    assert (await plant.once(job, *ENDED)).status == "failed"
    assert plant.remote.hits == [0, 0]
    await plant.say(job, jobs.Resume())
    assert (await plant.once(job, "completed")).counters.created == 6


async def test_what_does_not_pass_fails_at_once_with_a_sentence_to_act_on(plant: Plant) -> None:
    plant.remote.always = 401
    job = await plant.queue(await plant.integration(QUICK))
    state = await plant.once(job, *ENDED)
    assert isinstance(state.ended, jobs.Failed)
    assert state.ended.code == "remote_refused"
    assert state.ended.message == "The remote does not know this key; enter another one"
    assert (plant.remote.hits, await plant.pauses(job)) == ([0], [])


async def test_what_the_remote_asks_for_is_waited_for(plant: Plant) -> None:
    plant.remote.refuses = [429]
    before = datetime.now(UTC)
    job = await plant.queue(await plant.integration(QUICK))
    assert (await plant.once(job, *ENDED)).status == "completed"
    [pause] = await plant.pauses(job)
    assert pause.code == "remote_busy"
    assert pause.until is not None
    assert pause.until >= before + timedelta(seconds=2)


async def test_whoever_waits_for_an_answer_gets_it(plant: Plant) -> None:
    plant.remote.always = 503
    job = await plant.queue(await plant.integration(QUICK), waited=True)
    assert (await plant.once(job, *ENDED)).status == "failed"
    assert await plant.pauses(job) == []


async def test_a_job_that_rests_is_resumed_by_hand_and_not_twice(plant: Plant) -> None:
    plant.remote.refuses = [503]
    job = await plant.queue(await plant.integration(Policy(attempts=5, backoff=HOUR)))
    state = await plant.once(job, "paused")
    assert (state.tried, state.until is not None) == (1, True)
    await plant.say(job, jobs.Resume())
    await plant.once(job, "completed")
    assert plant.remote.hits == [0, 0, 1, 2]
    assert state.until is not None
    await plant.say(job, jobs.Resume(retry=state.until))
    assert (await plant.job(job)).status == "completed"


async def test_a_job_that_rests_is_stopped_and_stays_so(plant: Plant) -> None:
    plant.remote.refuses = [503]
    job = await plant.queue(await plant.integration(Policy(attempts=5, backoff=400, backoff_max=400)))
    state = await plant.once(job, "paused")
    await plant.say(job, jobs.Stop())
    assert (await plant.job(job)).status == "stopped"
    assert state.until is not None
    other = await plant.queue(await plant.integration(Policy(attempts=2, backoff=800, backoff_max=800)))
    plant.remote.refuses = [503]
    assert (await plant.once(other, *ENDED)).status == "completed"  # time enough for the one that was stopped
    assert datetime.now(UTC) > state.until
    assert (await plant.job(job)).status == "stopped"


# The breaker.


async def test_the_breaker_opens_and_one_run_closes_it(plant: Plant) -> None:
    plant.remote.always = 503
    policy = Policy(attempts=1, breaker_failures=3, breaker_pause=700)
    id = await plant.integration(policy, interval=1)

    async def opened() -> bool:
        return (await plant.row(id)).failures >= 5

    await until(opened)
    plant.remote.always = None

    async def closed() -> bool:
        return (await plant.row(id)).completed >= 1

    await until(closed)
    assert await plant.breaker(id) == "closed"
    failed: list[datetime] = []
    began: list[datetime] = []
    for one in await plant.process.store.read(0, 10_000):
        if isinstance(one.event, jobs.Started):
            began.append(one.recorded_at)
        elif isinstance(one.event, jobs.Failed):
            failed.append(one.recorded_at)
    for number in range(3, len(failed) + 1):  # the third failure opens it, each further one for twice as long
        pause = timedelta(milliseconds=700 * 2 ** (number - 3))
        assert all(not failed[number - 1] < at < failed[number - 1] + pause for at in began)


async def test_while_the_breaker_is_open_only_a_run_by_hand_goes_through(plant: Plant) -> None:
    plant.remote.always = 401
    policy = Policy(attempts=3, breaker_failures=1, breaker_pause=HOUR)
    id = await plant.integration(policy)
    await plant.once(await plant.queue(id), "failed")
    assert await plant.breaker(id) == "open"
    waits = await plant.queue(id, "schedule", due=datetime.now(UTC))
    state = await plant.once(waits, "paused")
    row = await plant.row(id)
    assert row.failed_at is not None
    assert state.until == row.failed_at + timedelta(hours=1)
    assert state.tried == 0
    assert plant.remote.hits == [0]
    await plant.once(await plant.queue(id), "failed")
    assert (plant.remote.hits, (await plant.row(id)).failures) == ([0, 0], 2)
    plant.remote.always = None
    await plant.once(await plant.queue(id), "completed")
    assert await plant.breaker(id) == "closed"
    await plant.say(waits, jobs.Resume())
    await plant.once(waits, "completed")


async def test_further_attempts_wait_for_the_breaker(plant: Plant) -> None:
    """A job whose attempts open it rests until the probe, which is the job's own next attempt."""
    plant.remote.refuses = [503, 503]
    policy = Policy(attempts=5, backoff=10, breaker_failures=2, breaker_pause=1_000)
    id = await plant.integration(policy)
    job = await plant.queue(id)
    await plant.once(job, "completed")
    log = await plant.process.store.stream(f"jobs/main/{job}")
    paused = [one.recorded_at for one in log if isinstance(one.event, jobs.Paused)]
    resumed = [one.recorded_at for one in log if isinstance(one.event, jobs.Resumed)]
    assert (len(paused), len(resumed)) == (2, 2)
    assert resumed[1] >= paused[1] + timedelta(seconds=1)
    assert await plant.breaker(id) == "closed"


async def test_a_restart_forgets_neither_the_breaker_nor_the_next_attempt(
    database: str, tmp_path: Path, remote: Remote
) -> None:
    remote.always = 503
    async with open_plant(database, tmp_path, remote) as plant:
        broken = await plant.integration(Policy(attempts=1, breaker_failures=1, breaker_pause=HOUR), interval=1)
        rests = await plant.queue(await plant.integration(Policy(attempts=5, backoff=1_500)))
        await plant.once(rests, "paused")

        async def opened() -> bool:
            return await plant.breaker(broken) == "open"

        await until(opened)
        count = (await plant.row(broken)).total
    remote.always = None
    async with open_plant(database, tmp_path, remote) as plant:
        assert (await plant.once(rests, *ENDED)).status == "completed"
        assert await plant.breaker(broken) == "open"
        assert (await plant.row(broken)).total == count


# Time-outs and limits.


async def test_an_attempt_that_takes_too_long_is_cut_off_and_tried_again(plant: Plant) -> None:
    plant.remote.free.clear()
    id = await plant.integration(Policy(attempts=2, backoff=10, timeout=300))
    job = await plant.queue(id)
    state = await plant.once(job, "failed")
    assert isinstance(state.ended, jobs.Failed)
    assert (state.ended.code, state.ended.message) == ("timed_out", "It took longer than 0.3 s")
    assert [pause.code for pause in await plant.pauses(job)] == ["timed_out"]
    plant.remote.free.set()
    await plant.process.store.execute(integrations, id, integrations.Change(policy=None))
    await plant.say(job, jobs.Resume())
    assert (await plant.once(job, *ENDED)).status == "completed"


@pytest.mark.parametrize("limit", [1, 2])
async def test_so_many_run_at_a_time_of_all_workers(database: str, tmp_path: Path, remote: Remote, limit: int) -> None:
    async with open_plant(database, tmp_path, remote, workers=2, policies__concurrency=limit) as plant:
        remote.free.clear()
        queued = [await plant.queue(await plant.integration(QUICK)) for _ in range(6)]
        async with asyncio.timeout(30):
            while remote.busy < limit:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # whoever else there may be has come by now
        remote.free.set()
        for job in queued:
            await plant.once(job, "completed")
        assert remote.most == limit


async def test_the_place_of_a_worker_that_died_is_free_again(database: str, tmp_path: Path, remote: Remote) -> None:
    async with open_plant(database, tmp_path, remote, policies__concurrency=1) as plant:
        dead = Leases(plant.process.db, "dead", 1.0)
        assert await dead.take("slot/0") is not None
        await plant.once(await plant.queue(await plant.integration(QUICK)), "completed")


def test_an_attempt_may_take_what_its_integration_the_settings_or_its_kind_say() -> None:
    unset, strict = config.Settings(), config.Settings()
    strict.policies.timeout_s = 5.0
    found = [
        declared.rules(settings, kind, policy).timeout
        for settings in (unset, strict)
        for kind in ("plane", "files")
        for policy in (None, Policy(timeout=7))
    ]
    assert found == [43_200_000, 7, 0, 7, 5_000, 7, 5_000, 7]
