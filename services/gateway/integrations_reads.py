"""Integrations as they are read: one, all, and how they are doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain import errors
from domain.policies import Breaker
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections import usage as usage_read
from services import integrations as declarations
from services import integrations_past as past
from services.gateway import as_of
from services.gateway.as_of import PRESENT, Moment
from services.gateway.integrations_shapes import CurrentJob, Listing, Statuses, described, shape
from services.gateway.routes import Call
from services.gateway.things import INTEGRATION
from services.worker import progress
from services.worker.remotes import Remotes


async def find(call: Call) -> integrations_read.Row:
    """The integration of the path. Raises errors.NotFound."""
    row = await integrations_read.get(call.api.process.db, call.tenant, call.path("integration_id"))
    if row is None:
        raise errors.NotFound("There is no such integration", kind="integration")
    return row


def _breaker(call: Call, row: integrations_read.Row, moment: Moment = PRESENT) -> Breaker:
    return declarations.breaker(call.api.process.settings, row, moment.now)


def _remotes(call: Call) -> Remotes:
    return Remotes(call.api.process.db, call.api.process.master)


async def list_(call: Call) -> Any:
    position = await call.caught_up()
    rows = await integrations_read.list_(call.api.process.db, call.tenant)
    quotas = await _remotes(call).quotas(call.tenant)
    shown = [shape(row, _breaker(call, row), quotas.get(row.id)) for row in rows]
    return call.reply(Listing(shown, len(rows)), position)


async def show(call: Call) -> Any:
    """With `as_of` as it was then; what its remote allowed then is not kept."""
    moment = await as_of.wanted(call)
    if moment is not None:
        return await _was(call, moment)
    position = await call.caught_up()
    row = await find(call)
    quotas = await _remotes(call).quotas(call.tenant, row.id)
    return call.reply(shape(row, _breaker(call, row), quotas.get(row.id)), position)


async def _was(call: Call, moment: Moment) -> Any:
    source = await INTEGRATION.find(call, id := call.path(INTEGRATION.parameter))
    await as_of.reached(call, moment)
    row = await past.row(call.api.process.store, call.tenant, id, source.stream, moment.position)
    if row is None:
        raise errors.NotFound("There was no such integration then", kind="integration")
    quota = None if moment.until is not None else (await _remotes(call).quotas(call.tenant, id)).get(id)
    return call.reply(shape(row, _breaker(call, row, moment), quota), moment.position)


async def statuses(call: Call) -> Any:
    position = await call.caught_up()
    database = call.api.process.db
    rows = await integrations_read.list_(database, call.tenant)
    quotas = await _remotes(call).quotas(call.tenant)
    current: dict[str, jobs_read.Row] = {}
    for job in await jobs_read.open_jobs(database, call.tenant):
        if job.integration is not None and (job.integration not in current or job.status != "queued"):
            current[job.integration] = job
    seen = await progress.read(database, [job.id for job in current.values()])
    usage = await usage_read.by_integration(database, call.tenant)
    shown = [
        described(row, _current(current.get(row.id), seen), _breaker(call, row), quotas.get(row.id), usage.get(row.id))
        for row in rows
    ]
    return call.reply(Statuses(shown), position)


def _current(job: jobs_read.Row | None, seen: Mapping[str, progress.Seen]) -> CurrentJob | None:
    """With the progress that no event has told of yet."""
    if job is None:
        return None
    at = seen[job.id].progress.progress if job.id in seen else 0
    return CurrentJob(job.id, job.status, max(job.progress, at))
