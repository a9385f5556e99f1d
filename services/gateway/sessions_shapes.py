"""How sync sessions look from outside: the shapes of the EonaCat document, and ours beside them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import sessions
from projections.sessions import Row, Work
from services.gateway.dialects import Timestamp, timestamp_s
from services.gateway.files import SyncResponse

Location = Annotated[str, Meta(min_length=1, max_length=4096)]
SyncType = Annotated[str, Meta(extra_json_schema={"enum": list(sessions.SYNC_TYPES)})]


class Start(Struct, rename="camel"):
    """A location is a folder, `connection:NAME`, or any other name. Two folders under a root are synchronized by a job
    of ours; between anything else clients do the work, and attach it."""

    source_location: Location
    target_location: Location
    sync_type: SyncType = "Full"


class Started(Struct, rename="camel"):
    """`jobId` (ours) is the job that does the work, if one does."""

    session_id: str
    started_at: Timestamp
    source_identifier: str
    target_identifier: str
    job_id: str | None


class Status(Struct, rename="camel"):
    """`result` is there once it has ended."""

    session_id: str
    status: sessions.Status
    progress_percentage: int
    message: str
    result: SyncResponse | None
    created_at: Timestamp
    completed_at: Timestamp | None


class Summary(Status, rename="camel", kw_only=True):
    """`attached` counts its jobs and uploads."""

    source_identifier: str
    target_identifier: str
    sync_type: str
    attached: int


class Detail(Summary, rename="camel", kw_only=True):
    """What it came to until now. `expiresAt` is when it ends itself unless somebody names it before; null once it has
    ended."""

    jobs: list[str]
    uploads: list[str]
    processed: int
    bytes_transferred: int
    errors: int
    expires_at: Timestamp | None


class Listing(Struct, rename="camel"):
    sessions: list[Summary]
    total_count: int


class Lease(Struct, rename="camel"):
    session_id: str
    expires_at: Timestamp


def status(row: Row, work: Sequence[Work], progress: int) -> Status:
    """`progress` counts while it is open."""
    return Status(**_common(row, work, progress))


def summary(row: Row, work: Sequence[Work], progress: int) -> Summary:
    return Summary(**_common(row, work, progress), **_ours(row))


def detail(row: Row, work: Sequence[Work], progress: int, now: sessions.Totals, expires: datetime | None) -> Detail:
    return Detail(
        **_common(row, work, progress),
        **_ours(row),
        jobs=[one.id for one in work if one.is_job],
        uploads=[one.id for one in work if not one.is_job],
        processed=now.processed,
        bytes_transferred=now.bytes,
        errors=now.errors,
        expires_at=None if expires is None else timestamp_s(expires),
    )


def _common(row: Row, work: Sequence[Work], progress: int) -> dict[str, Any]:
    ended = row.completed_at
    return {
        "session_id": row.id,
        "status": row.status,
        "progress_percentage": progress if ended is None else row.progress,
        "message": _message(row, work),
        "result": result(row),
        "created_at": timestamp_s(row.created_at),
        "completed_at": None if ended is None else timestamp_s(ended),
    }


def _ours(row: Row) -> dict[str, Any]:
    return {
        "source_identifier": row.source,
        "target_identifier": row.target,
        "sync_type": row.sync_type,
        "attached": row.attached,
    }


def result(row: Row) -> SyncResponse | None:
    """What its jobs and uploads came to, in the words of a file synchronization."""
    sums, ended = row.sums, row.completed_at
    if sums is None or ended is None:
        return None
    return SyncResponse(
        success=row.status == "completed" and sums.errors == 0,
        changes_applied=sums.changes,
        conflicts_encountered=sums.conflicts,
        errors=list(sums.messages),
        synced_at=timestamp_s(ended),
        execution_time_ms=sums.duration_ms,
    )


def _message(row: Row, work: Sequence[Work]) -> str:
    if row.status != "in-progress":
        return row.message or f"Session {row.status}"
    held = [one for one in work if one.is_job and one.rests]
    running = [one for one in work if one.status in ("running", "stopping")]
    if held:
        return f"Waiting for somebody: {'; '.join(held[0].messages) or held[0].id}"
    if running:
        stage = (running[0].stage or "running").replace("_", " ")
        return f"{stage.capitalize()} ({running[0].id})"
    if any(one.is_job and one.is_open for one in work):
        return "Waiting for a worker"
    return "Completing" if row.closing else "Waiting for work"
