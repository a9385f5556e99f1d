"""Servers as the Panel wants them, by a worker against a Panel over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from msgspec import Raw

from domain import errors, jobs, server_config, servers
from domain.plans import servers as plan
from infra import config
from infra.panel import Panel
from infra.vault import Vault
from projections import servers as servers_read
from tests.conftest import _copy
from tests.doubles import panel as double
from tests.worker.workshop import MASTER, Workshop, open_workshop, until


@pytest.fixture
def there() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


@pytest.fixture
async def node(
    there: double.Panel, postgres_server: str, migrated_template: str, tmp_path: Path
) -> AsyncIterator[Workshop]:
    settings = config.Panel(url=there.url, token_id=double.TOKEN_ID, token=double.TOKEN, budget_s=3.0)
    async with Panel(settings) as panel:
        async for url in _copy(postgres_server, migrated_template):
            async with open_workshop(url, tmp_path, panel) as made:
                yield made


async def sync(node: Workshop, uuid: str) -> jobs.Job:
    return await node.end(await node.say("servers", plan.Spec(uuid)))


async def sync_all(node: Workshop, **spec: Any) -> str:
    return await node.say("servers", plan.Spec(**spec))


async def state(node: Workshop, uuid: str) -> servers.Server:
    found: servers.Server = (await node.process.store.load(servers, f"servers/main/{uuid}")).state
    return found


async def topics(node: Workshop, uuid: str) -> list[str]:
    return [one.topic for one in await node.process.store.stream(f"servers/main/{uuid}")]


async def test_a_sync_adds_the_server_with_the_end_of_its_job(node: Workshop, there: double.Panel) -> None:
    uuid = there.add(environment={"PASSWORD": "hunter2", "N": 5})
    ended = await sync(node, uuid)
    assert ended.status == "completed", ended.ended
    assert ended.counters == jobs.Counters(processed=1, created=1)
    [added] = await node.process.store.stream(f"servers/main/{uuid}")
    done = (await node.process.store.stream(f"jobs/main/{added.metadata.actor.removeprefix('job:')}"))[-1]
    assert isinstance(done.event, jobs.Completed)
    assert abs(done.position - added.position) == 1
    assert done.recorded_at == added.recorded_at


async def test_no_secret_is_in_the_log_and_each_can_be_had_again(node: Workshop, there: double.Panel) -> None:
    uuid = there.add(environment={"PASSWORD": "hunter2"})
    await sync(node, uuid)
    stored = await node.process.db.fetch("select state, metadata from undrift.events")
    assert not [row for row in stored if b"hunter2" in bytes(row["state"]) or "hunter2" in row["metadata"]]
    configuration = (await state(node, uuid)).configuration
    assert configuration is not None
    vault = Vault(node.process.db, MASTER)
    assert await vault.unseal("main", configuration.environment["PASSWORD"]) == "hunter2"


async def test_the_same_again_changes_nothing_and_each_change_has_its_event(
    node: Workshop, there: double.Panel
) -> None:
    uuid = there.add()
    await sync(node, uuid)
    again = await sync(node, uuid)
    assert again.counters == jobs.Counters(processed=1)
    there.change(uuid, build={"cpu_limit": 50}, environment={"NEW": "1"}, suspended=True)
    changed = await sync(node, uuid)
    assert changed.counters == jobs.Counters(processed=1, updated=1)
    assert isinstance(changed.ended, jobs.Completed)
    assert msgspec.json.decode(changed.ended.result, type=plan.Result).differences == 3
    assert await topics(node, uuid) == [
        "servers.added",
        "servers.limits_changed",
        "servers.environment_changed",
        "servers.suspended",
    ]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (lambda _: web.json_response({"settings": {"uuid": "other"}, "process_configuration": {}}), "remote_refused"),
        (lambda _: web.Response(text="<html>"), "remote_refused"),
        (lambda _: web.Response(status=403, text="{}"), "remote_refused"),
        (lambda _: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "remote_refused"),
        (lambda _: web.Response(status=500), "remote_unavailable"),
        (lambda _: web.json_response({"settings": None, "process_configuration": None}), "remote_refused"),
    ],
)
async def test_a_panel_of_no_use_changes_nothing(node: Workshop, there: double.Panel, trouble: Any, code: str) -> None:
    uuid = there.add()
    await sync(node, uuid)
    before = await state(node, uuid)
    there.trouble = trouble
    failed = await sync(node, uuid)
    assert isinstance(failed.ended, jobs.Failed)
    assert failed.ended.code == code
    assert await state(node, uuid) == before


async def test_one_that_the_panel_does_not_know_is_not_deleted(node: Workshop, there: double.Panel) -> None:
    uuid = there.add()
    await sync(node, uuid)
    del there.servers[uuid]
    failed = await sync(node, uuid)
    assert isinstance(failed.ended, jobs.Failed)
    assert failed.ended.code == errors.NotFound.code
    assert not (await state(node, uuid)).deleted


async def test_at_the_deadline_nothing_is_applied_whatever_the_panel_says_later(
    node: Workshop, there: double.Panel
) -> None:
    uuid = there.add()
    await sync(node, uuid)
    there.change(uuid, suspended=True)
    asked = asyncio.Event()

    async def slow(_: web.Request) -> None:
        loop.call_soon_threadsafe(asked.set)
        await asyncio.sleep(1.0)

    loop = asyncio.get_running_loop()
    there.trouble = slow
    ticket = jobs.Ticket(job="late", kind="servers", type="full_sync", lane="now")
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    spec = Raw(msgspec.json.encode(plan.Spec(uuid)))
    queued = jobs.Queued(ticket=ticket, spec=spec, waited=True, deadline=deadline)
    await node.process.store.execute(jobs, "late", jobs.Queue(queued))
    await asked.wait()
    await node.process.store.execute(jobs, "late", jobs.Expire())
    await asyncio.sleep(1.5)
    assert (await node.job("late")).status == "stopped"
    found = (await state(node, uuid)).configuration
    assert found is not None
    assert not found.suspended


# All that the Panel lists.


async def test_a_listing_adds_changes_and_removes(node: Workshop, there: double.Panel) -> None:
    every = [there.add() for _ in range(60)]
    ended = await node.end(await sync_all(node))
    assert ended.counters == jobs.Counters(processed=60, created=60)
    there.change(every[0], suspended=True)
    del there.servers[every[1]]
    new = there.add()
    ended = await node.end(await sync_all(node))
    assert ended.counters == jobs.Counters(processed=61, created=1, updated=1, deleted=1)
    assert (await state(node, every[1])).deleted
    assert await topics(node, new) == ["servers.added"]
    assert await topics(node, every[2]) == ["servers.added"]


async def test_a_broken_one_hides_no_other_and_stays_as_it_is(node: Workshop, there: double.Panel) -> None:
    broken, other = there.add(), there.add()
    await node.end(await sync_all(node))
    there.change(broken, build={"memory_limit": -5})
    there.change(other, suspended=True)
    job = await sync_all(node)
    ended = await node.end(job)
    assert (ended.status, ended.counters.errors, ended.counters.updated) == ("completed", 1, 1)
    assert any(broken in line for line in await node.lines(job))
    assert not (await state(node, broken)).deleted


async def test_a_mass_suspension_is_held_until_somebody_confirms_it(node: Workshop, there: double.Panel) -> None:
    every = [there.add() for _ in range(10)]
    await node.end(await sync_all(node))
    for uuid in every[:5]:
        there.change(uuid, suspended=True)
    job = await sync_all(node)
    held = await node.end(job)
    assert held.status == "paused"
    assert await topics(node, every[0]) == ["servers.added"]
    assert (await sync(node, every[0])).status == "completed"  # somebody means this one
    events = await node.events_of(job)
    found = next(one for one in events if isinstance(one, jobs.Held))
    assert "5 of 10" in found.reason
    again = await node.end(await sync_all(node))
    assert again.status == "paused"
    last = next(one for one in await node.events_of(again.queued.ticket.job) if isinstance(one, jobs.Held))  # type: ignore[union-attr]
    resume = jobs.Resume(running=True, confirm=last.plan)
    await node.process.store.execute(jobs, again.queued.ticket.job, resume)  # type: ignore[union-attr]

    async def done() -> bool:
        return all([(await state(node, uuid)).configuration.suspended for uuid in every[:5]])  # type: ignore[union-attr]

    await until(done)


async def test_what_was_said_of_a_server_meanwhile_is_newer_than_the_listing(
    node: Workshop, there: double.Panel
) -> None:
    uuid = there.add()
    await sync(node, uuid)
    loop, listing, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    old = there.servers[uuid].settings

    async def hold(request: web.Request) -> web.Response | None:
        if "page=" not in str(request.rel_url):
            return None
        loop.call_soon_threadsafe(listing.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        process = there.servers[uuid].process
        data = [{"uuid": uuid, "settings": old, "process_configuration": process}]
        return web.json_response({"data": data, "meta": {"current_page": 1, "last_page": 1, "total": 1}})

    there.trouble = hold
    job = await sync_all(node)
    await listing.wait()
    there.change(uuid, suspended=True)
    assert (await sync(node, uuid)).counters.updated == 1
    go_on.set()
    ended = await node.end(job)
    assert (ended.status, ended.counters.updated) == ("completed", 0)
    assert await topics(node, uuid) == ["servers.added", "servers.suspended"]


async def test_the_read_model_is_the_fold_of_the_log(node: Workshop, there: double.Panel) -> None:
    uuid = there.add()
    await sync(node, uuid)
    there.change(uuid, suspended=True, build={"swap": -1}, meta={"name": "Other"})
    await sync(node, uuid)
    row = await until(lambda: servers_read.get(node.process.db, "main", uuid))
    head = await node.process.store.head()

    async def caught_up() -> Any:
        found = await servers_read.get(node.process.db, "main", uuid)
        return found if found is not None and found.suspended else None

    row = await until(caught_up)
    assert row.configured() == (await state(node, uuid)).configuration
    assert row.position <= head
    assert isinstance(row.configured(), server_config.Configuration)
