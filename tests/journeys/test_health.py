"""Health as the EonaCat document has it: measured when asked, and true."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.journeys.system import ADMIN, QUICK, System, until

SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def health(system: System) -> Any:
    return system.ok("GET", "/api/v1/health", token=ADMIN)


def test_the_document_s_answer(system: System) -> None:
    assert until(lambda: health(system)["status"] == "healthy")
    found = health(system)
    assert [*found] == ["status", "timestamp", "details"]
    assert found["details"] == {"database": "connected", "storage": "available", "memory": "normal"}
    assert SECONDS.fullmatch(found["timestamp"])
    age = datetime.now(UTC) - datetime.fromisoformat(found["timestamp"])
    assert timedelta(0) <= age < timedelta(seconds=60)


def test_any_key_may_ask_and_nobody_without_one(system: System) -> None:
    assert system.get("/api/v1/health", token=system.key("health-any", "merges:read")).status == 200
    for headers in ({}, {"Authorization": "Bearer x"}):
        answer = system.get("/api/v1/health", headers=headers)
        assert (answer.status, answer.json()["errorCode"]) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert system.call("HEAD", "/api/v1/health", token=ADMIN).body == b""
    answer = system.call("POST", "/api/v1/health", {}, token=ADMIN)
    assert (answer.status, answer.json()["errorCode"]) == (405, "INVALID_REQUEST")


def test_what_is_behind_is_told_with_a_reason(system: System) -> None:
    with system.paused("nats"):
        assert until(lambda: health(system)["status"] == "degraded")
        found = health(system)
        assert found["details"]["database"] == "connected"
        assert any("NATS" in reason for reason in found["reasons"])
    assert until(lambda: health(system)["status"] == "healthy")


def postgres(system: System) -> list[int]:
    """The server and all of its processes."""
    parent = system.pids["postgres"]
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [parent, *map(int, file.read().split())]


@contextlib.contextmanager
def halted(system: System) -> Iterator[None]:
    """Postgres stands still."""
    pids = postgres(system)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_database_that_stands_still(system: System) -> None:
    """While the key is still known the answer says so; later the key cannot be looked up."""
    assert health(system)["details"]["database"] == "connected"
    with halted(system):
        answer = system.get("/api/v1/health", token=ADMIN)
        if answer.status == 200:
            assert answer.json()["status"] == "unhealthy"
            assert answer.json()["details"]["database"] == "unreachable"
        else:
            assert (answer.status, answer.json()["errorCode"]) == (503, "UNAVAILABLE")
    assert until(lambda: system.get("/api/v1/health", token=ADMIN).status == 200)
    assert until(lambda: health(system)["details"]["database"] == "connected")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One that wants more room and less memory than there is."""
    settings = f"{QUICK}\n[health]\nfree_bytes = 1000000000000000\nmemory_bytes = 1000000\n"
    made = System(tmp_path_factory.mktemp("narrow"), settings=settings)
    try:
        yield made.start()
    finally:
        made.stop()


def test_little_room_and_much_memory_are_told(narrow: System) -> None:
    found = health(narrow)
    assert found["status"] == "degraded"
    assert found["details"] == {"database": "connected", "storage": "low", "memory": "high"}
    assert "reasons" not in found or all("NATS" in reason or "relay" in reason for reason in found["reasons"])


def test_the_openapi_document_says_what_it_answers(system: System) -> None:
    document = system.ok("GET", "/schema/openapi.json")
    found = document["paths"]["/api/v1/health"]["get"]
    assert found["security"] == [{"bearer": []}]
    assert {"200", "401", "429", "503"} <= found["responses"].keys()
    assert "200 as long as" in found["description"]
