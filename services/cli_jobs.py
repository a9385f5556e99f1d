"""`undrift jobs`: list, show, watch, stop, resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from cyclopts import App

from services import cli_watch as watching
from services.cli_common import Exit, Flag, Instance, console, emit, printable, remark, say

_SHOWN = ("id", "kind", "type", "integrationId", "status", "stage", "progress")
_TIMES = ("createdAt", "startedAt", "estimatedCompletion", "completedAt")
Status = Literal["queued", "running", "paused", "stopping", "stopped", "completed", "failed"]

app = App(name="jobs", help="See, stop and resume jobs: everything that moves data is one.")


@app.command(name="list")
def list_(
    *,
    status: Status | None = None,
    integration: str | None = None,
    limit: int = 20,
    instance: Instance = Instance(),
) -> Exit:
    """List jobs, the newest first.

    Parameters
    ----------
    status
        Only jobs in this state.
    integration
        Only jobs of this integration, by its id.
    limit
        At most so many, up to 100.
    """
    given = {"status": status, "integrationId": integration, "limit": limit}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    found = instance.connect().get(f"/api/sync/jobs?{query}").body
    if instance.json:
        emit(found)
        return Exit.OK
    _print_table(found["jobs"])
    if found["total"] > len(found["jobs"]):
        remark(f"{len(found['jobs'])} of {found['total']} jobs")
    return Exit.OK


def _print_table(jobs: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not jobs:
        remark("There are no jobs")
        return
    table = Table("id", "kind", "type", "status", "%", "created", "took", "result", box=None, pad_edge=False)
    for job in jobs:
        result = watching.counts(job) if "result" in job else job.get("error", {}).get("message", "")
        cells = (job["id"], job["kind"], job["type"], job["status"], job["progress"], job["createdAt"])
        table.add_row(*(printable(str(cell)) for cell in (*cells, watching.duration(job), result)))
    out = console()
    if not out.is_terminal:
        out.width = 1000  # whoever reads it is a program: nothing is cut off
    out.print(table, markup=False)


@app.command
def show(id: str, /, *, instance: Instance = Instance()) -> Exit:
    """Show one job with its progress and its newest log lines.

    Parameters
    ----------
    id
        The job, such as sync-job-….
    """
    found = instance.connect().get(watching.path(id)).body
    if instance.json:
        emit(found)
    else:
        _print_job(found)
    return Exit.OK


def _print_job(job: Mapping[str, Any]) -> None:
    for name in (*_SHOWN, *_TIMES):
        if name in job:
            say(f"{name:20}{job[name]}{' %' if name == 'progress' else ''}")
    if "duration" in job:
        say(f"{'duration':20}{watching.duration(job)}")
    say(f"{'stats':20}{watching.counts(job)}")
    for name, value in job.get("error", {}).items():
        say(f"{'error ' + name:20}{value}")
    for line in job.get("logs", []):
        say(f"{line['timestamp']} {line['level']:5} {line['message']}")


@app.command
def watch(id: str, /, *, instance: Instance = Instance()) -> Exit:
    """Follow a job until it ends: exit code 0 when it completed, 1 when it failed, was stopped or paused, 4 when a
    guard holds it.

    Parameters
    ----------
    id
        The job, such as sync-job-….
    """

    def answer(job: dict[str, Any]) -> Exit:
        code, sentence = watching.outcome(job, instance)
        if instance.json:
            emit(job)
        (remark if code or instance.json else say)(sentence)
        return code

    return watching.interruptible(instance.connect(), id, instance, answer)


@app.command
def stop(id: str, /, *, now: Annotated[bool, Flag] = False, instance: Instance = Instance()) -> Exit:
    """Stop a job.

    Parameters
    ----------
    id
        The job, such as sync-job-….
    now
        Break off the operation under way instead of letting it finish.
    """
    return _change(id, "stop", {"graceful": not now}, instance)


@app.command
def resume(id: str, /, *, confirm: str | None = None, instance: Instance = Instance()) -> Exit:
    """Resume a paused or failed job from its checkpoint.

    Parameters
    ----------
    id
        The job, such as sync-job-….
    confirm
        The hash of the plan that a guard holds: carry out exactly that.
    """
    return _change(id, "resume", {} if confirm is None else {"confirm": confirm}, instance)


def _change(id: str, action: str, body: Mapping[str, Any], instance: Instance) -> Exit:
    changed = instance.connect().post(watching.path(id, action), body).body
    if instance.json:
        emit(changed)
    else:
        say(f"{changed['message']}: {id} is {changed['status']}")
    return Exit.OK
