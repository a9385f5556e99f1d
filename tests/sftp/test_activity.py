"""What is told to the Panel: all of it, in few words, and once more at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from infra.config import Panel as Settings
from infra.panel import Panel
from services.sftp import activity
from services.sftp.activity import Reporter
from tests.doubles import panel as double
from tests.sftp.someone import someone


@pytest.fixture
def panel() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


def client(panel: double.Panel) -> Panel:
    return Panel(Settings(url=panel.url, token_id=double.TOKEN_ID, token=double.TOKEN, budget_s=0.2))


def told(panel: double.Panel) -> list[Any]:
    return [file for one in panel.activities for file in one["metadata"]["files"]]


async def end(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_many_files_are_few_activities(panel: double.Panel, tmp_path: Path) -> None:
    ann, bob = someone(tmp_path).session, someone(tmp_path).session
    async with client(panel) as asked:
        reporter = Reporter(asked)
        running = asyncio.create_task(reporter.run())
        for number in range(450):
            reporter(ann if number % 2 else bob, "server:sftp.write", f"/{number}")
        reporter(ann, "server:sftp.rename", ("/a", "/b"))
        await asyncio.sleep(0)
        await end(running)
    expected: list[Any] = [f"/{number}" for number in range(450)]
    assert sorted(map(str, told(panel))) == sorted(map(str, [*expected, {"from": "/a", "to": "/b"}]))
    assert len(panel.activities) <= 2 * 8 + 1  # of 100 files each, perhaps of two minutes
    for one in panel.activities:
        if one["event"] == "server:sftp.write":
            parities = {int(file[1:]) % 2 for file in one["metadata"]["files"]}
            assert parities == {1 if one["server"] == ann.server else 0}


async def test_a_panel_that_is_away_is_told_later(
    panel: double.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_PAUSE_S", 0.01)
    monkeypatch.setattr(activity, "_RETRY_S", 0.01)
    ann = someone(tmp_path).session
    panel.trouble = lambda _: web.Response(status=503)
    async with client(panel) as asked:
        reporter = Reporter(asked)
        running = asyncio.create_task(reporter.run())
        reporter(ann, "server:sftp.delete", "/a")
        while len(panel.seen) < 3:
            await asyncio.sleep(0.01)
        reporter(ann, "server:sftp.delete", "/b")
        panel.trouble = None
        while told(panel) != ["/a", "/b"]:
            await asyncio.sleep(0.01)
        await end(running)


async def test_what_the_panel_refuses_holds_up_nothing(
    panel: double.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_PAUSE_S", 0.01)
    monkeypatch.setattr(activity, "_MOST", 2)
    ann = someone(tmp_path).session
    panel.trouble = lambda _: web.Response(status=422)
    async with client(panel) as asked:
        reporter = Reporter(asked)
        running = asyncio.create_task(reporter.run())
        reporter(ann, "server:sftp.delete", "/a")
        while not panel.seen:
            await asyncio.sleep(0.01)
        panel.trouble = None
        await asyncio.sleep(0.05)
        for name in ("/b", "/c", "/d"):  # the first of three is forgotten
            reporter(ann, "server:sftp.delete", name)
        while told(panel) != ["/c", "/d"]:
            await asyncio.sleep(0.01)
        await end(running)
