"""Random commands given to the writer all at once end as they would one after another in a few dictionaries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct, field

from domain import messages
from infra.db import Database
from infra.eventstore.recorder import (
    Append,
    Appended,
    Claimed,
    Guard,
    GuardFailed,
    Key,
    KeyReused,
    Recorder,
    VersionConflict,
    Write,
)
from tests.infra.appends import event, open_writers

Refusal = type[Claimed] | type[GuardFailed] | type[KeyReused] | type[VersionConflict]


class Drawn(Struct, frozen=True):
    """`off` is added to the version that a caller who knew everything would expect."""

    stream: int
    off: int
    count: int
    claims: tuple[tuple[str, str, str, bool], ...]


class Wanted(Struct, frozen=True):
    writes: tuple[Drawn, ...]
    key: tuple[str, str, bytes] | None
    guards: tuple[tuple[str, str, int], ...]


class Model(Struct):
    """The log, its names and its leases, one command at a time."""

    prefix: str
    streams: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    claims: dict[tuple[str, str], dict[str, bool]] = field(default_factory=dict)
    count: int = 0

    def stream(self, number: int) -> str:
        return f"notes/main/{self.prefix}{number}"

    def carry_out(self, number: int, command: Append) -> Refusal | tuple[int, int]:
        """Why it is refused, or (the command that did it, its number of events)."""
        if self._takes_twice(command):
            return Claimed
        if (key := command.key) is not None and (key.principal, key.key) in self.keys:
            request, earlier = self.keys[key.principal, key.key]
            return (earlier, -1) if request == key.request_hash else KeyReused
        if any((g.lease, g.owner, g.fence) != (f"{self.prefix}lease", "me", 7) for g in command.guards):
            return GuardFailed
        if any(w.expected != self.streams.get(w.stream, 0) for w in command.writes):
            return VersionConflict
        if self._is_claimed(command):
            return Claimed
        self._store(number, command)
        return number, sum(len(write.events) for write in command.writes)

    def _takes_twice(self, command: Append) -> bool:
        held: dict[tuple[str, str], dict[str, bool]] = {}
        for write in command.writes:
            for claim in write.claims:
                holders = held.setdefault((claim.kind, claim.key), {})
                if claim.action == "release":
                    holders.pop(write.stream, None)
                    continue
                if any(s != write.stream and not (shared and claim.shared) for s, shared in holders.items()):
                    return True
                holders[write.stream] = claim.shared
        return False

    def _is_claimed(self, command: Append) -> bool:
        """What a command gives back is free for what it takes."""
        after = {name: dict(holders) for name, holders in self.claims.items()}
        last = {(c.kind, c.key, w.stream): c for w in command.writes for c in w.claims}
        for (kind, key, stream), claim in last.items():
            if claim.action == "release":
                after.get((kind, key), {}).pop(stream, None)
        for (kind, key, stream), claim in last.items():
            if claim.action == "take":
                for holder, shared in after.get((kind, key), {}).items():
                    if holder != stream and not (shared and claim.shared):
                        return True
        return False

    def _store(self, number: int, command: Append) -> None:
        for write in command.writes:
            self.streams[write.stream] = self.streams.get(write.stream, 0) + len(write.events)
            for claim in write.claims:
                holders = self.claims.setdefault((claim.kind, claim.key), {})
                if claim.action == "release":
                    holders.pop(write.stream, None)
                else:
                    holders[write.stream] = claim.shared
        if command.key is not None:
            self.keys[command.key.principal, command.key.key] = (command.key.request_hash, number)
        self.count += sum(len(write.events) for write in command.writes)


names = st.tuples(
    st.sampled_from(["take", "take", "release"]), st.sampled_from("kl"), st.sampled_from("xy"), st.booleans()
)
writes = st.builds(
    Drawn,
    st.integers(0, 4),
    st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1]),
    st.integers(0, 3),
    st.lists(names, max_size=3).map(tuple),
)
commands = st.builds(
    Wanted,
    st.lists(writes, min_size=1, max_size=3, unique_by=lambda write: write.stream).map(tuple),
    st.none() | st.tuples(st.sampled_from("pq"), st.sampled_from("ijk"), st.sampled_from([b"1", b"1", b"2"])),
    st.lists(st.sampled_from([("lease", "me", 7)] * 4 + [("lease", "me", 6), ("none", "me", 7)]), max_size=2).map(
        tuple
    ),
)


def spell(model: Model, wanted: Wanted) -> Append:
    """The command as its caller would send it, knowing what all before it did."""
    spelled = []
    for one in wanted.writes:
        stream = model.stream(one.stream)
        expected = max(model.streams.get(stream, 0) + one.off, 0)
        events = [event(stream, expected + n) for n in range(1, one.count + 1)]
        claims = [messages.Claim(a, k, model.prefix + x, shared and a == "take") for a, k, x, shared in one.claims]
        spelled.append(Write(stream, expected, events, claims))
    key = None if wanted.key is None else Key(wanted.key[0], model.prefix + wanted.key[1], wanted.key[2].ljust(32))
    guards = [Guard(model.prefix + lease, owner, fence) for lease, owner, fence in wanted.guards]
    return Append("main", spelled, key, guards)


@pytest.fixture(scope="module")
async def log_url(postgres_server: str, migrated_template: str) -> Any:
    from tests.conftest import _copy

    async for url in _copy(postgres_server, migrated_template):
        yield url


@given(wanted=st.lists(commands, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_as_one_after_another(log_url: str, wanted: list[Wanted]) -> None:
    model = Model(f"{uuid4().hex[:8]}-")
    async with open_writers(log_url) as [writer]:
        database = Database(log_url, 2)
        await database.execute("insert into undrift.leases values ($1, 'me', 7)", f"{model.prefix}lease")
        before = await Recorder(database).max_notification_id() or 0
        given, expected = [], []
        for number, one in enumerate(wanted):
            given.append(spell(model, one))
            expected.append(model.carry_out(number, given[-1]))
        actual = await asyncio.gather(*(writer.append(one) for one in given), return_exceptions=True)
        compare(given, expected, actual)
        await compare_tables(database, model, given, actual, before)
        await database.close()


def compare(given: Sequence[Append], expected: Sequence[Any], actual: Sequence[Any]) -> None:
    for number, (wish, answer) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(wish, type):
            assert type(answer) is wish, (number, answer)
            continue
        earlier, count = wish
        assert isinstance(answer, Appended), (number, answer)
        if count >= 0:
            assert (answer.count, answer.replayed) == (count, False)
        else:
            original = actual[earlier]
            assert (answer.first, answer.count, answer.recorded_at, answer.replayed) == (
                original.first,
                original.count,
                original.recorded_at,
                True,
            )


async def compare_tables(
    database: Database, model: Model, given: Sequence[Append], actual: Sequence[Any], before: int
) -> None:
    stored = await Recorder(database).select_notifications(before, 10_000, inclusive_of_start=False)
    assert [note.id for note in stored] == list(range(before + 1, before + model.count + 1))
    at = {note.id: note for note in stored}
    for command, answer in zip(given, actual, strict=True):
        if isinstance(answer, Appended) and not answer.replayed:
            ids = [event.event_id for write in command.writes for event in write.events]
            assert [at[answer.first + n].event_id for n in range(answer.count)] == ids
    claims = await database.fetch(
        "select kind, key, stream_id, shared from undrift.claims where key like $1", f"{model.prefix}%"
    )
    assert {tuple(row) for row in claims} == {
        (kind, key, stream, shared)
        for (kind, key), holders in model.claims.items()
        for stream, shared in holders.items()
    }
    keys = await database.fetch("select principal, key from undrift.commands where key like $1", f"{model.prefix}%")
    assert {tuple(row) for row in keys} == set(model.keys)
