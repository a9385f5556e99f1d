"""Subjects that nothing can be injected into, a connection that comes back, and asks."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import string
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import errors
from infra import config, embedded, subjects
from infra.asks import MAX_BYTES
from infra.bus import Bus

QUICK = config.Nats(reconnect_s=0.02, ping_s=0.2, connect_timeout_s=0.5)

NASTY = [
    "",
    "_",
    ".",
    "*",
    ">",
    "a.b",
    "a.*",
    "evt.>",
    "a b",
    "a\tb",
    "a\r\nPUB evt.x 1\r\nx",
    "a\nb",
    "\x00",
    "\x7f",
    "A",
    "aA",
    "b32_",
    "b32_me",
    "b32_ME",
    "sha_",
    "sha_abc",
    "$JS.API.STREAM.DELETE.EVENTS",
    "$SYS",
    "ä",
    "a\u0301",
    "\u202e",
    "😀",
    "日本",
    "\ud800",
    "\u0661",
    "ﬁ",
    "İ",
    "a" * 200,
    "a" * 201,
    "a" * 10_000,
    "é" * 63,
    "é" * 64,
    "é" * 5_000,
    "../../etc",
    "%2e",
    "user@example.org",
    "{}",
    '"',
    "'",
    "\\",
    "-",
    "--",
    "0b5fba17-4d63-4b6b-b1fa-9de1f4f6f0f1",
]
CORPUS = list(dict.fromkeys(NASTY + [a + b for b in ("", "a", ".", " ", "b32_", "\r\n") for a in string.printable]))[
    :500
]


def test_the_corpus_has_500_different_names() -> None:
    assert len(set(CORPUS)) == 500


@pytest.mark.parametrize("place", range(3))
def test_names_never_change_the_shape_of_a_subject(place: int) -> None:
    seen: dict[str, list[str]] = {}
    for name in CORPUS:
        names = ["main", "_", "jobs.completed"]
        names[place] = name
        subject = subjects.event(*names)
        assert re.fullmatch(r"[a-z0-9_.-]+", subject)
        assert len(subject.split(".")) == 5
        assert all(subject.split("."))
        assert len(subject) < 1000
        seen.setdefault(subject, []).append(name)
    if place < 2:  # of topics there are few, all our own
        assert [["", "_"]] * place == [names for names in seen.values() if len(names) > 1]


def test_an_ask_has_two_tokens() -> None:
    assert {2} == {len(subjects.ask(name).split(".")) for name in CORPUS}


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_a_token_is_read_back_unless_it_is_a_digest(text: str) -> None:
    token = subjects.token(text)
    assert re.fullmatch(r"[a-z0-9_-]{1,200}", token)
    if token.startswith("sha_"):
        with pytest.raises(ValueError, match="read back"):
            subjects.plain(token)
    else:
        assert text == subjects.plain(token)


@pytest.mark.parametrize("token", ["", "A", "a.b", "b32_!", "b32_a", "b32_mf", "b32_MFRA", "b32_mfra", "*", "a b"])
def test_what_is_no_token_is_not_read(token: str) -> None:
    with pytest.raises(ValueError, match="read back"):
        subjects.plain(token)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, QUICK)
    await bus.connect()
    assert await bus.ready(5)
    yield bus
    await bus.close()


async def echo(payload: bytes, seconds: float) -> bytes:
    return payload + b"!"


async def test_an_ask_is_answered(bus: Bus) -> None:
    desk = await bus.answer("files.plan", echo)
    assert await bus.ask("files.plan", b"hello", 5) == b"hello!"
    await desk.close()
    with pytest.raises(errors.Unavailable) as raised:
        await bus.ask("files.plan", b"hello", 5)
    assert raised.value.details["retry_after"] == 1


async def test_the_remaining_time_goes_with_an_ask(bus: Bus) -> None:
    told: list[float] = []

    async def look(payload: bytes, seconds: float) -> bytes:
        told.append(seconds)
        return b""

    await bus.answer("look", look)
    await bus.ask("look", b"", 7)
    assert 0 < told[0] <= 7


@pytest.mark.parametrize("kind", [errors.NotFound, errors.Held, errors.PlanChanged, errors.StorageFull, errors.Invalid])
async def test_errors_come_back_as_they_were_raised(bus: Bus, kind: type[errors.Error]) -> None:
    async def refuse(payload: bytes, seconds: float) -> bytes:
        raise kind("Not this one", count=3, path="a/b")

    await bus.answer("refuse", refuse)
    with pytest.raises(kind) as raised:
        await bus.ask("refuse", b"", 5)
    assert (kind, "Not this one", {"count": 3, "path": "a/b"}) == (
        type(raised.value),
        raised.value.message,
        raised.value.details,
    )


async def test_a_fault_of_the_worker_does_not_travel(bus: Bus) -> None:
    async def fail(payload: bytes, seconds: float) -> bytes:
        raise RuntimeError("secret")

    await bus.answer("fail", fail)
    with pytest.raises(errors.Error) as raised:
        await bus.ask("fail", b"", 5)
    assert errors.Error is type(raised.value)
    assert "secret" not in str(raised.value)


async def test_the_deadline_ends_the_ask_and_the_work(bus: Bus) -> None:
    ended = asyncio.Event()

    async def dawdle(payload: bytes, seconds: float) -> bytes:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return b""

    await bus.answer("dawdle", dawdle)
    with pytest.raises(errors.TimedOut):
        await bus.ask("dawdle", b"", 0.1)
    await asyncio.wait_for(ended.wait(), 5)


async def test_what_is_too_large_is_refused_on_both_ways(bus: Bus) -> None:
    async def swell(payload: bytes, seconds: float) -> bytes:
        return bytes(MAX_BYTES + 1)

    await bus.answer("swell", swell)
    with pytest.raises(errors.TooLarge):
        await bus.ask("swell", bytes(MAX_BYTES + 1), 5)
    with pytest.raises(errors.TooLarge):
        await bus.ask("swell", b"", 5)


async def test_work_is_bounded_and_the_rest_refused(bus: Bus) -> None:
    running, most = 0, 0
    go = asyncio.Event()

    async def work(payload: bytes, seconds: float) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return payload

    await bus.answer("work", work, slots=2, limit=5)
    asks = [asyncio.create_task(bus.ask("work", b"%d" % n, 10)) for n in range(9)]
    while sum(ask.done() for ask in asks) < 4:
        await asyncio.sleep(0.01)
    go.set()
    answers = await asyncio.gather(*asks, return_exceptions=True)
    assert most == 2
    assert sum(isinstance(answer, bytes) for answer in answers) == 5
    assert sum(isinstance(answer, errors.Unavailable) for answer in answers) == 4


async def test_each_ask_goes_to_one_worker(bus: Bus, nats_url: str) -> None:
    other = Bus(nats_url, QUICK)
    await other.connect()
    assert await other.ready(5)
    counts = [0, 0]

    def worker(number: int) -> Any:
        async def serve(payload: bytes, seconds: float) -> bytes:
            counts[number] += 1
            return payload

        return serve

    await bus.answer("shared", worker(0), slots=50)
    await other.answer("shared", worker(1), slots=50)
    asked = 0
    while not all(counts) and asked < 6000:  # the server may have heard of one of them only
        await asyncio.gather(*(bus.ask("shared", b"", 5) for _ in range(60)))
        asked += 60
    assert sum(counts) == asked
    assert all(counts)
    await other.close()


async def test_a_worker_that_stops_says_so(bus: Bus) -> None:
    begun = asyncio.Event()

    async def dawdle(payload: bytes, seconds: float) -> bytes:
        begun.set()
        await asyncio.sleep(60)
        return b""

    desk = await bus.answer("stopping", dawdle)
    ask = asyncio.create_task(bus.ask("stopping", b"", 30))
    await begun.wait()
    await desk.close()
    with pytest.raises(errors.Unavailable):
        await ask


async def test_without_nats_a_start_is_not_held_up_and_asks_say_so() -> None:
    bus = Bus("nats://127.0.0.1:9", QUICK)
    await bus.connect()
    desk = await bus.answer("files", echo)
    with pytest.raises(errors.Unavailable) as raised:
        await bus.ask("files", b"", 5)
    assert raised.value.details["retry_after"] == 1
    assert not await bus.ready(0.2)
    await desk.close()
    await bus.close()


async def test_after_a_crash_of_the_server_everything_is_back(bus: Bus, nats_server: embedded.Nats) -> None:
    seen: list[bool] = []
    bus.watch(seen.append)
    begun = asyncio.Event()

    async def answer(payload: bytes, seconds: float) -> bytes:
        if payload == b"wait":
            begun.set()
            await asyncio.sleep(60)
        return payload

    await bus.answer("again", answer)
    pending = asyncio.create_task(bus.ask("again", b"wait", 30))
    await begun.wait()
    nats_server.kill()
    with pytest.raises(errors.Unavailable):
        await pending
    nats_server.start()
    assert await bus.ready(10)
    assert await bus.ask("again", b"x", 5) == b"x"
    assert seen == [False, True]


async def test_a_server_that_hangs_is_noticed(bus: Bus, nats_server: embedded.Nats) -> None:
    seen: asyncio.Queue[bool] = asyncio.Queue()
    bus.watch(seen.put_nowait)
    await bus.answer("hung", echo)
    assert nats_server.pid is not None
    os.kill(nats_server.pid, signal.SIGSTOP)
    try:
        assert not await asyncio.wait_for(seen.get(), 10)
        with pytest.raises(errors.Unavailable):
            await bus.ask("hung", b"", 5)
    finally:
        os.kill(nats_server.pid, signal.SIGCONT)
    assert await asyncio.wait_for(seen.get(), 10)
    assert await bus.ask("hung", b"x", 5) == b"x!"
