"""The Panel's interface as a node asks it, against a Panel over a real socket."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import web

from domain import errors
from domain.plans import servers
from infra import config
from infra.panel import Activity, Panel, Refused
from tests.doubles import panel as double


@pytest.fixture
def there() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


def settings(there: double.Panel, **changed: Any) -> config.Panel:
    made: dict[str, Any] = {"url": there.url, "token_id": double.TOKEN_ID, "token": double.TOKEN, "budget_s": 5.0}
    return config.Panel(**{**made, **changed})


@pytest.fixture
async def panel(there: double.Panel) -> AsyncIterator[Panel]:
    async with Panel(settings(there)) as one:
        yield one


async def test_a_server_is_asked_for_as_wings_does(there: double.Panel, panel: Panel) -> None:
    uuid = there.add(environment={})
    found = servers.server(await panel.server(uuid), uuid)
    assert (found.uuid, found.environment) == (uuid, {})
    [seen] = there.seen
    assert (seen.method, seen.path) == ("GET", f"/api/remote/servers/{uuid}")
    assert seen.headers["Authorization"] == f"Bearer {double.TOKEN_ID}.{double.TOKEN}"
    assert seen.headers["Accept"] == "application/vnd.pterodactyl.v1+json"
    assert seen.headers["User-Agent"].endswith(f"(id:{double.TOKEN_ID})")
    assert seen.headers["User-Agent"].startswith("Pterodactyl Wings/v")


async def test_one_that_the_panel_does_not_know(panel: Panel) -> None:
    with pytest.raises(errors.NotFound):
        await panel.server("11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d")


async def test_a_wrong_token_is_refused_and_not_tried_again(there: double.Panel) -> None:
    async with Panel(settings(there, token="x" * 64)) as one:
        with pytest.raises(Refused, match="403: AccessDenied") as raised:
            await one.server(there.add())
    assert raised.value.status == 403
    assert len(there.seen) == 1


async def test_what_may_pass_is_tried_again(there: double.Panel, panel: Panel) -> None:
    uuid, count = there.add(), itertools.count()
    there.trouble = lambda _: web.Response(status=502, text="bad gateway") if next(count) < 2 else None
    assert servers.server(await panel.server(uuid), uuid).uuid == uuid
    assert len(there.seen) == 3


async def test_nothing_is_sent_once_the_budget_is_used_up(there: double.Panel) -> None:
    uuid = there.add()
    there.trouble = lambda _: web.Response(status=500)
    async with Panel(settings(there, budget_s=1.5)) as one:
        with pytest.raises(errors.RemoteUnavailable, match="500"):
            await one.server(uuid)
        asked = len(there.seen)
        assert asked >= 2
        await asyncio.sleep(1.0)
    assert len(there.seen) == asked


async def test_one_that_does_not_answer_is_given_up(there: double.Panel, panel: Panel) -> None:
    async def silence(_: web.Request) -> None:
        await asyncio.sleep(30)

    there.trouble = silence
    with pytest.raises(errors.RemoteUnavailable, match="in time"):
        await panel.server(there.add(), within_s=0.3)


async def test_nobody_there(there: double.Panel) -> None:
    async with Panel(settings(there, url="http://127.0.0.1:1", budget_s=0.2)) as one:
        with pytest.raises(errors.RemoteUnavailable):
            await one.server(there.add())


async def test_one_that_sends_us_elsewhere_is_not_followed(there: double.Panel, panel: Panel) -> None:
    with double.Panel() as other:
        uuid = other.add()
        there.trouble = lambda request: web.Response(status=302, headers={"Location": other.url + str(request.rel_url)})
        with pytest.raises(errors.RemoteRefused, match="elsewhere"):
            await panel.server(uuid)
        assert not other.seen


async def test_an_answer_without_end_is_cut_off(there: double.Panel, panel: Panel) -> None:
    there.trouble = lambda _: web.Response(body=b"x" * (17 * 1024 * 1024))
    with pytest.raises(errors.RemoteRefused, match="16 MiB"):
        await panel.server(there.add())


async def test_garbage_is_refused(there: double.Panel, panel: Panel) -> None:
    uuid = there.add()
    there.trouble = lambda _: web.Response(text="<html>")
    with pytest.raises(errors.RemoteRefused, match="of no use"):
        servers.server(await panel.server(uuid), uuid)
    with pytest.raises(errors.RemoteRefused, match="of no use"):
        _ = [page async for page in panel.servers()]


async def test_all_servers_on_many_pages_and_a_broken_one_hides_no_other(there: double.Panel, panel: Panel) -> None:
    every = {there.add() for _ in range(120)}
    broken = sorted(every)[60]
    there.change(broken, build={"memory_limit": "lots"})
    listed = [one async for page in panel.servers() for one in page]
    assert {one.uuid for one in listed} == every
    assert there.seen[0].path.endswith("page=0&per_page=50")
    good = set()
    for one in listed:
        try:
            good.add(servers.listed(one).uuid)
        except errors.RemoteRefused:
            assert one.uuid == broken
    assert good == every - {broken}


async def test_no_server_at_all(panel: Panel) -> None:
    assert [one async for page in panel.servers() for one in page] == []


async def test_who_may_use_sftp(there: double.Panel, panel: Panel) -> None:
    uuid = there.add()
    username = there.account(uuid, "ann", "secret", "file.read")
    found = await panel.login("password", username, "secret", "10.1.2.3")
    assert (found.server, found.permissions) == (uuid, ["file.read"])
    assert there.seen[-1].body["ip"] == "10.1.2.3"
    with pytest.raises(Refused) as raised:
        await panel.login("password", username, "wrong", "10.1.2.3")
    assert raised.value.status == 403
    there.change(uuid, suspended=True)
    with pytest.raises(Refused) as raised:
        await panel.login("password", username, "secret", "10.1.2.3")
    assert raised.value.status == 409


async def test_what_is_reported(there: double.Panel, panel: Panel) -> None:
    uuid = there.add()
    await panel.reset()
    await panel.report([Activity(uuid, "server:sftp.write", {"files": ["a"]}, "10.1.2.3", "2026-01-01T00:00:00Z")])
    assert there.resets == 1
    assert json.dumps(there.activities[0]).count(uuid) == 1
