"""Seals over ranges of the log: a Merkle root of positions, times and content hashes that can be kept elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import blake3
from msgspec import Struct

from infra.db import Database
from infra.eventstore.mapper import content_hash

_PAGE = 1000
_MARK = 4

# Times as whole microseconds since 1970; texts as the bytes that are stored, which after damage need not be text.
_TIME = (
    "case when isfinite(recorded_at) then (extract(epoch from recorded_at) * 1000000)::bigint"
    " else 9223372036854775807 end"
)
_LEAVES = f"select pos, {_TIME}, hash from undrift.events where pos between $1 and $2 order by pos"
_ROWS = (
    f"select pos, {_TIME} as time, hash, textsend(tenant) as tenant, textsend(stream_id) as stream, version,"
    " textsend(topic) as topic, schema_version, event_id, textsend(metadata) as metadata, state"
    " from undrift.events where pos > $1 order by pos limit $2"
)


class Damage(Struct, frozen=True):
    """What is wrong at a position of the log."""

    position: int
    reason: str


class Leaf(Struct, frozen=True):
    """What a seal covers of one event: `time` in microseconds since 1970."""

    position: int
    time: int
    hash: bytes

    def digest(self) -> bytes:
        head = self.position.to_bytes(8, "big") + self.time.to_bytes(8, "big", signed=True)
        return blake3.blake3(b"\0" + head + self.hash).digest()


class Seal(Struct, frozen=True):
    """A sealed range; `leaves` holds the first bytes of each leaf's digest."""

    first: int
    last: int
    root: bytes
    leaves: bytes


def root(digests: Sequence[bytes]) -> bytes:
    """The Merkle root of leaf digests. Leaves and nodes are hashed apart, and an odd one goes up as it is."""
    level = list(digests)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [blake3.blake3(b"\1" + left + right).digest() for left, right in pairs]
        level = above + level[len(above) * 2 :]
    return level[0]


async def seal(database: Database, every: int) -> int:
    """Seals the ranges of `every` positions that are complete; how many. Any number may do it at once."""
    count = 0
    while True:
        last = await database.fetchval("select max(last_pos) from undrift.seals") or 0
        rows = await database.fetch(_LEAVES, last + 1, last + every)
        if len(rows) < every:
            return count
        made = await asyncio.to_thread(_seal, [Leaf(*row) for row in rows])
        done = await database.execute(
            "insert into undrift.seals (first_pos, last_pos, root, leaves) values ($1, $2, $3, $4)"
            " on conflict do nothing",
            made.first,
            made.last,
            made.root,
            made.leaves,
        )
        count += done == "INSERT 0 1"


def _seal(leaves: Sequence[Leaf]) -> Seal:
    digests = [leaf.digest() for leaf in leaves]
    marks = b"".join(digest[:_MARK] for digest in digests)
    return Seal(leaves[0].position, leaves[-1].position, root(digests), marks)


async def verify(database: Database, since: int = 0) -> list[Damage]:
    """Every position behind `since` where the log is not what was appended and sealed, in order.

    Each event is hashed again, positions are counted, and each seal's root is made again; one that begins at or
    before `since` is left out. What is not sealed yet is covered by its own hash only.
    """
    seals = [
        Seal(*row)
        for row in await database.fetch(
            "select first_pos, last_pos, root, leaves from undrift.seals where first_pos > $1 order by first_pos",
            since,
        )
    ]
    audit = _Audit(since, seals)
    while rows := await database.fetch(_ROWS, audit.position, _PAGE):
        await asyncio.to_thread(audit.page, rows)
    await asyncio.to_thread(audit.finish)
    return sorted(audit.damages, key=lambda damage: damage.position)


class _Audit:
    """Goes over the log once, in order."""

    def __init__(self, since: int, seals: Sequence[Seal]) -> None:
        self.position = since
        self.damages: list[Damage] = []
        self._seals = list(reversed(seals))
        self._sealed_to = seals[-1].last if seals else 0
        self._next_seal = 1 if since == 0 else None
        self._leaves: dict[int, Leaf] = {}
        self._time: int | None = None

    def page(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in rows:
            leaf = Leaf(row["pos"], row["time"], row["hash"])
            self._missing(leaf.position)
            if (reason := _differs(row)) is not None:
                self._report(leaf.position, reason)
            if leaf.position <= self._sealed_to:
                self._leaves[leaf.position] = leaf
            elif self._time is not None and leaf.time < self._time:
                self._report(leaf.position, "recorded before the event in front of it")
            self._time = leaf.time
            self.position = leaf.position
        while self._seals and self._seals[-1].last <= self.position:
            self._check(self._seals.pop())

    def finish(self) -> None:
        """What is sealed must be there to its end."""
        self._missing(self._sealed_to + 1)

    def _missing(self, position: int) -> None:
        absent = position - self.position - 1
        for gone in range(self.position + 1, self.position + 1 + min(absent, _PAGE)):
            self._report(gone, "missing")
        if absent > _PAGE:
            self._report(self.position + 1 + _PAGE, f"missing, with all behind it up to {position - 1}")

    def _check(self, seal: Seal) -> None:
        if self._next_seal not in (None, seal.first):
            self._report(seal.first, "the seals in front of it are missing")
        self._next_seal = seal.last + 1
        found = [self._leaves.pop(position, None) for position in range(seal.first, seal.last + 1)]
        digests = [b"" if leaf is None else leaf.digest() for leaf in found]
        if None not in found and root(digests) == seal.root:
            return
        known = {damage.position for damage in self.damages}
        differing = [
            seal.first + n
            for n, digest in enumerate(digests)
            if digest[:_MARK] != seal.leaves[n * _MARK : (n + 1) * _MARK]
        ]
        for position in differing:
            if position not in known:
                self._report(position, "not what was sealed")
        if not differing:
            self._report(seal.first, f"the seal of positions {seal.first} to {seal.last} is damaged")

    def _report(self, position: int, reason: str) -> None:
        self.damages.append(Damage(position, reason))


def _differs(row: asyncpg.Record) -> str | None:
    """Why an event is not the one whose hash is stored with it."""
    try:
        texts = [row[name].decode() for name in ("tenant", "stream", "topic", "metadata")]
    except UnicodeDecodeError:
        return "its header is not text"
    tenant, stream, topic, metadata = texts
    identifier = UUID(str(row["event_id"]))
    header = (tenant, stream, row["version"], topic, row["schema_version"], identifier, metadata)
    return None if content_hash(*header, row["state"]) == row["hash"] else "its content is not what was hashed"
