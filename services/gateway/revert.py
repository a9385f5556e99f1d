"""Undo: a job that puts back what a finished job changed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from domain import errors, jobs, kinds, messages
from domain.plans import files, reverts
from infra.eventstore.store import Done
from services import roots
from services.gateway import sessions_attach
from services.gateway.dialects import JOBS
from services.gateway.jobs import Changed
from services.gateway.routes import Call, Route


async def revert(call: Call) -> Any:
    """Items and files that moved since are left alone, and listed in the result of the new job."""
    done = await call.earlier(jobs)
    if done is None:
        id = call.path("job_id")
        stream = messages.stream(jobs.STREAM, call.tenant, id)
        queued = _queued(call, id, (await call.api.process.store.load(jobs, stream)).state)
        done = await sessions_attach.queue(call, queued)
    return call.reply(Changed(True, _made(done), "queued", "Revert queued"), done.position)


def _made(done: Done) -> str:
    return done.events[0].id


def _queued(call: Call, id: str, job: jobs.Job) -> jobs.Queued:
    """Raises errors.NotFound, errors.InvalidState while it is being worked on, errors.Invalid for what is no undoing
    of, errors.Forbidden outside the roots."""
    if job.queued is None or job.deleted:
        raise errors.NotFound("There is no such job", kind="job")
    if job.ended is None or job.status not in ("completed", "failed", "stopped"):
        raise errors.InvalidState(f"A {job.status} job cannot be reverted; stop it first")
    spec = _spec(id, job, job.queued)
    target = job.queued.ticket.target
    if spec.target_directory is not None:
        roots.check(call.api.process.settings, call.principal.roots, spec.target_directory)
    ticket = jobs.Ticket(
        job=f"sync-job-{uuid.uuid4()}",
        kind="revert",
        type="selective_sync",
        lane="later",
        target=target or kinds.target(f"collection/{spec.collection}"),
    )
    return jobs.Queued(ticket=ticket, spec=Raw(msgspec.json.encode(spec)), roots=call.principal.roots)


def _spec(id: str, job: jobs.Job, queued: jobs.Queued) -> reverts.Spec:
    kind = queued.ticket.kind
    if kind in kinds.KINDS and kinds.KINDS[kind].collects:
        return reverts.Spec(id, collection=queued.ticket.integration or kind)
    if kind == "revert":
        collection = msgspec.json.decode(queued.spec, type=reverts.Spec).collection
        if collection is not None:
            return reverts.Spec(id, collection=collection)
    if kind != "files":
        raise errors.InvalidState(f"What a job of kind {kind} did cannot be undone")
    if not isinstance(job.ended, jobs.Completed):
        raise errors.InvalidState("Of folder syncs only those that were completed can be undone")
    target = msgspec.json.decode(queued.spec, type=files.Spec).target_directory
    plan = msgspec.json.decode(job.ended.result, type=files.Result).plan_hash
    return reverts.Spec(id, target_directory=target, plan=plan)


ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/sync/jobs/{job_id:str}/revert",
        revert,
        JOBS,
        "Undo what a finished job did to a collection or a folder",
        needs="jobs:write",
        query=(sessions_attach.HEADER,),
        answers={200: Changed},
        errors=(400, 401, 403, 404, 409, 422, 503),
    ),
)
