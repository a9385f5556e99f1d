"""An event in a sentence, and the rule that made it so."""

from __future__ import annotations

from msgspec import Struct

from domain import devices, integrations, items, jobs, keys, library, messages, servers, sessions
from domain.schedules import Schedule

_RULES = {
    "edit_edit": "both sides changed the file since the device last knew it",
    "create_create": "both sides made a file at the same path, with different content",
    "edit_delete": "the device changed what had been deleted meanwhile",
    "delete_edit": "the device deleted what had been changed meanwhile",
    "move_edit": "the device moved what had been changed meanwhile",
    "move_delete": "the device moved what had been deleted meanwhile",
    "move_target": "something else stands where the device moved the file to",
}
_STEPS = {
    "registered": "was registered",
    "token_regenerated": "has a new token; the old one opens nothing",
    "stop_requested": "was asked to stop",
    "checkpointed": "kept what it had brought so far",
    "completion_requested": "was to be completed",
    "conflict_reopened": "is open again",
    "limits_changed": "has other limits",
    "environment_changed": "has another environment",
    "startup_changed": "is started in another way",
    "allocations_changed": "has other addresses",
    "mounts_changed": "has other mounts",
    "files_restricted": "has other files that nobody may touch",
    "process_changed": "is watched and stopped in another way",
    "crash_detection_changed": "has its crash detection switched",
    "rolled_back": "returned to an earlier configuration",
    "tokens_denied": "lets in certain tokens no more",
    "user_deauthorized": "lets in a certain user's tokens no more",
    "crashed": "crashed",
    "start_failed": "could not be started",
}
#: Of many names so many are told.
_NAMED = 20


class Rule(Struct):
    """Why it came out like this and not otherwise: its name, and what it says."""

    name: str
    text: str


def bare(recorded: messages.Recorded) -> str:
    """One sentence of nothing but what it is and what became of it."""
    return f"{_noun(recorded)} {_step(recorded)}"


def summary(recorded: messages.Recorded) -> str:
    """One sentence."""
    event, noun = recorded.event, _noun(recorded)
    match event:
        case jobs.Queued():
            what = f"a {event.ticket.type.replace('_', ' ')} of {event.ticket.integration or event.ticket.kind}"
            return f"{noun} was queued: {what}" + (", as scheduled" if event.trigger == "schedule" else "")
        case jobs.Progressed():
            return f"{noun} was at {event.progress} % ({event.stage})"
        case jobs.Completed(counters=done) | jobs.Stopped(counters=done) | jobs.Failed(counters=done):
            did = f"{done.created} created, {done.updated} updated, {done.deleted} deleted, {done.errors} errors"
            why = f": {event.message}" if isinstance(event, jobs.Failed) else ""
            return f"{noun} {_step(recorded)}{why} ({did})"
        case jobs.Held():
            return f"{noun} was held: {event.reason}"
        case jobs.Paused():
            return f"{noun} was paused: {event.reason}"
        case items.Created() | items.Updated() | items.Deleted():
            return f"{event.entity}/{event.item} was {_step(recorded)} from {event.source}"
        case library.ConflictFound():
            return f"{noun} was found in a report of a device"
        case library.ConflictResolved():
            return f"{noun} was resolved: {event.resolution}"
        case sessions.Attached():
            return f"{noun} was given the {event.kind} {event.item}"
        case sessions.Failed():
            return f"{noun} failed: {event.message}"
        case servers.EnvironmentChanged():
            return f"{noun} {_step(recorded)}: {', '.join(event.names[:_NAMED])}"
        case servers.PowerAsked():
            return f"{noun} was to {event.action}, as {event.by} wished"
        case servers.PowerChanged():
            return f"{noun} was {event.power}" + ("" if event.exit_code is None else f" ({event.exit_code})")
        case keys.Added():
            return f"The key {event.name} was added"
        case _:
            return bare(recorded)


def _noun(recorded: messages.Recorded) -> str:
    context = recorded.stream.partition("/")[0]
    if isinstance(recorded.event, library.ConflictFound | library.ConflictResolved | library.ConflictReopened):
        return f"The conflict {recorded.event.conflict}"
    nouns = {"library": "file", "accounts": "user", "keys": "key"}
    return f"The {nouns.get(context, context.removesuffix('s'))} {recorded.id}"


def _step(recorded: messages.Recorded) -> str:
    name = messages.topic(recorded.event).partition(".")[2]
    active = {"started", "completed", "failed"} if recorded.stream.startswith(("jobs/", "sessions/")) else set()
    if recorded.stream.startswith("items/"):
        return name
    return _STEPS.get(name) or (name if name in active else f"was {name.replace('_', ' ')}")


def rule(recorded: messages.Recorded) -> Rule | None:
    """What decided it, where that was a rule and not somebody's wish alone."""
    event = recorded.event
    match event:
        case library.ConflictFound():
            return Rule(event.rule, _RULES.get(event.rule, event.rule))
        case jobs.Queued():
            return _of_queued(event)
        case jobs.Held():
            return Rule("guard", f"{event.reason}; the plan {event.plan} is carried out once somebody confirms it")
        case jobs.Paused() if event.until is not None:
            return Rule("retry", f"what may pass is tried again: attempt {event.tried} failed of {event.code}")
        case jobs.Resumed() if event.retry:
            return Rule("retry", "the time of its next attempt had come")
        case jobs.Stopped() if event.reason == "deadline":
            return Rule("deadline", "whoever waited for it waits no longer, so nothing more was done")
        case integrations.Created() | integrations.Changed():
            schedule = integrations.schedule(event)
            return None if schedule is None else Rule("schedule", _said(schedule))
        case integrations.Overdue():
            return Rule("tolerance", f"the run that was due at {event.due.isoformat()} had not begun in time")
        case devices.Stale():
            return Rule("stale", "nothing was heard of the device for longer than `library.stale_days`")
        case sessions.Failed():
            words = {"abandoned": "nobody named the session within its lease", "incomplete": event.message}
            return Rule(event.reason, words[event.reason])
        case _:
            return None


def _of_queued(event: jobs.Queued) -> Rule | None:
    if event.trigger == "schedule" and event.due is not None:
        return Rule("schedule", f"it was due at {event.due.isoformat()}")
    if event.requested_type is not None:
        return Rule("baseline", "an incremental sync that has nothing to go on from runs in full")
    return None


def _said(schedule: Schedule) -> str:
    parts = []
    if schedule.every is not None:
        parts.append(f"every {schedule.every} s")
    if schedule.cron is not None:
        parts.append(f"at `{schedule.cron}` ({schedule.time_zone})")
    if schedule.full_every is not None:
        parts.append(f"in full every {schedule.full_every} s")
    if schedule.full_cron is not None:
        parts.append(f"in full at `{schedule.full_cron}` ({schedule.time_zone})")
    return "; ".join(parts) or "no time"
