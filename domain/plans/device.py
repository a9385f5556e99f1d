"""What a device says to the library and does with what it hears: pure decisions about paths and hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct


class Local(Struct, frozen=True):
    """A file here: its hash, its size in bytes, and when it was changed."""

    hash: str
    size: int
    mtime: datetime | None = None


class Item(Struct, frozen=True):
    """One item of a report."""

    path: str
    change: Literal["created", "modified", "deleted", "moved"]
    old_path: str | None = None
    hash: str | None = None
    size: int | None = None
    mtime: datetime | None = None


class Change(Struct, frozen=True):
    """One change of the feed, at its place in it; `hash` None for what is gone."""

    path: str
    hash: str | None
    sequence: int
    size: int | None = None
    mtime: datetime | None = None
    old_path: str | None = None


def reports(bases: Mapping[str, str], local: Mapping[str, Local]) -> list[Item]:
    """What has changed here since both sides agreed: deletions first, so that what takes their place may.

    A file that is gone from one place and is found, the same, in one other that is new, was moved.
    """
    gone = {path: hash for path, hash in bases.items() if path not in local}
    new = {path: entry for path, entry in local.items() if path not in bases}
    moved = dict(_moves(gone, new))
    items = [Item(path, "deleted") for path in gone if path not in moved.values()]
    for path, entry in sorted(local.items()):
        if path in moved:
            change: Literal["created", "modified", "moved"] = "moved"
        elif path in new:
            change = "created"
        elif entry.hash != bases[path]:
            change = "modified"
        else:
            continue
        items.append(Item(path, change, moved.get(path), entry.hash, entry.size, entry.mtime))
    return items


def _moves(gone: Mapping[str, str], new: Mapping[str, Local]) -> Iterable[tuple[str, str]]:
    """(new path, old path), where hashes leave no doubt."""
    left, found = _by_hash(gone.items()), _by_hash((path, entry.hash) for path, entry in new.items())
    for hash, paths in found.items():
        if len(paths) == 1 and len(left.get(hash, ())) == 1:
            yield paths[0], left[hash][0]


def _by_hash(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for path, hash in pairs:
        paths.setdefault(hash, []).append(path)
    return paths


def agreed(item: Item) -> dict[str, str | None]:
    """What both sides agree on once an item is accepted."""
    if item.change == "deleted":
        return {item.path: None}
    if item.change == "moved" and item.old_path is not None:
        return {item.old_path: None, item.path: item.hash}
    return {item.path: item.hash}


def final(changes: Sequence[Change]) -> dict[str, Change]:
    """What a page of changes comes to, by path."""
    last: dict[str, Change] = {}
    for change in changes:
        if change.old_path is not None and change.old_path != change.path:
            last[change.old_path] = Change(change.old_path, None, change.sequence)
        last[change.path] = change
    return last


def order(final: Mapping[str, Change]) -> list[str]:
    """The order to apply them in: what is gone makes room first, the deepest before what it stands in."""
    gone = sorted((path for path, change in final.items() if change.hash is None), reverse=True)
    return gone + sorted(path for path, change in final.items() if change.hash is not None)
