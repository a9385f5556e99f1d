"""Runs of the network's integration, one at a time: whoever wants one joins the one under way."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import NamedTuple

import msgspec
import structlog
from msgspec import Raw
from msgspec.structs import replace

from domain import errors, integrations, jobs, kinds, messages, network
from infra.db import Database
from infra.eventstore.store import Store
from infra.vault import Vault
from services import integrations as declarations
from services.main import Process
from services.projector import TRANSIENT

log = structlog.get_logger("network")

_OPTIONS = kinds.Options()
_OPEN = (
    "select stream_id from undrift.claims where tenant = $1 and kind like 'work/%'"
    " and substr(key, strpos(key, '|') + 1) = $2 order by pos"
)
_METADATA = messages.Metadata(actor="system:network")
_RETRY_S = 1.0


class Run(NamedTuple):
    """A run by its stream, and a position after which it comes to its end."""

    stream: str
    position: int


async def under_way(database: Database, store: Store, tenant: str) -> Run | None:
    """The first run that is queued or running, and that nobody has asked to stop."""
    for row in await database.fetch(_OPEN, tenant, jobs.line(network.NAME)):
        loaded = await store.load(jobs, row["stream_id"])
        if loaded.state.status in ("queued", "running"):
            return Run(row["stream_id"], loaded.position)
    return None


async def queued(
    store: Store, tenant: str, *, plan: str | None = None, waited: bool = False, deadline: datetime | None = None
) -> jobs.Queued:
    """A run, ready to be queued; `plan` is the hash of the only one to carry out. Raises errors.SyncFailed where no
    directories are configured."""
    stream = messages.stream(integrations.STREAM, tenant, network.NAME)
    state = (await store.load(integrations, stream)).state
    if state.name is None or state.kind != "network":
        raise errors.SyncFailed("No directories of the RAIDA network are configured (UNDRIFT_NETWORK_DIRECTORIES)")
    spec = replace(kinds.spec("network", state.config, "full_sync", _OPTIONS), plan_hash=plan)
    ticket = jobs.Ticket(
        job=declarations.new_id(), kind="network", type="full_sync", lane="now", integration=network.NAME
    )
    return jobs.Queued(
        ticket=ticket,
        spec=Raw(msgspec.json.encode(spec)),
        options=Raw(msgspec.json.encode(_OPTIONS)),
        waited=waited,
        deadline=deadline,
    )


async def at_start(process: Process) -> str:
    """Queues a run unless one is open; answers its stream."""
    store, tenant = process.store, "main"
    await declarations.declare(store, Vault(process.db, process.master), process.settings.integrations)
    found = await under_way(process.db, store, tenant)
    if found is not None:
        return found.stream
    run = await queued(store, tenant)
    done = await store.execute(jobs, run.ticket.job, jobs.Queue(run), tenant=tenant, metadata=_METADATA, fresh=True)
    return done.events[0].stream


async def run(process: Process) -> None:
    """The role: one run at the start, where directories are configured."""
    settings = process.settings.network
    while settings.directories and settings.sync_at_start:
        try:
            log.info("the network is read at the start", stream=await at_start(process))
            break
        except (*TRANSIENT, errors.Unavailable) as error:
            log.warning("the start of the network waits", reason=type(error).__name__)
        except errors.Error as error:
            log.error("the network cannot be read at the start", reason=error.message)
            break
        await asyncio.sleep(_RETRY_S)
    await asyncio.Event().wait()
