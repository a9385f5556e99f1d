"""What a device remembers: a small database in the folder itself, `.undrift/state.db`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from services.device.engine import NOTHING, Base

_SCHEMA = """
create table if not exists meta (name text primary key, value text) without rowid;
create table if not exists bases (path text primary key, hash text, sequence integer not null) without rowid;
create table if not exists spared (path text primary key, hash text not null) without rowid;
create table if not exists intents (path text primary key, hash text, sequence integer not null) without rowid;
create table if not exists looked
    (path text primary key, size integer, mtime_ns integer, inode integer, ctime_ns integer, hash text) without rowid;
"""


class Signature(NamedTuple):
    """What tells, without reading it, that a file is as it was."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


class SqliteState:
    """`services.device.engine.State`, durable with each call; and what files hashed to when they were last read."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = full")
        self._connection.executescript(_SCHEMA)
        self._bases = {
            row[0]: Base(row[1], row[2]) for row in self._connection.execute("select path, hash, sequence from bases")
        }
        self._spared: dict[str, str] = dict(self._connection.execute("select path, hash from spared"))
        row = self._connection.execute("select value from meta where name = 'cursor'").fetchone()
        self.cursor: str | None = None if row is None else row[0]

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("begin immediate")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    def base(self, path: str) -> Base:
        return self._bases.get(path, NOTHING)

    def bases(self) -> Mapping[str, Base]:
        return self._bases

    def spared(self, path: str) -> str | None:
        return self._spared.get(path)

    def intents(self) -> Mapping[str, Base]:
        rows = self._connection.execute("select path, hash, sequence from intents")
        return {row[0]: Base(row[1], row[2]) for row in rows}

    def intend(self, bases: Mapping[str, Base]) -> None:
        with self._transaction() as connection:
            connection.execute("delete from intents")
            rows = ((path, base.hash, base.sequence) for path, base in bases.items())
            connection.executemany("insert into intents values (?, ?, ?)", rows)

    def agree(
        self, bases: Mapping[str, Base], *, spared: Mapping[str, str | None] | None = None, cursor: str | None = None
    ) -> None:
        if not bases and not spared and cursor is None:
            return
        with self._transaction() as connection:
            rows = ((path, base.hash, base.sequence) for path, base in bases.items())
            connection.executemany("insert or replace into bases values (?, ?, ?)", rows)
            for path, hash in (spared or {}).items():
                connection.execute("delete from spared where path = ?", (path,))
                if hash is not None:
                    connection.execute("insert into spared values (?, ?)", (path, hash))
            if cursor is not None:
                connection.execute("insert or replace into meta values ('cursor', ?)", (cursor,))
        self._bases |= bases
        for path, hash in (spared or {}).items():
            if hash is None:
                self._spared.pop(path, None)
            else:
                self._spared[path] = hash
        self.cursor = cursor or self.cursor

    # What files hashed to.

    def looked(self) -> dict[str, tuple[Signature, str]]:
        rows = self._connection.execute("select path, size, mtime_ns, inode, ctime_ns, hash from looked")
        return {row[0]: (Signature(*row[1:5]), row[5]) for row in rows}

    def look(self, found: Iterable[tuple[str, Signature, str]], gone: Iterable[str] = ()) -> None:
        with self._transaction() as connection:
            connection.executemany("delete from looked where path = ?", ((path,) for path in gone))
            rows = ((path, *signature, hash) for path, signature, hash in found)
            connection.executemany("insert or replace into looked values (?, ?, ?, ?, ?, ?)", rows)
