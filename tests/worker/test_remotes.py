"""The shared quota of a remote: taken one by one across workers, learned from answers in any order, kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.db import Database
from infra.eventstore.migrate import migrate
from services.worker.remotes import LONGEST_S, Quota, Remotes

MASTER = b"m" * 32
REMOTE = "digest of https://plane.example and a key"


@pytest.fixture
async def databases(database: str) -> AsyncIterator[list[Database]]:
    """Those of three workers."""
    await migrate(database)
    opened = [Database(database, 4) for _ in range(3)]
    yield opened
    for one in opened:
        await one.close()


@pytest.fixture
def workers(databases: list[Database]) -> list[Remotes]:
    return [Remotes(one, MASTER) for one in databases]


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_an_unknown_remote_may_be_asked(workers: list[Remotes]) -> None:
    assert [await workers[0].permit(REMOTE) for _ in range(5)] == [0.0] * 5


async def test_a_remote_that_says_nothing_of_limits_has_none(workers: list[Remotes]) -> None:
    for _ in range(5):
        assert await workers[0].permit(REMOTE) == 0
        await workers[0].learn(REMOTE, None, None, None)
    assert [await workers[1].permit(REMOTE) for _ in range(5)] == [0.0] * 5


async def test_what_is_left_is_given_once_to_all_workers_together(workers: list[Remotes]) -> None:
    await workers[0].learn(REMOTE, 7, soon(600), None)
    waits = await asyncio.gather(*(one.permit(REMOTE) for _ in range(10) for one in workers))
    assert sorted(waits)[:7] == [0.0] * 7
    assert all(0 < wait <= 600 for wait in sorted(waits)[7:])
    assert len(waits) == 30


async def test_a_restart_forgets_nothing(workers: list[Remotes], database: str) -> None:
    await workers[0].learn(REMOTE, 1, soon(600), None)
    assert await workers[0].permit(REMOTE) == 0
    reopened = Database(database, 1)
    assert await Remotes(reopened, MASTER).permit(REMOTE) > 500
    await reopened.close()


async def test_a_window_that_has_passed_limits_nothing(workers: list[Remotes]) -> None:
    await workers[0].learn(REMOTE, 0, soon(-1), None)
    assert [await one.permit(REMOTE) for one in workers] == [0.0] * 3


async def test_whoever_is_told_to_come_back_later_does(workers: list[Remotes]) -> None:
    await workers[0].learn(REMOTE, None, None, 60.0)
    first = await workers[1].permit(REMOTE)
    assert 50 < first <= 60
    await workers[2].learn(REMOTE, None, None, 5.0)  # an answer of before
    assert 50 < await workers[2].permit(REMOTE) <= first
    await workers[0].learn(REMOTE, 9, soon(600), None)
    assert 50 < await workers[0].permit(REMOTE) <= first
    assert (await workers[0].quotas("main")) == {}


async def test_what_is_on_its_way_counts_before_it_is_answered(workers: list[Remotes]) -> None:
    """Four requests; the remote has counted only the first when it answers it."""
    for worker in (*workers, workers[0]):
        assert await worker.permit(REMOTE) == 0
    await workers[0].learn(REMOTE, 4, soon(600), None)
    assert await workers[0].permit(REMOTE) == 0
    assert await workers[0].permit(REMOTE) > 0


async def test_an_answer_that_comes_late_raises_nothing(workers: list[Remotes]) -> None:
    reset = soon(600)
    for _ in range(2):
        await workers[0].permit(REMOTE)
    await workers[0].learn(REMOTE, 1, reset, None, integration="i")  # of the second request
    await workers[0].learn(REMOTE, 2, reset, None, integration="i")  # of the first
    assert (await workers[0].quotas("main"))["i"].remaining == 0
    await workers[0].learn(REMOTE, 60, reset + timedelta(seconds=60), None, integration="i")
    assert (await workers[0].quotas("main"))["i"].remaining == 60


@pytest.mark.parametrize("said", [float("inf"), 1e300, float("nan"), -5.0])
async def test_nonsense_holds_nobody_for_ever(workers: list[Remotes], said: float) -> None:
    await workers[0].learn(REMOTE, -(10**30), datetime(9999, 1, 1, tzinfo=UTC), said)
    assert 0 < await workers[0].permit(REMOTE) <= LONGEST_S
    await workers[0].learn("other", 10**30, soon(1), None)
    assert await workers[0].permit("other") == 0


async def test_remotes_do_not_know_each_other(workers: list[Remotes]) -> None:
    await workers[0].learn(REMOTE, 0, soon(600), None)
    assert await workers[0].permit(REMOTE) > 0
    assert await workers[0].permit("another key") == 0


async def test_what_is_kept_does_not_tell_the_remote(workers: list[Remotes], databases: list[Database]) -> None:
    reset = soon(600).replace(microsecond=0)
    await workers[0].learn("https://host key-of-somebody", 3, reset, None, tenant="second", integration="i")
    assert await workers[1].quotas("second") == {"i": Quota(3, reset, None)}
    assert await workers[1].quotas("main") == {}
    text = str(await databases[0].fetch("select r::text, u::text from undrift.remotes r, undrift.remote_uses u"))
    assert "host" not in text
    assert "key-of-somebody" not in text
    other = Remotes(databases[0], b"n" * 32)
    await other.permit("https://host key-of-somebody")
    assert len(await databases[0].fetch("select name from undrift.remotes")) == 2
