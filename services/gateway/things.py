"""What has a history: the kinds of things, where one is read and by whom, and the stream that its events are in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from domain import devices, errors, integrations, jobs, library, messages, servers, sessions
from projections import library as library_read
from services.gateway.auth import Principal
from services.gateway.dialects import EONACAT, JOBS, PINAKES, WINGS, Dialect
from services.gateway.routes import Call


class Source(Struct, frozen=True):
    """The stream of a thing and its first event; `conflict` where only what is said of that one is meant."""

    stream: str
    first: messages.Recorded
    conflict: str | None = None

    def tells(self, recorded: messages.Recorded) -> bool:
        """Whether an event of the stream is about the thing."""
        return self.conflict is None or getattr(recorded.event, "conflict", None) == self.conflict


class Thing(Struct, frozen=True):
    """`path` is where one is read, with its `parameter`; `find` raises NotFound for what is unknown or foreign, and
    Forbidden for one's own that is not allowed. What was deleted is found all the same: its past is not deleted."""

    kind: str
    path: str
    parameter: str
    dialect: Dialect
    needs: str | None
    find: Callable[[Call, str], Awaitable[Source]]

    @property
    def route(self) -> str:
        return f"{self.path}/{{{self.parameter}:str}}"


async def source(call: Call, context: Any, id: str) -> Source | None:
    """The stream of that name in the principal's tenant, if there is one."""
    stream = messages.stream(context.STREAM, call.tenant, id)
    first = (await call.api.process.store.at([(stream, 1)])).get(stream)
    return None if first is None else Source(stream, first)


async def _job(call: Call, id: str) -> Source:
    found = await source(call, jobs, id)
    if found is None:
        raise errors.NotFound("There is no such job", kind="job")
    check_job(call.principal, found.first.metadata.actor)
    return found


def check_job(principal: Principal, actor: str) -> None:
    """A key may always read the jobs that it queued. Raises errors.Forbidden."""
    if not principal.may("jobs:read") and actor != principal.actor:
        raise errors.Forbidden("This needs the scope jobs:read")


async def _integration(call: Call, id: str) -> Source:
    found = await source(call, integrations, id)
    if found is None:
        raise errors.NotFound("There is no such integration", kind="integration")
    return found


async def _session(call: Call, id: str) -> Source:
    found = await source(call, sessions, id)
    if found is None:
        raise errors.NotFound("There is no such session", kind="session")
    return found


async def _server(call: Call, id: str) -> Source:
    found = await source(call, servers, id)
    if found is None:
        raise errors.NotFound("There is no such server", kind="server")
    return found


async def _own(call: Call, context: Any, id: str, noun: str) -> Source:
    found = await source(call, context, id)
    if found is None or found.first.metadata.owner != call.principal.owner:
        raise errors.NotFound(f"There is no such {noun}", kind=noun)
    return found


async def _device(call: Call, id: str) -> Source:
    found = await _own(call, devices, id, "device")
    if call.principal.kind == "device" and id != call.principal.id:
        raise errors.Forbidden("This token belongs to another device")
    return found


async def _file(call: Call, id: str) -> Source:
    return await _own(call, library, id, "file")


async def _conflict(call: Call, id: str) -> Source:
    """Which file it is a fact about is known to the read model."""
    await call.caught_up(library.STREAM)
    row = await library_read.conflict(call.api.process.db, call.tenant, call.principal.owner, id)
    found = None if row is None else await source(call, library, row.file)
    if found is None:
        raise errors.NotFound("There is no such conflict", kind="conflict")
    return Source(found.stream, found.first, id)


JOB = Thing("jobs", "/api/sync/jobs", "job_id", JOBS, None, _job)
INTEGRATION = Thing("integrations", "/api/sync/integrations", "integration_id", JOBS, "jobs:read", _integration)
SESSION = Thing("sessions", "/api/v1/sync/session", "sync_session_id", EONACAT, "sessions:read", _session)
DEVICE = Thing("devices", "/api/v1/sync/devices", "device_id", PINAKES, None, _device)
FILE = Thing("files", "/api/v1/sync/media", "media_id", PINAKES, None, _file)
CONFLICT = Thing("conflicts", "/api/v1/sync/conflicts", "conflict_id", PINAKES, None, _conflict)
SERVER = Thing("servers", "/api/servers", "server", WINGS, None, _server)

THINGS: Sequence[Thing] = (JOB, INTEGRATION, SESSION, DEVICE, FILE, CONFLICT, SERVER)
