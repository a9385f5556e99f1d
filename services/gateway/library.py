"""What devices say to a library: reports and acknowledgements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from domain import errors, library
from domain.plans.library import Change
from projections import library as library_read
from services.conflicts import Conflicts
from services.gateway import caught_up
from services.gateway import devices as device_routes
from services.gateway.as_of import Moment
from services.gateway.cursors import Cursors
from services.gateway.devices import DEVICE, Seen
from services.gateway.dialects import PINAKES, Timestamp, timestamp_ms
from services.gateway.routes import Call, Route
from services.library import Item, Library, Outcome, Refusal
from services.library_past import PastShelf
from services.library_shelf import LogShelf
from services.shelf import Places, Who

_HASH = re.compile(r"(?:blake3:|sha256:)?([0-9a-fA-F]{64})")


class ReportedChange(Struct):
    """`content_hash` is BLAKE3 or SHA-256, hexadecimal; `local_mtime` is a time of RFC 3339."""

    path: str
    change_type: Change
    old_path: str | None = None
    content_hash: str | None = None
    file_size: Annotated[int, Meta(ge=0)] | None = None
    local_mtime: str | None = None


class Report(Struct):
    changes: Annotated[list[ReportedChange], Meta(max_length=1000)]
    device_id: str | None = None


class Conflict(Struct):
    """Two sides of one file. `rule` says how they came apart; hashes are null for a side that deleted."""

    id: str
    device_id: str
    path: str
    local_hash: str | None
    server_hash: str | None
    local_mtime: Timestamp | None
    server_mtime: Timestamp | None
    detected_at: Timestamp
    rule: str
    local_change: str
    base_hash: str | None
    server_device_id: str | None
    media_id: str
    resolved_at: Timestamp | None = None
    resolution: str | None = None


class Rejected(Struct):
    path: str
    reason: str


class Reported(Struct):
    """Every item is in exactly one of accepted, conflicts, rejected; upload_required is a part of accepted.
    `sequences` says, for accepted paths, up to where the feed is older than what was reported."""

    accepted: list[str]
    conflicts: list[Conflict]
    upload_required: list[str]
    rejected: list[Rejected]
    sequences: dict[str, int]


class Ack(Struct):
    cursor: str
    device_id: str | None = None


class Acked(Struct):
    cursor: str


def who(call: Call, seen: Seen) -> Who:
    """Whose library, and which device speaks."""
    return Who(call.tenant, call.principal.owner, f"device:{seen.row.id}", seen.row.id, seen.state.acked)


def of_call(call: Call) -> Library:
    process = call.api.process
    return Library(LogShelf(process.db, process.store), Places(process.master))


def conflicts_of(call: Call, moment: Moment | None = None) -> Conflicts:
    """As things stand, or as they stood then."""
    process = call.api.process
    shelf = LogShelf(process.db, process.store)
    if moment is not None:
        shelf = PastShelf(process.db, process.store, moment.position, moment.until)
    return Conflicts(shelf, Places(process.master))


def wrote(call: Call, position: int) -> None:
    call.api.reads.wrote(call.principal.actor, position, library.STREAM)


def hash_of(text: str) -> str:
    """A declared hash without its prefix. Raises errors.Invalid."""
    match = _HASH.fullmatch(text)
    if match is None:
        raise errors.Invalid("A hash is 64 hexadecimal digits, of BLAKE3 or SHA-256")
    return match[1].lower()


def shape(row: library_read.Conflict) -> Conflict:
    return Conflict(
        id=row.conflict,
        device_id=row.device,
        path=row.path,
        local_hash=row.local_hash,
        server_hash=row.server_hash,
        local_mtime=None if row.local_mtime is None else timestamp_ms(row.local_mtime),
        server_mtime=None if row.server_mtime is None else timestamp_ms(row.server_mtime),
        detected_at=timestamp_ms(row.detected_at),
        rule=row.rule,
        local_change=row.local_change,
        base_hash=row.base_hash,
        server_device_id=row.server_device,
        media_id=row.file,
        resolved_at=None if row.resolved_at is None else timestamp_ms(row.resolved_at),
        resolution=row.resolution,
    )


async def report(call: Call) -> Any:
    body = await call.body(Report)
    seen = await device_routes.of_call(call, body.device_id or call.query().get("device_id"))
    items, refused = _items(body.changes)
    outcome = await of_call(call).report(who(call, seen), items)
    wrote(call, outcome.position)
    return call.reply(await _reported(call, outcome, refused), outcome.position)


def _items(changes: Sequence[ReportedChange]) -> tuple[list[Item], list[Refusal]]:
    items: list[Item] = []
    refused: list[Refusal] = []
    for change in changes:
        try:
            items.append(_item(change))
        except errors.Invalid as bad:
            refused.append(Refusal(change.path, bad.message))
    return items, refused


def _item(change: ReportedChange) -> Item:
    return Item(
        path=change.path,
        change=change.change_type,
        old_path=change.old_path,
        hash=None if change.content_hash is None else hash_of(change.content_hash),
        size=change.file_size,
        mtime=None if change.local_mtime is None else time_of(change.local_mtime),
    )


def time_of(text: str) -> datetime:
    """A time of RFC 3339. Raises errors.Invalid."""
    try:
        at = msgspec.convert(text, datetime, strict=False)
    except msgspec.ValidationError:
        raise errors.Invalid("local_mtime is a time of RFC 3339") from None
    if at.tzinfo is None:
        raise errors.Invalid("local_mtime needs a time zone")
    return at


async def _reported(call: Call, outcome: Outcome, refused: Sequence[Refusal]) -> Reported:
    """A conflict is shown as it was found, from the log."""
    process, shown = call.api.process, dict[str, Conflict]()
    for recorded in await LogShelf(process.db, process.store).found(outcome.conflicts):
        row = library_read.fold_conflict(None, recorded)
        assert row is not None
        shown[row.conflict] = shape(row)
    return Reported(
        accepted=list(outcome.accepted),
        conflicts=[shown[found.conflict] for found in outcome.conflicts],
        upload_required=outcome.upload_required,
        rejected=[Rejected(one.path, one.reason) for one in (*refused, *outcome.rejected)],
        sequences=outcome.accepted,
    )


async def ack(call: Call) -> Any:
    body = await call.body(Ack)
    seen = await device_routes.of_call(call, body.device_id or call.query().get("device_id"))
    process, row = call.api.process, seen.row
    cursor = Cursors(process.master).read(call.tenant, call.principal.owner, body.cursor)
    if cursor.epoch != process.epoch:
        raise errors.Invalid("That cursor belongs to another history")
    if cursor.position > max(seen.state.delivered, seen.state.acked):
        raise errors.Invalid("That cursor is ahead of what was delivered to the device")
    noted = await process.db.fetchrow(
        "update undrift.device_state set acked_pos = greatest(acked_pos, $2),"
        " last_sync_at = case when $2 >= acked_pos then clock_timestamp() else last_sync_at end"
        " where device = $1 returning acked_pos, judged_pos",
        row.id,
        cursor.position,
    )
    assert noted is not None
    acked = noted["acked_pos"]
    if acked > noted["judged_pos"]:
        await caught_up.judge(call, row.id, noted["judged_pos"], acked)
    text = Cursors(process.master).make(call.tenant, call.principal.owner, process.epoch, acked)
    return call.reply(Acked(text), call.api.reads.position)


_ERRORS = (400, 401, 403, 404, 413, 415, 422, 503)

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/v1/sync/report",
        report,
        PINAKES,
        "Report changes; each item has its own outcome",
        body=Report,
        query=DEVICE,
        answers={200: Reported},
        errors=_ERRORS,
    ),
    Route(
        "POST",
        "/api/v1/sync/ack",
        ack,
        PINAKES,
        "Acknowledge the feed up to a cursor",
        body=Ack,
        query=DEVICE,
        answers={200: Acked},
        errors=_ERRORS,
    ),
)
