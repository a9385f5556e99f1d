"""Where kinds of work meet the worker: what a child is told, what it does, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import jobs, messages
from domain.plans import files as plan
from domain.plans import reverts, servers
from infra.config import Settings
from infra.leases import Lease
from services import roots
from services.asks import Ask
from services.main import Process
from services.worker import checks, child, collector, files, files_diff, files_revert, sources
from services.worker.appending import Appending
from services.worker.bringing import Bringing
from services.worker.files_context import Context as FilesContext
from services.worker.files_context import Progress
from services.worker.reverting import Reverting
from services.worker.servers import Syncing

if TYPE_CHECKING:
    from infra.panel import Panel


class Work(Struct, frozen=True):
    """One run of one job, as its engine needs to know it."""

    tenant: str
    job: str
    queued: jobs.Queued
    folder: Path
    confirm: str | None


# In the worker's process.


def task(settings: Settings, work: Work) -> child.Task:
    """What the child is told."""
    if work.queued.ticket.kind == "revert":
        return _revert_task(settings, work)
    spec = msgspec.json.decode(work.queued.spec, type=plan.Spec)
    if work.confirm is not None:
        spec = replace(spec, plan_hash=work.confirm)
    return _files_task(settings, "files", work.tenant, spec, work.queued.roots, work.job, work.folder)


def bringing(process: Process, work: Work, lease: Lease, metadata: messages.Metadata) -> Bringing | None:
    """For a kind that brings items; it makes the child's tasks itself."""
    if work.queued.ticket.kind not in sources.SOURCES:
        return None
    return Bringing(process, work.tenant, work.job, lease, work.folder, metadata)


def inside(
    process: Process, work: Work, lease: Lease, metadata: messages.Metadata, panel: Panel | None
) -> Reverting | Syncing | None:
    """For work that needs no child: undoing what a job did to a collection, and servers of the Panel's."""
    appending = Appending(process, work.tenant, work.job, lease, metadata)
    match work.queued.ticket.kind:
        case "servers":
            return Syncing(appending, msgspec.json.decode(work.queued.spec, type=servers.Spec), panel, work.queued)
        case "revert":
            spec = msgspec.json.decode(work.queued.spec, type=reverts.Spec)
            return None if spec.collection is None else Reverting(appending, spec)
        case _:
            return None


def _revert_task(settings: Settings, work: Work) -> child.Task:
    return child.Task(
        call="files.revert",
        spec=bytes(work.queued.spec),
        roots=roots.allowed(settings, work.queued.roots),
        job=work.job,
        work=str(work.folder),
        trash=str(settings.directory / "trash"),
        record=str(settings.directory / "blobs"),
    )


def plan_task(settings: Settings, ask: Ask, id: str) -> child.Task:
    """An ask for a plan; its scratch folder is removed afterwards."""
    spec = msgspec.json.decode(ask.spec, type=plan.Spec)
    return _files_task(settings, "files.plan", ask.tenant, spec, ask.roots, id, folder(settings, f"ask-{id}"))


def _test_files(settings: Settings, ask: Ask, id: str) -> child.Task:
    spec = msgspec.json.decode(ask.spec, type=plan.Spec)
    return _files_task(settings, "files.test", ask.tenant, spec, ask.roots, id, folder(settings, f"ask-{id}"))


def _test_remote(call: str, settings: Settings, ask: Ask, id: str) -> child.Task:
    return child.Task(call=call, spec=bytes(ask.spec), job=id, work=str(folder(settings, f"ask-{id}")))


def _diff_files(settings: Settings, ask: Ask, id: str) -> child.Task:
    return child.Task(
        call="files.diff",
        spec=bytes(ask.spec),
        job=id,
        work=str(folder(settings, f"ask-{id}")),
        record=str(settings.directory / "blobs"),
        trash=str(settings.directory / "diffs"),
    )


ASKS: Mapping[str, Callable[[Settings, Ask, str], child.Task]] = {
    "files.plan": plan_task,
    "files.test": _test_files,
    "files.diff": _diff_files,
    "network.test": partial(_test_remote, "network.test"),
    "plane.test": partial(_test_remote, "plane.test"),
}


def _files_task(
    settings: Settings, call: str, tenant: str, spec: plan.Spec, own: tuple[str, ...], id: str, folder: Path
) -> child.Task:
    pair = "\0".join((tenant, spec.source_directory, spec.target_directory))
    limits = settings.files
    return child.Task(
        call=call,
        spec=msgspec.json.encode(spec),
        roots=roots.allowed(settings, own),
        job=id,
        work=str(folder),
        trash=str(settings.directory / "trash"),
        record=str(settings.directory / "records" / hashlib.sha256(pair.encode("utf-8", "replace")).hexdigest()),
        guards=msgspec.json.encode(
            plan.Guards(
                max_delete_fraction=limits.max_delete_fraction,
                max_delete_count=limits.max_delete_count,
                marker=limits.marker,
            )
        ),
    )


async def keep(process: Process, work: Work) -> None:
    """Keeps the plan that a finished job carried out, under its hash."""
    spooled = work.folder / "plan"
    if spooled.exists():
        await asyncio.to_thread(process.blobs.adopt, spooled)


def folder(settings: Settings, job: str) -> Path:
    """A job's scratch folder."""
    return settings.directory / "work" / job


async def discard(folder: Path) -> None:
    """The scratch folder of work that will not be resumed."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


# In the child's process.


def _files_context(told: child.Task, parent: child.Parent) -> FilesContext:
    work = Path(told.work)
    record = Path(told.record)
    record.parent.mkdir(mode=0o700, exist_ok=True)
    return FilesContext(
        roots=told.roots,
        job=told.job,
        work=work,
        trash=Path(told.trash),
        record=record,
        plan_out=work / "plan",
        guards=msgspec.json.decode(told.guards, type=plan.Guards),
        emit=partial(_report, parent),
        should_stop=parent.stop_asked,
        log=lambda level, message: parent.say(child.Line(level, message)),
    )


def _report(parent: child.Parent, now: Progress) -> None:
    counters = jobs.Counters(now.processed, now.created, now.updated, now.deleted, now.errors, now.bytes)
    parent.say(child.Report(_STAGES.get(now.stage, now.stage), now.percent, counters))


# The engine's stages in the words of the Sync Management document.
_STAGES = {"scan": "scanning", "compare": "planning", "copy": "copying", "finish": "reconciling_deletes"}


def _sync_files(told: child.Task, parent: child.Parent) -> child.Done:
    return files.sync(msgspec.json.decode(told.spec, type=plan.Spec), _files_context(told, parent))


def _plan_files(told: child.Task, parent: child.Parent) -> child.Done:
    spec = msgspec.json.decode(told.spec, type=plan.Spec)
    summary = files.plan(spec, _files_context(told, parent))
    return child.Done(msgspec.json.encode(summary), jobs.Counters())


def _collect(told: child.Task, parent: child.Parent) -> child.Done:
    assert told.collect is not None
    return collector.run(told, parent, sources.SOURCES[told.collect.kind])


CALLS: Mapping[str, Callable[[child.Task, child.Parent], child.Done]] = {
    "files": _sync_files,
    "files.plan": _plan_files,
    "files.revert": files_revert.run,
    "files.diff": files_diff.run,
    "files.test": checks.check_files,
    "network.test": checks.check_network,
    "plane.test": checks.check_plane,
    "collect": _collect,
}
