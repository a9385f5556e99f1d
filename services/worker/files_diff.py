"""Compares the plans of two folder syncs, however large: on disk, by path.

What differs is kept in a small database, which is a function of the two plans, so further pages come from there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from domain import errors, jobs
from domain.plans import diffs
from domain.plans import files as plans
from infra.blobs import Blobs, Missing
from services.worker import child

_KEPT = 8
_BATCH = 5000
#: An answer over NATS is at most 256 KiB; what each path takes in JSON is not known before.
_ANSWER_BYTES = 128 * 1024
_SHOWN = 2000

_OPS: dict[str, diffs.Op] = {
    "create": "created",
    "mkdir": "created",
    "update": "updated",
    "attributes": "updated",
    "replace": "updated",
    "delete": "deleted",
    "rmdir": "deleted",
    "blocked": "blocked",
}
_SIDE = "path blob primary key, op text, kind text, size integer, mtime integer, link blob"
_SAME = "(l.op, l.kind, l.size, l.mtime, l.link) is (r.op, r.kind, r.size, r.mtime, r.link)"
_COMPARE = f"""
create table different (path blob primary key, lop text, lkind text, lsize int, rop text, rkind text, rsize int)
    without rowid;
create table counts (same int, different int, only_left int, only_right int);
insert into different select l.path, l.op, l.kind, l.size, r.op, r.kind, r.size
    from scratch.l as l left join scratch.r as r on r.path = l.path where r.path is null or not ({_SAME});
insert into different select r.path, null, null, null, r.op, r.kind, r.size
    from scratch.r as r left join scratch.l as l on l.path = r.path where l.path is null;
insert into counts select
    (select count(*) from scratch.l) - sum(lop is not null),
    sum(lop is not null and rop is not null), sum(rop is null), sum(lop is null) from different;
update counts set same = (select count(*) from scratch.l), different = 0, only_left = 0, only_right = 0
    where same is null;
"""


def run(told: child.Task, parent: child.Parent) -> child.Done:
    """`record` of the task is the folder of blobs, `trash` that of the databases. Raises errors.InvalidState where a
    plan is kept no more."""
    spec = msgspec.json.decode(told.spec, type=diffs.Spec)
    with closing(_open(spec, Blobs(Path(told.record)), Path(told.trash), Path(told.work))) as database:
        page = _page(database, spec)
    return child.Done(msgspec.json.encode(page), jobs.Counters())


def _open(spec: diffs.Spec, blobs: Blobs, folder: Path, work: Path) -> sqlite3.Connection:
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"{spec.left}-{spec.right}"
    if not kept.exists():
        made = work / "different"
        _make(spec, blobs, made, work / "scratch")
        os.replace(made, kept)
        _forget(folder)
    os.utime(kept)
    return sqlite3.connect(kept)


def _make(spec: diffs.Spec, blobs: Blobs, made: Path, scratch: Path) -> None:
    with closing(sqlite3.connect(made, isolation_level=None)) as database:
        database.execute("attach ? as scratch", (str(scratch),))
        for name in ("main", "scratch"):
            database.execute(f"pragma {name}.journal_mode = off")
            database.execute(f"pragma {name}.synchronous = off")
        database.execute("begin")  # one for all: a commit for each row takes ten times as long
        for table, digest in (("l", spec.left), ("r", spec.right)):
            database.execute(f"create table scratch.{table} ({_SIDE}) without rowid")
            for batch in _batches(blobs, digest):
                database.executemany(f"insert or replace into scratch.{table} values (?, ?, ?, ?, ?, ?)", batch)
        for statement in _COMPARE.split(";"):
            database.execute(statement)
        database.execute("commit")


_Row = tuple[bytes, str, str, int, int, bytes]


def _batches(blobs: Blobs, digest: str) -> Iterator[list[_Row]]:
    """The actions of a plan, but for the times of folders, which every run sets."""
    try:
        path = blobs.path(digest)
    except Missing:
        raise errors.InvalidState("The plan of that run is no longer kept") from None
    rows: list[_Row] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as plan:
        at = plans.frame(plan, 0).end  # behind the header
        while at < len(plan):
            frame = plans.frame(plan, at)
            at = frame.end
            group = plans.decode(plan, frame)
            rows += [_row(group.path, action) for action in group.actions if action.op != "settle"]
            if len(rows) >= _BATCH:
                yield rows
                rows = []
    yield rows


def _row(folder: bytes, action: plans.Action) -> _Row:
    key = plans.key(plans.join(folder, action.name))
    return key, _OPS[action.op], action.kind, action.size, action.mtime_ns, action.link


def _forget(folder: Path) -> None:
    """Keeps those that were looked at last."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[_KEPT:]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _page(database: sqlite3.Connection, spec: diffs.Spec) -> diffs.Page:
    counts = diffs.Counts(*database.execute("select * from counts").fetchone())
    pairs: list[diffs.Pair] = []
    size, last = 0, b""
    where, values = ("", ()) if spec.after is None else ("where path > ?", (bytes.fromhex(spec.after),))
    rows = database.execute(f"select * from different {where} order by path", values)
    for key, lop, lkind, lsize, rop, rkind, rsize in rows:
        if len(pairs) == spec.limit or size > _ANSWER_BYTES:
            return diffs.Page(counts, pairs, last.hex())
        last = key
        pair = diffs.Pair(_shown(key), _done(lop, lkind, lsize), _done(rop, rkind, rsize))
        pairs.append(pair)
        size += 6 * len(pair.name) + 200
    return diffs.Page(counts, pairs, None)


def _shown(key: bytes) -> str:
    return plans.show(key.replace(b"\0", b"/"), _SHOWN) or "."


def _done(op: diffs.Op | None, kind: str, size: int) -> diffs.Done | None:
    return None if op is None else diffs.Done(op, kind=kind, size=size)
