"""How a change of a library looks in its feed."""

from __future__ import annotations

import hashlib
import uuid

from msgspec import UNSET, Struct, UnsetType

from projections.library import Version
from services.gateway.dialects import Timestamp, timestamp_ms


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
        timestamp=timestamp_ms(version.at),
        device_id=version.device,
        mtime=None if version.mtime is None else timestamp_ms(version.mtime),
        old_path=UNSET if version.old_path is None else version.old_path,
    )
