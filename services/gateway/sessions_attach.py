"""The sync session that a request names: what it queues or opens becomes part of it, in the same append."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace

from domain import errors, jobs, messages, sessions
from infra.eventstore.store import Done, Wish
from projections import sessions as sessions_read
from services import sessions as services
from services.gateway.routes import Call, Parameter

HEADER = Parameter(
    "Undrift-Session", {"type": "string"}, "the sync session that what is made here is part of", where="header"
)

_ID = re.compile(r"session-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Whatever attaches to one session writes the same stream, so it takes turns rather than to try again.
_TURNS: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()


def check_id(id: str) -> str:
    """Raises errors.NotFound for what cannot be one."""
    if not _ID.fullmatch(id):
        raise errors.NotFound("There is no such session", kind="session")
    return id


def turn(call: Call, id: str) -> AbstractAsyncContextManager[object]:
    return _TURNS.setdefault((call.tenant, id), asyncio.Lock())


async def named(call: Call) -> str | None:
    """The session that `Undrift-Session` names, whose lease is renewed by that; None without the header.

    Raises errors.NotFound where there is none in this tenant, errors.Ended where nothing can be attached any more.
    """
    raw = call.fields.get(b"undrift-session")
    if raw is None:
        return None
    id = check_id(raw.strip().decode("latin-1"))
    sessions.decide(sessions.Attach("job", ""), await _state(call, id))
    await services.name(call.api.process.db, call.tenant, id)
    return id


async def _state(call: Call, id: str) -> sessions.Session:
    """As the read model has it, which may be a little old: the append itself is what judges in the end."""
    row = await sessions_read.get(call.api.process.db, call.tenant, id)
    if row is not None:
        status = msgspec.convert(row.status, sessions.Status)
        return sessions.Session(status, row.closing, row.attached)
    stream = messages.stream(sessions.STREAM, call.tenant, id)
    state: sessions.Session = (await call.api.process.store.load(sessions, stream)).state
    return state


async def queue(call: Call, queued: jobs.Queued, *before: Wish) -> Done:
    """Queues a job behind `before`, and attaches it to the session that the request names. Raises as `named`: then
    nothing is queued."""
    id = await named(call)
    if id is not None:
        queued = replace(queued, session=id)
    wish = Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True)
    return await attached(call, id, "job", [*before, wish])


async def attached(call: Call, id: str | None, kind: sessions.Kind, wishes: Sequence[Wish]) -> Done:
    """Carries out what makes a job or an upload, whose id is that of the last wish, as part of a session."""
    if id is None:
        return await call.execute(wishes)
    async with turn(call, id):
        return await call.execute([*wishes, Wish(sessions, id, sessions.Attach(kind, wishes[-1].id))])
