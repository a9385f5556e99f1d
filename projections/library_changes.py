"""The feed of a library: each change as a device is told of it, in the order of the log, never touched again."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from projections.table import Key, Table

if TYPE_CHECKING:
    from projections.library import Version

Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]

_encode = msgspec.json.Encoder().encode


class Row(Struct, frozen=True):
    """`told` is the JSON of the change: a page is put together out of these, and nobody encodes it anew."""

    tenant: str
    owner: str
    position: int
    told: str


TABLE = Table("changes", Row, ("tenant", "owner", "position"))


class Change(Struct):
    """`sequence` is the position of the log, so it grows with gaps. `device_id` is whose change it was, null for the
    server's own; a device may skip its own. `old_path` comes with `moved` only."""

    id: str
    sequence: int
    change_type: str
    media_id: str
    path: str
    content_hash: str | None
    file_size: int | None
    timestamp: Timestamp
    device_id: str | None
    mtime: Timestamp | None
    old_path: str | UnsetType = UNSET


def shape(version: Version) -> Change:
    return Change(
        id=str(uuid.UUID(hashlib.md5(version.id.encode(), usedforsecurity=False).hexdigest())),
        sequence=version.from_pos,
        change_type=version.change,
        media_id=version.file,
        path=version.path,
        content_hash=version.hash,
        file_size=version.size,
        timestamp=_time(version.at),
        device_id=version.device,
        mtime=None if version.mtime is None else _time(version.mtime),
        old_path=UNSET if version.old_path is None else version.old_path,
    )


def _time(at: datetime) -> str:
    """Truncated to milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rows(versions: Iterable[Version]) -> dict[Key, Row]:
    """The rows of new versions, by their keys."""
    return {
        (one.tenant, one.owner, one.from_pos): Row(one.tenant, one.owner, one.from_pos, _encode(shape(one)).decode())
        for one in versions
    }
