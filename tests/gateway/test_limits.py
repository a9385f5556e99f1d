"""How often somebody may ask: one count for all gateways, in Postgres; one of each gateway's own without it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from litestar import Litestar
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from infra import config, configfile
from infra.db import Database
from services.gateway import dialects, limits
from services.gateway.auth import Authenticator, Principal
from services.gateway.cors import Cors
from services.gateway.dialects import EONACAT, JOBS, PINAKES, WINGS
from services.gateway.edge import Edge
from services.gateway.limits_shared import Shared

MASTER = b"m" * 32
PATIENCE_S = 30.0


@pytest.fixture
async def databases(database: str) -> AsyncIterator[Callable[[], Database]]:
    opened: list[Database] = []

    def make(dsn: str = database) -> Database:
        opened.append(Database(dsn, 2))
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


def limiter(database: Database, limit: int) -> limits.Limiter:
    return limits.Limiter(limit, shared=Shared(database, MASTER, PATIENCE_S), name="tests")


async def accepted(asked: list[limits.Limiter], many: int, caller: str = "somebody") -> int:
    said = await asyncio.gather(*(asked[n % len(asked)].take(caller) for n in range(many)))
    return sum(not one.exceeded for one in said)


@pytest.mark.parametrize("gateways", [1, 2, 5])
async def test_gateways_count_together(databases: Callable[[], Database], gateways: int) -> None:
    several = [limiter(databases(), 100) for _ in range(gateways)]
    assert await accepted(several, 1000) == 100
    assert await accepted(several, 1000) == 0
    assert await accepted(several, 50, "another") == 50


async def test_one_after_the_other_is_told_exactly_what_is_left(databases: Callable[[], Database]) -> None:
    one, two = limiter(databases(), 5), limiter(databases(), 5)
    said = [await (one, two)[n % 2].take("k") for n in range(8)]
    assert [each.remaining for each in said] == [4, 3, 2, 1, 0, 0, 0, 0]
    assert [each.exceeded for each in said] == [False] * 5 + [True] * 3
    assert all(1 <= each.reset_s <= 61 and each.limit == 5 for each in said)


async def test_large_limits_are_drawn_on_in_portions(databases: Callable[[], Database]) -> None:
    database = databases()
    several = [limiter(database, 2000), limiter(databases(), 2000)]
    found = 0
    for _ in range(500):
        found += await accepted(several, 8)
    # What one gateway has in store, another cannot give out.
    assert 2000 - 20 <= found <= 2000
    asked = await database.fetchval("select sum(cardinality(at)) from undrift.allowances")
    assert asked < 2000 / 10


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_what_left_the_minute_counts_no_more(databases: Callable[[], Database]) -> None:
    database, clock = databases(), Clock()
    one = limits.Limiter(10, clock, Shared(database, MASTER, PATIENCE_S))
    assert await accepted([one], 20) == 10
    earlier = "update undrift.allowances set at = (select array_agg(m - $1 * 1000) from unnest(at) m)"
    await database.execute(earlier, 30)
    fresh = limits.Limiter(10, clock, Shared(database, MASTER, PATIENCE_S))
    said = await fresh.take("somebody")
    assert said.exceeded
    assert 1 <= said.reset_s <= 31
    await database.execute(earlier, 31)
    assert (await fresh.take("somebody")).exceeded  # as it was told, without asking again
    clock.now += said.reset_s
    assert await accepted([fresh], 20) == 10


async def test_a_clock_that_was_set_back_locks_nobody_out(databases: Callable[[], Database]) -> None:
    database = databases()
    assert await accepted([limiter(database, 10)], 10) == 10
    await database.execute("update undrift.allowances set at = (select array_agg(m + 3_600_000) from unnest(at) m)")
    assert await accepted([limiter(database, 10)], 20) == 10


async def test_families_and_callers_do_not_meet_and_are_kept_as_hashes(databases: Callable[[], Database]) -> None:
    database = databases()
    counted = limits.Limits(config.Limits(family1=3, family3=3), shared=Shared(database, MASTER, PATIENCE_S))
    for family in (1, 3):
        for caller in ("address 10.1.2.3", "main/key:k0"):
            said = [await counted.take(family, caller) for _ in range(4)]
            assert [one is not None and one.exceeded for one in said] == [False, False, False, True]
    assert await counted.take(2, "main/key:k0") is None
    names = [row["caller"] for row in await database.fetch("select caller from undrift.allowances")]
    assert len(names) == 4
    assert not any("10.1" in name or "k0" in name for name in names)


async def test_without_postgres_each_gateway_counts_for_itself(databases: Callable[[], Database]) -> None:
    database = databases()
    away = Database("postgresql://nobody@127.0.0.1:1/none", 1)
    assert await accepted([limits.Limiter(50, shared=Shared(away, MASTER, PATIENCE_S))], 80) == 50
    # What was let through before counts on when Postgres goes.
    one = limiter(database, 50)
    assert await accepted([one], 30) == 30
    one._shared = Shared(away, MASTER, PATIENCE_S)
    assert await accepted([one], 80) == 20


async def test_a_postgres_that_hangs_is_not_waited_for_long(databases: Callable[[], Database]) -> None:
    database = databases()
    one = limits.Limiter(10, shared=Shared(database, MASTER, 0.2))
    assert not (await one.take("k")).exceeded
    async with databases().transaction() as holding:
        await holding.execute("lock table undrift.allowances in access exclusive mode")
        assert await accepted([one], 20, "k") == 9
    assert (await one.take("k")).exceeded


async def test_idle_callers_are_forgotten(databases: Callable[[], Database]) -> None:
    database = databases()
    shared = Shared(database, MASTER, PATIENCE_S)
    await limits.Limiter(10, shared=shared).take("idle")
    await shared.sweep(60)
    assert await database.fetchval("select count(*) from undrift.allowances") == 1
    await shared.sweep(0)
    assert await database.fetchval("select count(*) from undrift.allowances") == 0


# Whom a request is counted for.


def scope(client: str, forwarded: str | None = None, more: dict[str, str] | None = None) -> dict[str, Any]:
    sent = {} if forwarded is None else {"x-forwarded-for": forwarded}
    return {
        "client": (client, 50_000),
        "headers": [(name.encode(), text.encode()) for name, text in {**sent, **(more or {})}.items()],
    }


PROXIED = limits.Limits(config.Limits(trusted_proxies=["10.0.0.0/8", "fd00::/8", "192.0.2.7"]))


@pytest.mark.parametrize(
    ("client", "forwarded", "counted"),
    [
        ("203.0.113.5", None, "203.0.113.5"),
        ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # nobody we know said so
        ("10.1.1.1", None, "10.1.1.1"),
        ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),  # what the client itself wrote before
        ("10.1.1.1", "1.2.3.4, 198.51.100.1, 10.2.2.2,192.0.2.7", "198.51.100.1"),
        ("10.1.1.1", "10.3.3.3", "10.3.3.3"),
        ("10.1.1.1", "x, 198.51.100.1, unknown", "10.1.1.1"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", None, "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:9:9::7", "2001:db8:9:9::/64"),
        ("::1", None, "::1"),
        ("::ffff:203.0.113.5", None, "203.0.113.5"),
        ("fe80::1%eth0", None, "fe80::/64"),
    ],
)
def test_the_address_to_count(client: str, forwarded: str | None, counted: str) -> None:
    assert PROXIED.address(scope(client, forwarded)) == f"address {counted}"
    assert limits.Limits(config.Limits()).address(scope("203.0.113.5", forwarded)) == "address 203.0.113.5"


def test_other_headers_mean_nothing() -> None:
    said = {"forwarded": "for=1.2.3.4", "x-real-ip": "1.2.3.4", "cf-connecting-ip": "1.2.3.4"}
    assert PROXIED.address(scope("10.1.1.1", None, said)) == "address 10.1.1.1"


def test_proxies_are_addresses_or_networks() -> None:
    wrong = configfile.load(environ={"UNDRIFT_LIMITS_TRUSTED_PROXIES": "10.0.0.0/8,proxy.example"})
    with pytest.raises(config.InvalidSetting, match=r"trusted_proxies.*proxy\.example"):
        configfile.check_proxies(wrong)
    found = configfile.load(environ={"UNDRIFT_LIMITS_TRUSTED_PROXIES": "10.0.0.0/8,::1"})
    configfile.check_proxies(found)
    assert found.limits.trusted_proxies == ["10.0.0.0/8", "::1"]


# Over HTTP.


async def application(counted: limits.Limits) -> Edge:
    async def look_up(mark: str) -> Principal | None:
        return None

    cors = Cors(config.Gateway(cors_origins=["https://app.example.com"]))
    admission = Authenticator(look_up, cors, counted, open_loopback=True)

    def served(path: str, dialect: dialects.Dialect) -> Any:
        @asgi(path, copy_scope=False, opt={"dialect": dialect})
        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            await admission.admit(scope, dialect)
            await dialects.Reply(200, b"{}")(scope, receive, send)

        return handler

    routes = [
        served("/api/v1/health", EONACAT),
        served("/api/sync/jobs", JOBS),
        served("/api/v1/sync/upload", PINAKES),
        served("/api/servers/x/sync", WINGS),
    ]
    app = Litestar(routes, exception_handlers={Exception: dialects.handle}, openapi_config=None, logging_config=None)
    return Edge(app, cors, admission.meter, widely=counted.widely)


async def asked(url: str, method: str = "GET", **sent: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=sent) as answer:
        await answer.read()
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}


def disguised(pick: random.Random) -> dict[str, str]:
    address = ".".join(str(pick.randrange(256)) for _ in range(4))
    name = pick.choice(("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "True-Client-IP"))
    return {name: f"for={address}" if name == "Forwarded" else address}


SPELLINGS = ("/api/v1/health", "/api/v1/health/", "//api/v1/health", "/api//v1/health", "/api/v1/%68ealth")


async def test_no_spelling_and_no_header_gets_more(serve: Any, databases: Callable[[], Database]) -> None:
    """Two gateways, one caller without a credential: 401 while it is counted, then 429."""
    pick = random.Random(0)
    counted = [limits.Limits(config.Limits(), shared=Shared(databases(), MASTER, PATIENCE_S)) for _ in range(2)]
    urls = [await serve(await application(one)) for one in counted]
    found = []
    for number in range(160):
        path, method = pick.choice(SPELLINGS), pick.choice(("GET", "HEAD"))
        found.append(await asked(urls[number % 2] + path, method, **disguised(pick)))
    assert [status for status, _ in found] == [401] * 100 + [429] * 60
    assert [int(sent["x-ratelimit-remaining"]) for _, sent in found] == [*range(99, -1, -1), *[0] * 60]
    for status, sent in found:
        assert sent["x-ratelimit-limit"] == "100"
        assert 1 <= int(sent["x-ratelimit-reset"]) <= 61
        assert ("retry-after" in sent) == (status == 429)


async def test_unknown_paths_and_methods_are_counted_and_answered(serve: Any) -> None:
    url = await serve(await application(limits.Limits(config.Limits(family3=5))))
    left = []
    for method, path, status in (
        ("GET", "/api/v1/nothing", 404),
        ("DELETE", "/api/v1/backup/versions", 404),
        ("GET", "/api/v1/%00", 400),
        ("OPTIONS", "/api/v1/nothing", 404),
        ("GET", "/API/V1/health", 404),
    ):
        found, sent = await asked(url + path, method)
        assert found == status, path
        left.append(sent.get("x-ratelimit-remaining"))
    assert left == ["4", "3", "2", "1", None]


async def test_what_shares_the_prefix_is_not_counted(serve: Any) -> None:
    url = await serve(await application(limits.Limits(config.Limits(family3=2))))
    for path in ("/api/v1/sync/upload", "/api/servers/x/sync", "/api/sync/jobs", "/api/v1/sync/changes") * 3:
        status, sent = await asked(url + path)
        assert (status == 429, "x-ratelimit-limit" in sent) == (False, False), path
    assert (await asked(f"{url}/api/v1/health"))[1]["x-ratelimit-remaining"] == "1"


@pytest.mark.parametrize(
    ("family", "path", "status"),
    [(2, "/api/sync/jobs", 200), (4, "/api/v1/sync/upload", 401), (5, "/api/servers/x/sync", 401)],
)
async def test_other_families_have_limits_of_their_own(serve: Any, family: int, path: str, status: int) -> None:
    settings = msgspec.convert({f"family{family}": 3}, config.Limits)
    url = await serve(await application(limits.Limits(settings)))
    found = [await asked(url + path) for _ in range(4)]
    assert [each for each, _ in found] == [status] * 3 + [429]
    assert [sent["x-ratelimit-remaining"] for _, sent in found] == ["2", "1", "0", "0"]
    assert "retry-after" in found[-1][1]
    assert (await asked(f"{url}/api/v1/health"))[1]["x-ratelimit-limit"] == "100"


async def test_no_limit_no_headers(serve: Any) -> None:
    url = await serve(await application(limits.Limits(config.Limits(family3=0))))
    for _ in range(3):
        status, sent = await asked(f"{url}/api/v1/health")
        assert (status, "x-ratelimit-limit" in sent) == (401, False)
