"""What the notifier promises: everything, in order, signed, tried again, and nobody delays anybody else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from domain import integrations, webhooks
from infra.eventstore.store import Decided, Loaded
from services import doctor_webhooks
from services.notifying import figures, retention
from tests.doubles.receiver import Got, receiver
from tests.journeys.notifier_killed import SETTINGS, check, late, settled, subscribe, tell_and_kill
from tests.journeys.notifying import World, in_order, open_world, soon
from tests.journeys.system import System

SCRIPT = Path(__file__).parents[1] / "doubles" / "verify_webhooks.mjs"
#: A folder whose node_modules hold standardwebhooks.
PACKAGES = Path(os.environ.get("UNDRIFT_NODE_PACKAGES", str(Path(__file__).parents[2])))


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(database, tmp_path) as opened:
        yield opened


async def test_everything_arrives_once_in_order_and_signed(world: World) -> None:
    first, second = await world.subscribe("ok/a"), await world.subscribe("ok/b", "integrations.started")
    world.start()
    positions = await world.say(100, streams=5)
    await world.settled(first, 100)
    await world.settled(second, 50)
    got = world.receiver.got("ok/a")
    assert sorted(one.json()["data"]["position"] for one in got) == positions
    assert in_order(got)
    for one in got:
        Webhook(world.secrets[first]).verify(one.body, dict(one.headers))
    rows = await world.rows(first)
    assert [row["seq"] for row in rows] == list(range(1, 101))
    assert [row["position"] for row in rows] == positions
    assert {one.id for one in got} == {row["message"] for row in rows}
    assert {one.json()["type"] for one in world.receiver.got("ok/b")} == {"integrations.started"}


async def test_the_id_and_the_body_stay_the_same_over_all_attempts(world: World) -> None:
    id = await world.subscribe("fails-2/a")
    world.start()
    await world.say(20, streams=4)
    rows = await world.settled(id, 20)
    assert {(row["state"], row["attempts"]) for row in rows} == {("delivered", 3)}
    got = world.receiver.got("fails-2/a")
    assert len(got) == 60
    assert in_order(got)
    for row in rows:
        tries = [one for one in got if one.id == row["message"]]
        assert len({one.body for one in tries}) == 1
        assert [one.status for one in tries] == [500, 500, 200]
        for one in tries:
            Webhook(world.secrets[id]).verify(one.body, dict(one.headers))


async def test_the_next_of_a_stream_waits_until_the_one_before_is_given_up(database: str, tmp_path: Path) -> None:
    async with open_world(database, tmp_path, webhooks__give_up_s=1.5, webhooks__disable_after_s=60.0) as world:
        id = await world.subscribe("status-500/a")
        world.start()
        await world.say(3)
        rows = await world.settled(id, 3)
        assert [row["state"] for row in rows] == ["exhausted"] * 3
        assert {row["error"] for row in rows} == {"it answered 500"}
        assert [one.id for one in first_of_each(world.receiver.got())] == [row["message"] for row in rows]
        assert rows[0]["last_at"] <= rows[1]["first_at"]
        assert rows[1]["last_at"] <= rows[2]["first_at"]
        world.receiver.become("a", "ok")
        await again(world, id, 2)
        await world.settled(id, 3)
        assert [row["state"] for row in await world.rows(id)] == ["exhausted", "delivered", "exhausted"]
        assert (await world.process.db.fetchval("select count(*) from undrift.deliveries where asked")) == 0


async def test_more_than_fits_into_memory_behind_one_that_failed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.notifying.queue.WINDOW", 20)
    monkeypatch.setattr("services.notifying.courier._PAGE", 8)
    id = await world.subscribe("fails-1/a")
    await world.say(60, streams=3)
    world.start()
    await world.say(60, streams=3)
    rows = await world.settled(id, 120)
    got = world.receiver.got("fails-1/a")
    assert {row["state"] for row in rows} == {"delivered"}
    assert len({one.id for one in got}) == 120
    assert len(got) == 240
    assert in_order(got)


async def test_nobody_waits_for_those_who_are_evil(world: World) -> None:
    evil = ["slow-5", "dripping", "huge", "hugebody", "redirect-127.0.0.1", "silent", "close", "status-503"]
    ids = {path: await world.subscribe(f"{path}/x") for path in evil}
    ids["dead"] = await world.subscribe("dead", url="http://127.0.0.1:9/")
    good = await world.subscribe("ok/good")
    world.start()
    await world.say(200, streams=20)
    assert {row["state"] for row in await world.settled(good, 200)} == {"delivered"}
    for path in ("slow-5", "dripping", "huge", "redirect-127.0.0.1", "dead", "close"):
        found = await world.rows(ids[path])
        assert {row["state"] for row in found} == {"pending"}, path
        assert await soon(partial(failed, world, ids[path])), path
    assert (await world.settled(ids["hugebody"], 200))[0]["status"] == 200  # its status was good


async def failed(world: World, id: str) -> bool:
    return any(row["error"] for row in await world.rows(id))


async def test_gone_is_disabled_and_enabling_goes_on(world: World) -> None:
    id, other = await world.subscribe("status-410/a"), await world.subscribe("ok/b", "endpoint.disabled")
    world.start()
    await world.say(10, streams=2)
    rows = await world.settled(other, 1)
    assert rows[0]["name"] == "endpoint.disabled"
    assert world.receiver.got("ok/b")[0].json()["data"]["reason"] == "It answered 410 Gone"
    begun = len(world.receiver.got("status-410/a"))
    await asyncio.sleep(1)
    assert len(world.receiver.got("status-410/a")) == begun
    await world.say(10, streams=2)  # nobody is told of these
    world.receiver.become("a", "ok")
    await world.tell(id, webhooks.Enable())
    await world.settled(id, 10)
    await world.say(10, streams=2)
    rows = await world.settled(id, 20)
    assert {row["state"] for row in rows} == {"delivered"}
    assert [row["seq"] for row in rows] == list(range(1, 21))
    assert in_order([one for one in world.receiver.got("status-410/a") if one.status == 200])


async def test_an_endpoint_that_fails_for_long_is_disabled(database: str, tmp_path: Path) -> None:
    async with open_world(database, tmp_path, webhooks__disable_after_s=1.0) as world:
        id = await world.subscribe("status-500/a")
        world.start()
        await world.say(10, streams=10)

        async def disabled() -> bool:
            return (await world.store.load(webhooks, f"webhooks/main/{id}")).state.reason is not None

        assert await soon(disabled)
        assert await world.states(id) == {"pending": 10}
        begun = len(world.receiver.got())
        await asyncio.sleep(1)
        assert len(world.receiver.got()) == begun


async def test_retry_after_is_heeded_up_to_a_limit(database: str, tmp_path: Path) -> None:
    async with open_world(database, tmp_path, webhooks__retry_after_max_s=1.5) as world:
        id = await world.subscribe("busy-3600/a")
        world.start()
        await world.say(3)
        await world.settled(id, 3)
        got = world.receiver.got("busy-3600/a")
        assert [one.status for one in got] == [429, 200, 200, 200]
        assert got[1].at - got[0].at >= 1.4


async def test_both_secrets_sign_during_a_rotation(world: World) -> None:
    id = await world.subscribe("ok/a")
    world.start()
    old = world.secrets[id]
    new = await world.rotate(id, datetime.now(UTC) + timedelta(seconds=2))
    await world.say(1)
    both = (await world.received("ok/a", 1))[0]
    for secret in (old, new):
        Webhook(secret).verify(both.body, dict(both.headers))
    await asyncio.sleep(2)
    await world.say(1)
    one = (await world.received("ok/a", 2))[1]
    Webhook(new).verify(one.body, dict(one.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(one.body, dict(one.headers))


async def test_a_changed_address_counts_at_once_and_a_deleted_one_gets_nothing_more(world: World) -> None:
    id = await world.subscribe("status-500/a")
    world.start()
    await world.say(5)
    await world.received("status-500/a", 1)
    await world.tell(id, webhooks.Change(url=world.receiver.url("ok/b")))
    await world.settled(id, 5)
    assert len(world.receiver.got("ok/b")) == 5
    await world.tell(id, webhooks.Change(url=world.receiver.url("status-500/c")))
    await world.say(5)
    await world.received("status-500/c", 1)
    await world.tell(id, webhooks.Delete())
    await world.settled(id, 10)
    assert await world.states(id) == {"delivered": 5, "dropped": 5}
    assert await world.process.db.fetchval("select count(*) from undrift.endpoints") == 0


async def test_a_replay_gets_its_place_and_happens_once(world: World) -> None:
    first = await world.subscribe("ok/a")
    world.start()
    positions = await world.say(1200, streams=7)
    second = await world.subscribe("ok/b")
    names = ("integrations.*",)
    await world.tell(second, webhooks.Replay("rp-1", positions[0], positions[-1], names, 1200))
    await world.tell(second, webhooks.Test())
    rows = await world.settled(second, 1201)
    assert [row["seq"] for row in rows] == list(range(1, 1202))
    assert [row["position"] for row in rows if row["replay"] == "rp-1"] == positions
    assert [row["name"] for row in rows if row["replay"] is None] == ["webhooks.tested"]
    got = [one for one in world.receiver.got("ok/b") if one.json()["type"] != "webhooks.tested"]
    assert len(got) == 1200
    assert in_order(got)
    assert {one.json()["data"]["replay"] for one in got} == {"rp-1"}
    assert len(await world.rows(first)) == 1200
    assert await world.process.db.fetchval("select count(*) from undrift.replays") == 0


async def test_two_notifiers_do_nothing_twice_and_one_takes_over(world: World) -> None:
    id = await world.subscribe("ok/a")
    world.start()
    world.start()
    await world.say(200, streams=3)
    await world.settled(id, 200)
    await world.stop()
    await world.say(200, streams=3)
    world.start()
    rows = await world.settled(id, 400)
    assert [row["seq"] for row in rows] == list(range(1, 401))
    assert len(world.receiver.got("ok/a")) == 400
    assert in_order(world.receiver.got("ok/a"))


async def test_one_tenant_is_not_told_of_another(world: World) -> None:
    id = await world.subscribe("ok/a", "*")
    world.start()
    await world.store.append([Decided(integrations, "i-0", Loaded(None), [integrations.Started()])], tenant="other")
    await world.say(1, name="mine")
    rows = await world.settled(id, 1)
    assert [row["stream"] for row in rows if row["name"].startswith("integrations")] == ["integrations/main/mine-0"]


async def again(world: World, id: str, seq: int) -> None:
    """As the API does it."""
    await world.process.db.execute(
        "update undrift.deliveries set state = 'pending', asked = true, attempts = 0, due = clock_timestamp()"
        " where endpoint = $1 and seq = $2",
        id,
        seq,
    )


def first_of_each(got: Sequence[Got]) -> list[Got]:
    """The first attempt of each message."""
    return list({one.id: one for one in reversed(got)}.values())[::-1]


async def test_deaths_of_the_process_lose_nothing(tmp_path: Path) -> None:
    """A few of those of `make faults`."""
    system = System(tmp_path, SETTINGS).start()
    try:
        with receiver(tmp_path, brief=True) as sink:
            good, _ = subscribe(system, sink, 3)
            told = await tell_and_kill(system, 600, kills=3, seed=7, per_second=100)
            await settled(system, good, 600, 120)
            print(check(system, sink, good, told), late(sink, system, good, told))
    finally:
        system.stop()


async def test_the_doctor_finds_what_is_missing_nobodys_and_out_of_order(world: World) -> None:
    first, second = await world.subscribe("ok/a"), await world.subscribe("status-500/b")
    gone = await world.subscribe("status-500/c")
    world.start()
    await world.say(50, streams=3)
    await world.tell(gone, webhooks.Delete())
    await world.settled(gone, 50)
    await world.settled(first, 50)
    await world.stop()
    database, store = world.process.db, world.store
    assert await doctor_webhooks.problems(database, store) == []

    async def found(change: str) -> list[str]:
        """What it finds with that change, which is undone."""
        await database.execute(
            f"create schema kept; create table kept.rows as select * from undrift.deliveries; {change}"
        )
        problems = await doctor_webhooks.problems(database, store)
        await database.execute(
            "delete from undrift.deliveries; insert into undrift.deliveries select * from kept.rows;"
            " drop schema kept cascade"
        )
        return problems

    middle = f"endpoint = '{first}' and seq = 25"
    problems = await found(f"delete from undrift.deliveries where {middle}")
    assert any("has no row for integrations." in one for one in problems)
    assert f"the numbers of {first} have gaps" in problems
    assert await found(f"delete from undrift.deliveries where endpoint = '{first}' and seq < 25") == []
    (problem,) = await found(f"update undrift.deliveries set first_at = null, state = 'pending' where {middle}")
    assert "was sent before one of its stream that comes first" in problem
    stray = f"update undrift.deliveries set state = 'pending' where endpoint = '{gone}' and seq = 9"
    (problem,) = await found(stray)
    assert "waits for an endpoint that is no more" in problem
    assert await world.states(second) == {"pending": 50}


async def test_what_is_old_is_forgotten_and_the_numbers_stay_dense(world: World) -> None:
    id = await world.subscribe("ok/a")
    world.start()
    await world.say(30)
    await world.settled(id, 30)
    await world.process.db.execute(
        "update undrift.deliveries set last_at = last_at - interval '40 days' where seq <> 20 and endpoint = $1", id
    )
    assert await retention.forget(world.process.db, timedelta(days=30)) == 19
    assert await retention.forget(world.process.db, timedelta(days=30)) == 0
    assert [row["seq"] for row in await world.rows(id)] == list(range(20, 31))
    assert await doctor_webhooks.problems(world.process.db, world.store) == []
    await world.say(5)
    assert [row["seq"] for row in await world.settled(id, 16)] == list(range(20, 36))


async def test_figures_say_what_waits(world: World) -> None:
    await world.subscribe("ok/a")
    failing = await world.subscribe("status-500/b")
    world.start()
    await world.say(10)
    await world.received("status-500/b", 1)
    assert await soon(partial(counted, world, 10))
    found = (await figures.by_tenant(world.process.db))["main"]
    assert (found.pending, found.failing) == (10, 1)
    assert 0 < found.oldest_s < 60
    assert await world.states(failing) == {"pending": 10}


async def counted(world: World, count: int) -> bool:
    found = await figures.by_tenant(world.process.db)
    waits = found.get("main", figures.Figures())
    return waits.pending == count and waits.failing == 1 and await figures.lag(world.process.db) == 0


def test_the_package_for_node_verifies_what_was_sent(deliveries: list[tuple[str, Got]]) -> None:
    lines = "\n".join(json.dumps([secret, dict(one.headers), one.body.decode()]) for secret, one in deliveries)
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "standardwebhooks").exists():
        pytest.skip(f"needs node, and `npm install standardwebhooks` in {PACKAGES} (or UNDRIFT_NODE_PACKAGES)")
    done = subprocess.run([node, SCRIPT, PACKAGES], input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"accepted": len(deliveries), "refused": len(deliveries)}


@pytest.fixture
async def deliveries(world: World) -> list[tuple[str, Got]]:
    """What two endpoints got, one of them during a rotation, each with a secret that is good for it."""
    first, second = await world.subscribe("ok/a"), await world.subscribe("ok/b")
    world.start()
    new = await world.rotate(second, datetime.now(UTC) + timedelta(seconds=60))
    await world.say(20, streams=3)
    await world.settled(first, 20)
    await world.settled(second, 20)
    rotated = world.receiver.got("ok/b")
    return [
        *((world.secrets[first], one) for one in world.receiver.got("ok/a")),
        *((world.secrets[second], one) for one in rotated),
        *((new, one) for one in rotated),
    ]
