"""Following a job to its end, with a bar where there is a terminal, and saying how it ended."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from services.cli_common import Exit, Instance, printable, remark, stderr
from services.client import Client

ENDED = ("completed", "failed", "stopped", "paused")
_SHORTEST_S, _LONGEST_S = 0.05, 0.5
_FAILURES = {"plan_changed": Exit.CHANGED, "forbidden": Exit.NOT_ALLOWED}


class Show(Protocol):
    def __call__(self, job: Mapping[str, Any], /) -> None: ...


def path(job: str, *more: str) -> str:
    """The path of a job, or of something below it."""
    return "/".join(["/api/sync/jobs", quote(job, safe=""), *more])


def follow(client: Client, job: str) -> dict[str, Any]:
    """The job once it has ended or waits for somebody; progress goes to stderr."""
    pause_s = _SHORTEST_S
    with _progress() as show:
        while True:
            found = client.get(path(job)).body
            show(found)
            if found["status"] in ENDED:
                return found
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_S)


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
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("queued", total=100, items=0)

        def show(job: Mapping[str, Any]) -> None:
            stage = printable(_stage(job))
            bar.update(task, description=stage, completed=job["progress"], items=_stats(job).get("processed", 0))

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
    seconds = job["duration"] / 1000
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
