"""How often a key may ask, whichever gateway it asks and however it spells itself: two real gateways over one log."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.journeys.libraries import user
from tests.journeys.system import ADMIN, QUICK, Answer, System, until
from tests.journeys.test_health import halted
from tests.journeys.test_two_gateways import Beside, beside

#: As it is without any settings.
LIMITED = QUICK.replace("family3 = 1000000", "family3 = 100")
assert LIMITED != QUICK


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("limited"), settings=LIMITED)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def second(limited: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with beside(limited, tmp_path_factory.mktemp("beside") / "gateway.log") as url:
        yield Beside(limited.base, port=limited.port, url=url)


class Client:
    """One connection, kept."""

    def __init__(self, system: System, token: str | None) -> None:
        address = urlsplit(system.ready["url"])
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self._sent = {} if token is None else {"Authorization": f"Bearer {token}"}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *about: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str | None = None) -> Answer:
        self._connection.request(method, path, body, {**self._sent, **(headers or {})})
        answer = self._connection.getresponse()
        found = {name.lower(): text for name, text in answer.getheaders()}
        return Answer(answer.status, found, answer.read())


SPELLINGS: tuple[str, ...] = (
    "/api/v1/health",
    "/api/v1/health/",
    "//api/v1/health",
    "/api/v1//health",
    "/api/v1/%68ealth",
)
SPELLINGS += ("/api/v1/health?x=1", "/api/v1/metrics", "/api/v1/metrics/")


def disguise(pick: random.Random) -> dict[str, str]:
    address = ".".join(str(pick.randrange(1, 255)) for _ in range(4))
    return {
        pick.choice(("X-Forwarded-For", "X-Real-IP", "X-Forwarded-Host", "True-Client-IP")): address,
        "Forwarded": f"for={address}",
        "User-Agent": str(pick.random()),
    }


def storm(clients: list[Client], requests: int, seed: int) -> list[Answer]:
    """From one thread, over all connections in turn."""
    pick = random.Random(seed)
    found = []
    for number in range(requests):
        client = clients[number % len(clients)]
        found.append(client.ask(pick.choice(("GET", "HEAD")), pick.choice(SPELLINGS), disguise(pick)))
    return found


def test_a_thousand_requests_to_two_gateways(limited: System, second: System) -> None:
    token = limited.key("storm", "jobs:read")
    begun = time.monotonic()

    def one(seed: int) -> list[Answer]:
        with Client(limited, token) as here, Client(second, token) as there:
            return storm([here, there], 125, seed)

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for found in pool.map(one, range(8)) for answer in found]
    took_s = time.monotonic() - begun
    accepted = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} == {200, 429}
    assert len(answers) == 1000
    # What came after the minute is another minute's.
    assert 100 <= len(accepted) <= 102 * (1 + took_s // 60)
    for answer in answers:
        assert answer.headers["x-ratelimit-limit"] == "100"
        assert 0 <= int(answer.headers["x-ratelimit-remaining"]) < 100
        assert 0 <= int(answer.headers["x-ratelimit-reset"]) <= 61
    refused = [answer for answer in answers if answer.status == 429]
    assert all(1 <= int(answer.headers["retry-after"]) <= 61 for answer in refused)
    said = json.loads(next(answer.body for answer in refused if answer.body))
    assert said.keys() >= {"errorCode", "message", "details", "timestamp"}
    assert said["errorCode"] == "RATE_LIMIT_EXCEEDED"


def test_another_key_has_its_own_and_other_families_are_not_counted(limited: System, second: System) -> None:
    one, other = limited.key("own-1", "jobs", "feeds"), limited.key("own-2", "jobs")
    for system in (limited, second) * 55:
        system.get("/api/v1/health", token=one)
    assert limited.get("/api/v1/health", token=one).status == 429
    for path in ("/api/sync/jobs?limit=1", "/api/v1/feeds/events?limit=1", "/api/data/servers"):
        answer = limited.get(path, token=one)
        assert answer.status in (200, 403)
        assert "x-ratelimit-limit" not in answer.headers
    answer = second.get("/api/v1/health", token=other)
    assert (answer.status, answer.headers["x-ratelimit-remaining"]) == (200, "99")


def test_what_devices_send_is_never_counted(limited: System, second: System) -> None:
    """They share the prefix, and a large upload is many chunks."""
    laptop = user(limited).device("laptop")
    for system in (limited, second) * 75:
        answer = system.get("/api/v1/sync/changes?limit=1", token=laptop.token)
        assert (answer.status, "x-ratelimit-limit" in answer.headers) == (200, False)


def test_every_answer_says_what_is_left(limited: System, second: System) -> None:
    token = limited.key("every", "merges:read")  # may do nothing of it
    asked: list[tuple[str, str, dict[str, str], str | None, int]] = [
        ("GET", "/api/v1/health", {}, None, 200),
        ("GET", "/api/v1/metrics", {}, None, 403),
        ("POST", "/api/v1/sync/files", {"Content-Type": "application/json"}, "{", 403),
        ("DELETE", "/api/v1/health", {}, None, 405),
        ("GET", "/api/v1/nothing", {}, None, 404),
        ("GET", "/api/v1/backup/nothing", {}, None, 404),
        ("GET", "/api/v1/health?x=%ff", {}, None, 400),
        ("HEAD", "/api/v1/health", {}, None, 200),
    ]
    left = []
    with Client(limited, token) as client:
        for method, path, headers, body, status in asked:
            answer = client.ask(method, path, headers, body)
            assert answer.status == status, (method, path, answer)
            left.append(int(answer.headers["x-ratelimit-remaining"]))
    assert left == [*range(99, 99 - len(asked), -1)]
    assert second.get("/api/v1/health", token=token).headers["x-ratelimit-remaining"] == str(left[-1] - 1)


@pytest.mark.parametrize(
    "broken", [b"GET /api/v1/health HTTP/1.1\r\nX\r\n\r\n", b"GET /api/v1/health HTTP/1.1\r\n\r\n"]
)
def test_what_cannot_be_read_is_told_as_well(limited: System, broken: bytes) -> None:
    address = urlsplit(limited.ready["url"])
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(broken)
        connection.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: connection.recv(65536), b"")).lower()
    assert said.startswith(b"http/1.1 400 ")
    assert b"x-ratelimit-limit: 100" in said
    assert b"x-ratelimit-remaining: " in said


def test_without_postgres_it_is_counted_all_the_same(limited: System) -> None:
    token = limited.key("halted", "jobs:read")
    with Client(limited, token) as client:
        assert client.ask("GET", "/api/v1/health").status == 200
        with halted(limited):
            answers = [client.ask("GET", "/api/v1/nothing") for _ in range(5)]
    assert {answer.status for answer in answers} == {404}
    assert all("x-ratelimit-remaining" in answer.headers for answer in answers)
    assert until(lambda: limited.get("/api/v1/health", token=ADMIN).status == 200)


def test_what_is_counted_names_nobody(limited: System) -> None:
    limited.get("/api/v1/health", token=ADMIN)
    limited.get("/api/v1/health")
    rows: list[tuple[Any, ...]] = limited.sql("select caller from undrift.allowances")
    assert rows
    assert all(len(name) == 32 and int(name, 16) >= 0 for (name,) in rows)
