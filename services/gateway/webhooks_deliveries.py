"""What a webhook was and will be sent: each delivery, another attempt, and the same messages for one who asks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import Record
from msgspec import Raw

from domain import errors, messages, webhooks
from infra.eventstore import past
from infra.eventstore.store import Done
from services import deliverable
from services.gateway import bodies
from services.gateway import webhooks as subscriptions
from services.gateway import webhooks_shapes as shapes
from services.gateway.routes import Call, Parameter

LIMIT = 100
LIMIT_MAX = 500
#: A page ends with the message that takes it beyond this.
_ENOUGH = 4 * 1024 * 1024
STATES = ("pending", "delivered", "exhausted", "dropped")
_SEQ = re.compile(r"[1-9][0-9]{0,17}")
_LAST = 2**62

_PAGE = (
    "select * from undrift.deliveries where tenant = $1 and endpoint = $2 and seq < $3"
    " and ($4::text is null or state = $4) and ($5::text is null or replay = $5) order by seq desc limit $6"
)
_MESSAGES = "select * from undrift.deliveries where tenant = $1 and endpoint = $2 and seq > $3 order by seq limit $4"
_BOUNDS = (
    "select e.seq as last, (select min(d.seq) from undrift.deliveries d"
    " where d.tenant = e.tenant and d.endpoint = e.endpoint) as first"
    " from undrift.endpoints e where e.tenant = $1 and e.endpoint = $2"
)
_AGAIN = (
    "update undrift.deliveries set state = 'pending', asked = true, attempts = 0, due = clock_timestamp()"
    " where tenant = $1 and endpoint = $2 and seq = $3 returning seq"
)

LIST_QUERY = (
    Parameter("state", {"type": "string", "enum": list(STATES)}, "only those"),
    Parameter("replay", {"type": "string"}, "only those of this replay"),
    Parameter("before", {"type": "integer"}, "the `next` of the page before"),
    Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
)
EVENTS_QUERY = (
    Parameter("after", {"type": "integer", "default": 0, "minimum": 0}, "the number to read on from"),
    Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
    Parameter("epoch", {"type": "integer"}, "the epoch of `after`; another one is answered 410"),
)


async def list_(call: Call) -> Any:
    query = call.query()
    state = query.get("state")
    if state is not None and state not in STATES:
        raise errors.Invalid(f"state is one of {', '.join(STATES)}")
    before = bodies.integer(query, "before", _LAST, 1, _LAST)
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    row = await subscriptions.own(call)
    database = call.api.process.db
    found = await database.fetch(_PAGE, call.tenant, row.id, before, state, query.get("replay"), limit + 1)
    more = found[limit - 1]["seq"] if len(found) > limit else None
    page = shapes.Deliveries([shapes.delivery(one) for one in found[:limit]], more)
    return call.reply(page, await call.caught_up(webhooks.STREAM))


async def redeliver(call: Call) -> Any:
    """Once more, whatever became of it; the same message under the same id."""
    done = await call.earlier(webhooks)
    number = call.path("seq")
    if done is None:
        row = await subscriptions.own(call)
        if row.reason is not None:
            raise errors.InvalidState("The webhook is disabled; enable it first")
        if not _SEQ.fullmatch(number) or not await _again(call, row.id, int(number)):
            raise errors.NotFound("There is no such delivery", kind="delivery")
        done = await _remembered(call)
    return call.reply(shapes.Redelivered(True, int(number), "pending"), done.position)


async def _again(call: Call, id: str, seq: int) -> bool:
    found = await call.api.process.db.fetchval(_AGAIN, call.tenant, id, seq)
    return found is not None


async def _remembered(call: Call) -> Done:
    """Nothing for the log; with an idempotency key it is not done twice."""
    if call.key() is None:
        return Done(await call.caught_up(webhooks.STREAM), None, [])
    return await call.execute([])


async def events(call: Call) -> Any:
    """The messages of a webhook by number, without gaps: what was posted and did not arrive is here."""
    query, process = call.query(), call.api.process
    after = bodies.integer(query, "after", 0, -1, _LAST)
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    epoch = bodies.integer(query, "epoch", process.epoch, 0, 2**31)
    row = await subscriptions.own(call)
    first, last = await _bounds(call, row.id)
    _check(after, last, epoch, process.epoch)
    rows = await process.db.fetch(_MESSAGES, call.tenant, row.id, after, limit)
    shown = await _shown(call, rows)
    reached = shown[-1].seq if shown else after
    page = shapes.Page(shown, reached, first, max(last, reached), process.epoch)
    return call.reply(page, await call.caught_up(webhooks.STREAM))


def _check(after: int, last: int, epoch: int, present: int) -> None:
    """A number of another history is never served from this one."""
    if after < 0:
        raise errors.Invalid("after is the number of a message, or 0")
    if epoch != present or (after > last and present > 1):
        resync = {"after": 0, "epoch": present, "last": last}
        raise errors.Gone("That number belongs to another history; read again from the start", resync=resync)
    if after > last:
        raise errors.Invalid(f"after is ahead of the messages, which end at {last}")


async def _bounds(call: Call, id: str) -> tuple[int, int]:
    """The oldest number that is kept, or the next one; and the last that was given out."""
    row = await call.api.process.db.fetchrow(_BOUNDS, call.tenant, id)
    if row is None:
        return 1, 0
    return row["first"] or row["last"] + 1, row["last"]


async def _shown(call: Call, rows: Sequence[Record]) -> list[shapes.Message]:
    """As many as fit into a page, at least one."""
    store = call.api.process.store
    recorded = {one.position: one for one in await past.chosen(store, sorted({row["position"] for row in rows}))}
    found: list[shapes.Message] = []
    size = 0
    for row in rows:
        body = await _body(call, row, recorded)
        found.append(_message(row, body))
        size += len(body)
        if size > _ENOUGH:
            break
    return found


async def _body(call: Call, row: Record, recorded: Mapping[int, messages.Recorded]) -> bytes:
    one = recorded.get(row["position"])
    if one is None or isinstance(one.event, messages.Unreadable):
        return b"null"
    return await deliverable.body(call.api.process.store, one, row["name"], row["replay"])


def _message(row: Record, body: bytes) -> shapes.Message:
    return shapes.Message(
        seq=row["seq"],
        position=row["position"],
        webhook_id=row["message"],
        name=row["name"],
        state=row["state"],
        replay=row["replay"],
        body=Raw(body),
    )
