"""The mapper: a closed registry, older schemas brought up, personal fields sealed, contents hashed."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

import blake3
import msgspec
import pytest
from eventsourcing.persistence import MapperDeserialisationError
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from domain import errors, messages
from infra.db import Database
from infra.envelope import Envelope, Verdict, lines
from infra.eventstore.mapper import MAX_BYTES, Draft, LogEvent, LogNotification, Mapper, content_hash
from infra.eventstore.recorder import Append, Write
from infra.eventstore.store import Store
from infra.secrets import Keyring
from tests.infra.appends import open_writers

STREAM = "people/main/1"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Moved(messages.Event, frozen=True, tag="people.moved"):
    """Its third schema: `town` was `city`, and `extra` came later."""

    SCHEMA: ClassVar[int] = 3
    town: str
    extra: Raw
    since: datetime | None = None


class Registered(messages.Event, frozen=True, tag="people.registered"):
    PERSONAL: ClassVar[tuple[str, ...]] = ("name", "mail")
    name: str
    mail: str | None
    plan: str
    details: Raw = Raw(b"{}")


def _rename(fields: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in fields.items() if name != "city"}, "town": fields["city"]}


def _extend(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "extra": {"from": "2"}}


REGISTRY: dict[str, type[messages.Event]] = {"people.moved": Moved, "people.registered": Registered}
UPCASTERS = {("people.moved", 1): _rename, ("people.moved", 2): _extend}
MAPPER = Mapper(REGISTRY, UPCASTERS)


def draft(event: messages.Event, subject: str | None = None, **changes: Any) -> Draft:
    fields = {"tenant": "main", "stream": STREAM, "version": 1, "event_id": uuid4(), **changes}
    return Draft(**fields, event=event, metadata=messages.Metadata(actor="key:1", subject=subject))


def note(stored: LogEvent, **changes: Any) -> LogNotification:
    """The event as the log would give it back."""
    fields = {name: getattr(stored, name) for name in stored.__dataclass_fields__}
    return LogNotification(**{**fields, "id": 7, "recorded_at": NOW, **changes})


def reason(mapper: Mapper, stored: LogNotification) -> str:
    recorded = mapper.read(stored)
    assert isinstance(recorded.event, messages.Unreadable)
    assert (recorded.position, recorded.stream, recorded.version) == (7, STREAM, 1)
    assert recorded.event.stored_topic == stored.topic
    with pytest.raises(MapperDeserialisationError):
        mapper.to_domain_event(stored)
    return recorded.event.reason


def test_an_event_comes_back() -> None:
    wanted = draft(Moved(town="Köln", extra=Raw(b'{"a":[1,2.5,null]}'), since=NOW))
    recorded = MAPPER.to_domain_event(note(MAPPER.to_stored_event(wanted)))
    assert recorded == messages.Recorded(7, "main", STREAM, 1, wanted.event_id, wanted.event, wanted.metadata, NOW)
    assert recorded.topic == "people.moved"


def test_what_is_not_registered_is_not_stored() -> None:
    class Strange(messages.Event, frozen=True, tag="people.strange"):
        pass

    class Impostor(messages.Event, frozen=True, tag="people.moved"):
        pass

    for event in (Strange(), Impostor()):
        with pytest.raises(LookupError):
            MAPPER.to_stored_event(draft(event))


@pytest.mark.parametrize("topic", ["people.unknown", "os:system", "domain.messages:Unreadable", ""])
def test_a_topic_that_is_not_registered_is_unreadable_and_never_imported(topic: str) -> None:
    stored = MAPPER.to_stored_event(draft(Moved(town="x", extra=Raw(b"{}"))))
    assert "unknown topic" in reason(MAPPER, note(stored, topic=topic))


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b"[]",
        b'{"event":"people.moved"}',
        b'{"event":"people.moved","town":7,"extra":{}}',
        b'{"event":"people.other","town":"x","extra":{}}',
        b'{"event":"people.moved","town":"\xff","extra":{}}',
        b'{"event":"people.moved","town":"x","extra":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_damaged_contents_are_unreadable(state: bytes) -> None:
    stored = MAPPER.to_stored_event(draft(Moved(town="x", extra=Raw(b"{}"))))
    assert reason(MAPPER, note(stored, state=state)).startswith("people.moved v3: ")


async def test_damaged_metadata_is_unreadable(database: str) -> None:
    opened = Database(database, 1)
    ring = Keyring(opened, b"m" * 32)
    mapper = Mapper(REGISTRY, UPCASTERS, ring)
    await ring.ensure("main", "anna")
    for metadata in ("", "null", "{", '{"actor":1}'):
        for event in (Moved(town="x", extra=Raw(b"{}")), Registered("Anna", None, "free")):
            damaged = note(mapper.to_stored_event(draft(event, "anna")), metadata=metadata)
            assert mapper.subjects([damaged]) == set()
            assert reason(mapper, damaged)
    await opened.close()


def test_older_schemas_are_brought_up_step_by_step() -> None:
    stored = MAPPER.to_stored_event(draft(Moved(town="x", extra=Raw(b"{}"))))
    first = note(stored, schema_version=1, state=b'{"event":"people.moved","city":"Bonn","since":null}')
    second = note(stored, schema_version=2, state=b'{"event":"people.moved","town":"Bonn"}')
    for old in (first, second):
        assert MAPPER.to_domain_event(old).event == Moved(town="Bonn", extra=Raw(b'{"from":"2"}'))


def test_an_upcaster_that_is_missing_or_stumbles_leaves_the_event_unreadable() -> None:
    stored = MAPPER.to_stored_event(draft(Moved(town="x", extra=Raw(b"{}"))))
    old = note(stored, schema_version=1, state=b'{"event":"people.moved"}')
    assert reason(MAPPER, old)
    assert reason(Mapper(REGISTRY), old)
    stumbling = Mapper(
        REGISTRY,
        {
            ("people.moved", 1): lambda fields: fields["event"].nothing,
        },
    )
    assert "AttributeError" in reason(stumbling, old)


def test_a_newer_schema_is_unreadable() -> None:
    stored = MAPPER.to_stored_event(draft(Moved(town="x", extra=Raw(b"{}"))))
    assert "newer" in reason(MAPPER, note(stored, schema_version=4))


def test_an_event_is_at_most_256_kib() -> None:
    fits = MAX_BYTES - len(MAPPER.to_stored_event(draft(Moved(town="", extra=Raw(b"{}")))).state) - 40
    MAPPER.to_stored_event(draft(Moved(town="x" * fits, extra=Raw(b"{}"))))
    with pytest.raises(errors.TooLarge):
        MAPPER.to_stored_event(draft(Moved(town="x" * (fits + 80), extra=Raw(b"{}"))))


parts = st.tuples(
    st.text(max_size=4),
    st.text(max_size=4),
    st.integers(0, 300),
    st.text(max_size=4),
    st.integers(1, 3),
    st.uuids(),
    st.text(max_size=4),
    st.binary(max_size=4),
)


@given(parts, parts)
def test_different_events_have_different_hashes(one: Any, other: Any) -> None:
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


def test_parts_cannot_be_shifted_into_each_other() -> None:
    id = UUID(int=1)
    hashes = {
        content_hash("ab", "c", 1, "t", 1, id, "m", b"s"),
        content_hash("a", "bc", 1, "t", 1, id, "m", b"s"),
        content_hash("ab", "ct", 1, "", 1, id, "m", b"s"),
        content_hash("ab", "c", 1, "t", 1, id, "", b"ms"),
        content_hash("ab", "c", 1, "t", 1, id, "ms", b""),
    }
    assert len(hashes) == 5


def test_the_hash_can_be_computed_elsewhere() -> None:
    header = b"".join(n.to_bytes(4, "big") for n in (4, 13, 12, 2, 1, 3)) + UUID(int=1).bytes
    expected = blake3.blake3(header + b"main" + b"people/main/1" + b"people.moved" + b"{}" + b"state").digest()
    assert content_hash("main", STREAM, 1, "people.moved", 3, UUID(int=1), "{}", b"state") == expected


@pytest.mark.parametrize("version", [2**31, -(2**31) - 1, 10**30])
def test_a_version_no_event_has_is_a_wrong_value(version: int) -> None:
    with pytest.raises(ValueError, match="version"):
        content_hash("main", STREAM, version, "people.moved", 3, UUID(int=1), "{}", b"")


class People:
    """A context of one event."""

    STREAM = "people"
    initial: Registered | None = None

    @staticmethod
    def evolve(state: Registered | None, event: Registered) -> Registered:
        return event

    @staticmethod
    def claims(event: Registered) -> list[messages.Claim]:
        return []

    @staticmethod
    def decide(command: Any, state: Registered | None) -> list[Registered]:
        return [command]


ANNA = Registered(name="Anna Näme", mail="anna@example.org", plan="free", details=Raw(b'{"a":1}'))
SAYS = messages.Metadata(actor="key:1", subject="anna")


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    opened = Database(database, 4)
    async with open_writers(database) as [writer]:
        yield Store(opened, Mapper(REGISTRY, UPCASTERS, Keyring(opened, b"m" * 32)), writer)
    await opened.close()


def reopened(store: Store) -> Store:
    """Another process: it has no key in memory."""
    return Store(store.database, Mapper(REGISTRY, UPCASTERS, Keyring(store.database, b"m" * 32)), store.writer)


async def test_personal_fields_are_sealed_in_the_log_and_readable_to_us(store: Store) -> None:
    done = await store.execute(People, "1", ANNA, metadata=SAYS)
    [raw] = await store.read_raw(0, 10)
    for secret in (b"Anna", b"N\xc3\xa4me", b"example.org", hashlib.sha256(b"Anna").hexdigest().encode()):
        assert secret not in raw.state
    assert msgspec.json.decode(raw.state)["plan"] == "free"
    header = (raw.tenant, str(raw.originator_id), raw.originator_version, raw.topic, raw.schema_version, raw.event_id)
    assert raw.hash == content_hash(*header, raw.metadata, raw.state)
    assert done.state == ANNA
    [recorded] = await reopened(store).read(0, 10)
    assert recorded.event == ANNA


async def test_an_erased_person_reads_as_erased_and_the_log_still_verifies(store: Store) -> None:
    await store.execute(People, "1", ANNA, metadata=SAYS)
    await store.execute(People, "2", ANNA, metadata=messages.Metadata(subject="berta"))
    before = await store.read_raw(0, 10)
    assert store.mapper.keyring is not None
    await store.mapper.keyring.destroy("main", "anna")
    for reader in (store, reopened(store)):
        erased, kept = await reader.read(0, 10)
        assert erased.event == Registered(name="erased", mail="erased", plan="free", details=Raw(b'{"a":1}'))
        assert kept.event == ANNA
    assert await store.read_raw(0, 10) == before


async def test_nothing_can_be_sealed_for_an_erased_person_or_for_nobody(store: Store) -> None:
    assert store.mapper.keyring is not None
    await store.mapper.keyring.destroy("main", "anna")
    with pytest.raises(errors.NotFound, match="erased"):
        await store.execute(People, "1", ANNA, metadata=SAYS)
    with pytest.raises(LookupError):
        await store.execute(People, "1", ANNA, metadata=messages.Metadata())
    assert await store.head() == 0


async def test_what_travels_in_clear_is_read_without_a_key_and_keeps_the_hash_of_what_is_stored(store: Store) -> None:
    await store.execute(People, "1", ANNA, metadata=SAYS)
    [raw] = await store.read_raw(0, 10)
    [recorded] = await store.read(0, 10)
    clear = store.mapper.clear(raw)
    assert clear is not None
    assert msgspec.json.decode(clear)["name"] == ANNA.name
    envelope = Envelope(b"k" * 32, 1)
    sealed = envelope.pack(replace(raw, state=clear, clear=True))
    back = envelope.unpack(lines(b"NATS/1.0\r\n" + sealed.headers), sealed.data)
    assert isinstance(back, LogNotification)
    assert (back.hash, back.clear, back.state) == (raw.hash, True, clear)
    assert store.mapper.subjects([back]) == set()
    assert Mapper(store.mapper._registry).read(back) == recorded
    changed = envelope.unpack(lines(b"NATS/1.0\r\n" + sealed.headers), clear.replace(b"na", b"an", 1))
    stripped = envelope.unpack(lines(b"NATS/1.0\r\n" + sealed.headers.replace(b"Undrift-Clear", b"X")), clear)
    other = raw.hash.hex().encode(), bytes(32).hex().encode()
    renamed = envelope.unpack(lines(b"NATS/1.0\r\n" + sealed.headers.replace(*other)), clear)
    assert [changed, stripped, renamed] == [Verdict.FORGED] * 3
    assert store.mapper.keyring is not None
    await store.mapper.keyring.destroy("main", "anna")
    erased = store.mapper.clear(raw)
    assert erased is not None
    assert msgspec.json.decode(erased)["name"] == "erased"


async def test_a_sealed_field_belongs_to_its_event_and_its_name(store: Store) -> None:
    await store.execute(People, "1", ANNA, metadata=SAYS)
    [raw] = await store.read_raw(0, 10)
    fields = msgspec.json.decode(raw.state)
    swapped = msgspec.json.encode({**fields, "name": fields["mail"], "mail": fields["name"]})
    changed = msgspec.json.encode({**fields, "name": "QUFB" + fields["name"][4:]})
    for moved in (
        replace(raw, state=swapped),
        replace(raw, state=changed),
        replace(raw, event_id=uuid4()),
        replace(raw, state=msgspec.json.encode({**fields, "name": 7})),
    ):
        unreadable = store.mapper.read(moved).event
        assert isinstance(unreadable, messages.Unreadable)
        assert "Anna" not in unreadable.reason


async def test_reasons_do_not_repeat_what_is_personal(store: Store) -> None:
    class Wrong(messages.Event, frozen=True, tag="people.registered"):
        PERSONAL = ("name", "mail")
        name: str
        mail: dict[str, str]
        plan: str = "free"

    wrong = Mapper({"people.registered": Wrong}, keyring=store.mapper.keyring)
    assert store.mapper.keyring is not None
    await store.mapper.keyring.ensure("main", "anna")
    stored = wrong.to_stored_event(draft(Wrong("Anna", {"private@example.org": "x"}), "anna"))
    await store.writer.append(Append("main", [Write(STREAM, 0, [stored])]))
    [recorded] = await store.read(0, 10)
    assert isinstance(recorded.event, messages.Unreadable)
    assert "private" not in recorded.event.reason
