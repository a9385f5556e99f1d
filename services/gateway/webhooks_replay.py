"""Replays: what a webhook is sent once more, or for the first time, out of the log."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from domain import catalogue, errors, jobs, messages, webhooks
from infra.eventstore import past
from services.gateway import as_of
from services.gateway import webhooks as subscriptions
from services.gateway import webhooks_shapes as shapes
from services.gateway.routes import Call

_ENDS = (messages.topic(jobs.Completed), messages.topic(jobs.Failed))
# What ends a job has its second name only if that job was a sync.
_COUNTS = """
select topic, count(*) as total,
    count(*) filter (where case when topic = any ($5)
        then convert_from(state, 'UTF8')::json #>> '{ticket,kind}' = any ($6) else true end) as under_alias
from undrift.events where tenant = $1 and pos between $2 and $3 and topic = any ($4)
group by topic
"""


async def replay(call: Call) -> Any:
    body = await call.body(shapes.Replay)
    done = await call.earlier(webhooks)
    if done is None:
        row = await subscriptions.own(call)
        names = row.events if body.events is None else catalogue.check(body.events)
        first, until = await _range(call, body)
        count = await _count(call, names, first, until)
        if body.dry_run:
            return call.reply(shapes.Replayed(None, count, first, until, True), await call.caught_up())
        most = call.api.process.settings.webhooks.replay_events
        if count > most:
            raise errors.Invalid(f"These are {count} messages; a replay has at most {most}")
        command = webhooks.Replay(f"rp-{uuid.uuid4().hex}", first, until, tuple(names), count)
        done = await subscriptions.execute(call, command)
    event = done.events[0].event
    assert isinstance(event, webhooks.Replayed)
    made = shapes.Replayed(event.replay, event.count, event.first, event.until, False)
    return call.reply(made, done.position)


async def _range(call: Call, body: shapes.Replay) -> tuple[int, int]:
    """The first and the last position; an empty range of times has its last before its first."""
    if (body.from_position is None) == (body.from_time is None):
        raise errors.Invalid("One of fromPosition and fromTime is required")
    if body.until_position is not None and body.until_time is not None:
        raise errors.Invalid("One of untilPosition and untilTime is enough")
    head = await call.api.process.store.head()
    for name, position in (("fromPosition", body.from_position), ("untilPosition", body.until_position)):
        if position is not None and position > head:
            raise errors.Invalid(f"{name} is ahead of the log, which ends at {head}")
    first = body.from_position or await _first_at(call, body.from_time or "")
    until = body.until_position or (head if body.until_time is None else await _last_at(call, body.until_time))
    if until < first - 1 or (until < first and body.from_position is not None and body.until_position is not None):
        raise errors.Invalid("The range ends before it begins")
    return first, until


async def _first_at(call: Call, text: str) -> int:
    """The first position that was recorded at a time or later. A time is as exact as times are shown."""
    at = await as_of.passed(call, "fromTime", text)
    return await past.position_before(call.api.process.db, at.replace(microsecond=at.microsecond // 1000 * 1000)) + 1


async def _last_at(call: Call, text: str) -> int:
    at = await as_of.passed(call, "untilTime", text)
    return await past.position_before(call.api.process.db, as_of.end_of(at))


async def _count(call: Call, names: Sequence[str], first: int, until: int) -> int:
    """How many messages: one for each name under which an event goes out."""
    wanted = [
        (messages.topic(kind), name)
        for name, kinds in catalogue.PUBLIC.items()
        if catalogue.matches(names, name)
        for kind in kinds
    ]
    topics = sorted({topic for topic, _ in wanted})
    rows = await call.api.process.db.fetch(
        _COUNTS, call.tenant, first, until, topics, list(_ENDS), sorted(catalogue.SYNC_KINDS)
    )
    counts = {row["topic"]: row for row in rows}
    return sum(counts[topic]["total" if topic == name else "under_alias"] for topic, name in wanted if topic in counts)
