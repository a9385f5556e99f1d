"""`undrift files`: bring one folder to the state of another, or see first what that would do."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import App

from services import cli_watch as watching
from services.cli_common import Exit, Flag, Instance, Many, Problem, console, emit, printable, remark, say
from services.client import Client

PATH = "/api/v1/sync/files"
_PLAN_S = 660.0

app = App(name="files", help="Keep folders in step.")


@app.command
def sync(
    source: str,
    target: str,
    /,
    *,
    delete: Annotated[bool, Flag] = False,
    no_verify: Annotated[bool, Flag] = False,
    exclude: Annotated[tuple[str, ...], Many] = (),
    plan: Annotated[bool, Flag] = False,
    apply: str | None = None,
    force: Annotated[bool, Flag] = False,
    instance: Instance = Instance(),
) -> Exit:
    """Bring TARGET to the state of SOURCE. Both lie under a root of the instance (`undrift up --root`).

    Exit code 0 when all went well, 1 when it failed or some files could not be synced, 4 when a deletion guard holds
    the plan, 6 when the folders are no longer as they were when the plan of --apply was made.

    Parameters
    ----------
    source
        The folder to copy from; a relative path begins where you are.
    target
        The folder to bring to its state.
    delete
        Mirror: remove from the target what the source no longer has. It goes to the trash.
    no_verify
        Trust size and time: do not compare contents, do not read copies back.
    exclude
        Leave out what matches this pattern, by name or by path; may be given several times.
    plan
        Show what would be done, and the hash of that plan; change nothing.
    apply
        Carry out exactly the plan of this hash, or nothing.
    force
        Carry out what a deletion guard would hold.
    """
    body = {
        "sourceDirectory": _folder(source),
        "targetDirectory": _folder(target),
        "deleteMissingInTarget": delete,
        "verifyIntegrity": not no_verify,
        "excludePatterns": list(exclude),
        "force": force,
    }
    if plan and apply is not None:
        raise Problem(Exit.USAGE, "give --plan or --apply, not both")
    client = instance.connect()
    if plan:
        return _show_plan(client, body, instance)
    return _carry_out(client, body, {} if apply is None else {"If-Match": f'"{apply}"'}, instance)


def _folder(text: str) -> str:
    if not text:
        raise Problem(Exit.USAGE, "a folder cannot be an empty name")
    found = os.path.abspath(os.path.expanduser(text))
    try:
        found.encode()
    except UnicodeEncodeError:
        raise Problem(Exit.USAGE, f"{printable(found)} is not UTF-8, so no request can name it") from None
    return found


def _show_plan(client: Client, body: Mapping[str, Any], instance: Instance) -> Exit:
    made = client.post(PATH, body, headers={"Prefer": "return=plan"}, timeout_s=_PLAN_S).body
    if instance.json:
        emit(made)
    else:
        _print_plan(made)
    for error in made["errors"]:
        remark(f"not to be read: {error}")
    if not made.get("held"):
        return Exit.OK
    remark(f"A guard would hold this plan: {made['held']}. To carry it out: --apply {made['planHash']}, or --force")
    return Exit.HELD


def _print_plan(made: Mapping[str, Any]) -> None:
    from rich.table import Table

    shown, total = made["actions"], made["actionCount"]
    if shown:
        table = Table("action", "path", "reason", box=None, pad_edge=False)
        for one in shown:
            reason = one["reason"] + (" (conflict)" if one.get("conflict") else "")
            table.add_row(*(printable(text) for text in (one["action"], one["path"], reason)))
        out = console()
        if not out.is_terminal:
            out.width = 1000
        out.print(table, markup=False)
    if total > len(shown):
        say(f"… and {total - len(shown)} more")
    counted = ", ".join(f"{made[name]} {name}" for name in ("created", "updated", "deleted", "conflicts"))
    say(f"{counted}, {made['bytes']} bytes")
    say(f"plan {made['planHash']}")


def _carry_out(client: Client, body: Mapping[str, Any], headers: Mapping[str, str], instance: Instance) -> Exit:
    key = uuid.uuid4().hex
    prefer = {**headers, "Prefer": "respond-async"}
    accepted = client.post(PATH, body, headers=prefer, key=key, timeout_s=_PLAN_S).body

    def answer(job: dict[str, Any]) -> Exit:
        if job["status"] != "completed":
            return _not_completed(job, instance)
        # The same key again, now without a wish to be answered early: the result, from the job's own end.
        return _completed(job, client.post(PATH, body, headers=headers, key=key).body, instance)

    return watching.interruptible(client, accepted["jobId"], instance, answer)


def _completed(job: Mapping[str, Any], result: Mapping[str, Any], instance: Instance) -> Exit:
    if instance.json:
        emit({"jobId": job["id"], "status": job["status"], **result, "result": job.get("result")})
    else:
        conflicts = f", {result['conflictsEncountered']} conflicts"
        say(f"{watching.counts(job)}{conflicts} in {watching.duration(job)} ({job['id']})")
    for error in result["errors"]:
        remark(f"not synced: {error}")
    return Exit.OK if result["success"] else Exit.FAILED


def _not_completed(job: Mapping[str, Any], instance: Instance) -> Exit:
    code, sentence = watching.outcome(job, instance)
    if instance.json:
        emit({"jobId": job["id"], "status": job["status"], "error": job.get("error")})
    remark(sentence)
    return code
