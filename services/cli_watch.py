"""Following a job to its end, with a bar where there is a terminal, and saying how it ended."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

from services import client_events as following
from services.cli_common import Exit, Instance, printable, remark, stderr
from services.client import Client

ENDED = ("completed", "failed", "stopped", "paused")
_PAUSE_S = 0.1
_FAILURES = {"plan_changed": Exit.CHANGED, "forbidden": Exit.NOT_ALLOWED}


class Show(Protocol):
    def __call__(self, job: Mapping[str, Any], /) -> None: ...


def path(job: str, *more: str) -> str:
    """The path of a job, or of something below it."""
    return "/".join(["/api/sync/jobs", quote(job, safe=""), *more])


def follow(client: Client, job: str) -> dict[str, Any]:
    """The job once it has ended or waits for somebody; progress, and what it warns of, go to stderr."""
    with _progress() as show:
        for found in _seen(client, job):
            show(found)
    while (found := client.get(path(job)).body)["status"] not in ENDED:
        time.sleep(_PAUSE_S)
    return found


def _seen(client: Client, job: str) -> Iterator[dict[str, Any]]:
    """The job as it changes, until it is no longer at work."""
    now: dict[str, Any] = {"id": job, "status": "queued", "progress": 0}
    live = False  # before the first progress it is told what was
    for event in following.follow(client, path(job, "events")):
        if event.type in ("status", "progress"):
            now.pop("estimatedCompletion", None)
            now |= event.data
            live = live or event.type == "progress"
            yield now
        elif event.type == "log" and live and event.data["level"] in ("warn", "error"):
            remark(f"{job}: {event.data['message']}")
        if live and now["status"] == "paused":
            return


@contextlib.contextmanager
def _progress() -> Iterator[Show]:
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[items]} items", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("queued", total=100, items=0, left="")

        def show(job: Mapping[str, Any]) -> None:
            stage = printable(_stage(job))
            items = _stats(job).get("processed", 0)
            bar.update(task, description=stage, completed=job["progress"], items=items, left=_left(job))

        yield show


def _lines() -> Show:
    """Where nobody looks at a terminal: a line for each stage."""
    said = ""

    def show(job: Mapping[str, Any]) -> None:
        nonlocal said
        stage = _stage(job)
        if stage != said and job["status"] not in ENDED:
            said = stage
            remark(f"{job['id']}: {stage}, {job['progress']} %")

    return show


def _stage(job: Mapping[str, Any]) -> str:
    if job["status"] != "running":
        return str(job["status"])
    return str(job.get("stage", "running")).replace("_", " ")


def _left(job: Mapping[str, Any]) -> str:
    """`3 min 5 s left`, by this machine's clock; empty where nobody can tell."""
    if "estimatedCompletion" not in job or job["status"] != "running":
        return ""
    seconds = (datetime.fromisoformat(job["estimatedCompletion"]) - datetime.now(UTC)).total_seconds()
    if seconds <= 0:
        return ""
    return f"{math.ceil(seconds)} s left" if seconds < 60 else f"{_spoken(seconds)} left"


def _stats(job: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = job.get("result") or job.get("stats") or {}
    return found


def counts(job: Mapping[str, Any]) -> str:
    """`120 items: 3 created, 2 updated, 0 deleted, 0 errors`."""
    stats = _stats(job)
    items = stats.get("processed", 0)
    said = ", ".join(f"{stats.get(name, 0)} {name}" for name in ("created", "updated", "deleted", "errors"))
    return f"{items} item{'' if items == 1 else 's'}: {said}"


def duration(job: Mapping[str, Any]) -> str:
    """For people: `1.2 s`, `3 min 5 s`; empty while a job has not ended."""
    if "duration" not in job:
        return ""
    return _spoken(job["duration"] / 1000)


def _spoken(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def is_held(job: Mapping[str, Any]) -> bool:
    """Whether a guard waits for somebody's confirmation."""
    return bool(job["status"] in ("paused", "failed") and job.get("error", {}).get("code") == "held")


def outcome(job: Mapping[str, Any], instance: Instance) -> tuple[Exit, str]:
    """The exit code for a job that is no longer at work, and the sentence that goes with it."""
    id, error = job["id"], job.get("error", {})
    why = str(error.get("message", "no reason is known")).removeprefix("Held: ").rstrip(".")
    if is_held(job):
        confirm = f"undrift jobs resume {id} --confirm {error.get('plan', 'HASH')}{instance.flags}"
        return Exit.HELD, f"{id} is held: {why}; nothing was changed. To carry it out: {confirm}"
    if job["status"] == "completed":
        return Exit.OK, f"{id} completed in {duration(job)}, {counts(job)}"
    if job["status"] == "paused":
        return Exit.FAILED, f"{id} is paused: {why}. To go on: undrift jobs resume {id}{instance.flags}"
    if job["status"] == "stopped":
        return Exit.FAILED, f"{id} was stopped, {counts(job)}"
    return _FAILURES.get(error.get("code"), Exit.FAILED), f"{id} failed: {why}, {counts(job)}"


def interruptible(client: Client, job: str, instance: Instance, then: Callable[[dict[str, Any]], Exit]) -> Exit:
    """Follows a job, then answers; a Ctrl-C leaves the job alone and says so."""
    try:
        found = follow(client, job)
    except KeyboardInterrupt:
        remark(f"{job} goes on; undrift jobs watch {job}{instance.flags}, or undrift jobs stop {job}{instance.flags}")
        return Exit.INTERRUPTED
    return then(found)
