"""Health and metrics as the EonaCat document has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import UNSET, Struct, UnsetType

from domain import catalogue
from infra import config, machine
from infra.db import CONNECTION_LOST
from projections import syncs
from services.gateway.dialects import EONACAT, Timestamp, timestamp_s
from services.gateway.routes import Call, Route

_PATIENCE_S = 2.0
# Each of a tenant's contents counts once, however many of its libraries hold it.
_STORED = (
    "select coalesce(sum(size), 0)::bigint from"
    " (select distinct blake3, size from undrift.stored where tenant = $1) as contents"
)
_PROVIDERS = {"s3": "s3", "az": "azure"}

Database = Literal["connected", "unreachable"]
Storage = Literal["available", "low", "read-only", "unavailable"]
Memory = Literal["normal", "high"]


class Details(Struct):
    database: Database
    storage: Storage
    memory: Memory


class Health(Struct):
    """`unhealthy` when the database does not answer or nothing can be stored, `degraded` when something else is not as
    it should be; `reasons` (ours) when that is none of the details."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: Timestamp
    details: Details
    reasons: list[str] | UnsetType = UNSET


class CloudStorage(Struct):
    """Bytes."""

    azure: int
    s3: int


class Metrics(Struct, rename="camel"):
    """Jobs of a sync kind that completed or failed, in the key's tenant; stopped ones do not count, and one that failed
    and was resumed counts as what it comes to then. `averageSyncDuration` is in milliseconds from start to end, the
    rest in bytes; `cloudStorageUsage` is what is kept in buckets."""

    total_sync_operations: int
    successful_syncs: int
    failed_syncs: int
    average_sync_duration: int
    total_data_transferred: int
    cloud_storage_usage: CloudStorage


async def health(call: Call) -> Any:
    """Measured when asked: one round trip to the database, the room in the data directory, the memory of this gateway.
    The answer is 200 as long as the request could be answered at all, whatever `status` says, because the document
    knows no other; 503 is for when not even the credential can be looked up. `/readyz` is for load balancers."""
    process = call.api.process
    database, reasons = await _database(call)
    storage, memory = await asyncio.to_thread(_machine, process.settings)
    details = Details(database, storage, memory)
    found = Health(_status(details, reasons), timestamp_s(datetime.now(UTC)), details)
    if reasons:
        found.reasons = list(reasons)
    return call.reply(found, max(call.api.reads.position, 0))


async def _database(call: Call) -> tuple[Database, Sequence[str]]:
    """Whether Postgres answers, and what it says is not as it should be."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await call.api.process.db.fetchval("select 1")
            return "connected", (await call.api.conditions.now()).reasons
    except (*CONNECTION_LOST, TimeoutError):
        return "unreachable", ()


def _machine(settings: config.Settings) -> tuple[Storage, Memory]:
    room = machine.room(settings.directory)
    allowed = settings.health.memory_bytes or machine.memory_allowed() * 9 // 10
    memory: Memory = "high" if machine.memory_held() > allowed else "normal"
    if room.state != "writable":
        return room.state, memory
    return "low" if room.free_bytes < settings.health.free_bytes else "available", memory


def _status(details: Details, reasons: Sequence[str]) -> Literal["healthy", "degraded", "unhealthy"]:
    if details.database != "connected" or details.storage in ("read-only", "unavailable"):
        return "unhealthy"
    return "degraded" if reasons or details.storage != "available" or details.memory != "normal" else "healthy"


async def metrics(call: Call) -> Any:
    """From the log, by a read model that has seen what this key wrote before."""
    position = await call.caught_up()
    sums = await syncs.totals(call.api.process.db, call.tenant, catalogue.SYNC_KINDS)
    ended = sums.completed + sums.failed
    found = Metrics(
        total_sync_operations=ended,
        successful_syncs=sums.completed,
        failed_syncs=sums.failed,
        average_sync_duration=round((sums.completed_ms + sums.failed_ms) / ended) if ended else 0,
        total_data_transferred=sums.bytes,
        cloud_storage_usage=await _stored(call),
    )
    return call.reply(found, position)


async def _stored(call: Call) -> CloudStorage:
    """What the tenant's libraries keep, where their bytes are in a bucket."""
    found = CloudStorage(azure=0, s3=0)
    provider = _PROVIDERS.get(urlsplit(call.api.process.settings.blobs.url).scheme)
    if provider is not None:
        setattr(found, provider, await call.api.process.db.fetchval(_STORED, call.tenant))
    return found


ROUTES: Sequence[Route] = (
    Route("GET", "/api/v1/health", health, EONACAT, "Whether this instance is well", answers={200: Health}),
    Route(
        "GET",
        "/api/v1/metrics",
        metrics,
        EONACAT,
        "What the syncs of the key's tenant came to",
        needs="jobs:read",
        answers={200: Metrics},
    ),
)
