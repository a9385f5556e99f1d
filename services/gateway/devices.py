"""Devices of a user, and which of them a request speaks for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import devices, errors
from infra import secrets
from infra.db import Database
from infra.eventstore.store import Done, Wish
from projections import devices as devices_read
from services import tokens
from services.gateway import as_of
from services.gateway.as_of import AS_OF, Moment
from services.gateway.cursors import Cursors
from services.gateway.dialects import PINAKES, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route
from services.gateway.things import DEVICE as DEVICE_THING

_RECENTLY = "d.last_seen_at > clock_timestamp() - interval '5 seconds'"
_SEEN = f"""
select r.*, d.delivered_pos, d.acked_pos, d.last_seen_at, d.last_sync_at,
    coalesce({_RECENTLY}, false) as recently
from {devices_read.SCHEMA}.devices r left join undrift.device_state d on d.device = r.id
where r.tenant = $1 and r.owner = $2 and r.id = $3"""

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=255)]


class Register(Struct):
    name: Name
    device_type: devices.Type
    client_version: Text
    os_info: Text | None = None


class Change(Struct):
    name: Name | None = None
    enabled: bool | None = None


class Device(Struct):
    id: str
    name: str
    device_type: str
    client_version: str
    os_info: str | None
    last_sync_at: Timestamp | None
    last_seen_at: Timestamp | None
    sync_cursor: str | None
    enabled: bool
    created_at: Timestamp


class Registered(Struct):
    """`device_token` is shown here and nowhere else."""

    device: Device
    device_token: str


class State(Struct, frozen=True):
    """How far a device has come in the feed; positions."""

    delivered: int = 0
    acked: int = 0
    last_seen_at: datetime | None = None
    last_sync_at: datetime | None = None


class Seen(Struct, frozen=True):
    """A device that a request speaks for, and its state."""

    row: devices_read.Row
    state: State


async def states(database: Database, ids: Sequence[str]) -> dict[str, State]:
    rows = await database.fetch("select * from undrift.device_state where device = any ($1)", list(ids))
    return {row["device"]: _state(row) for row in rows}


def _state(row: Any) -> State:
    return State(row["delivered_pos"], row["acked_pos"], row["last_seen_at"], row["last_sync_at"])


async def of_call(call: Call, named: str | None = None) -> Seen:
    """The device a request speaks for: its own token, `X-Device-Token` beside a user's, `named` in query or body, or
    the only enabled one.

    Raises errors.Invalid where none can be told, Unauthenticated for a token that is none, NotFound, and Forbidden
    for a device that is disabled or not the one whose token this is.
    """
    principal = call.principal
    token = call.fields.get(b"x-device-token")
    if principal.kind == "device":
        if named is not None and named != principal.id:
            raise await _other(call, named)
        found: str | None = principal.id
    elif token is not None:
        device = await call.api.authenticator.device(token)
        if device is None or (device.tenant, device.owner) != (principal.tenant, principal.owner):
            raise errors.Unauthenticated("The device token opens nothing")
        found = device.id
    else:
        found = named
    await call.caught_up(devices.STREAM)
    seen = await _seen(call, (await _only(call)).id if found is None else found)
    if not seen.row.enabled:
        raise errors.Forbidden("The device is disabled")
    return seen


async def _seen(call: Call, id: str) -> Seen:
    """A user's own device, in one look; that it was heard of is written at most every few seconds."""
    database = call.api.process.db
    found = await database.fetchrow(_SEEN, call.tenant, call.principal.owner, id)
    if found is None:
        raise _unknown()
    row = devices_read.Row(*(found[name] for name in devices_read.Row.__struct_fields__))
    if not found["recently"]:
        await _touch(database, row)
    return Seen(row, State() if found["delivered_pos"] is None else _state(found))


async def _only(call: Call) -> devices_read.Row:
    rows = await devices_read.list_(call.api.process.db, call.tenant, call.principal.owner)
    enabled = [row for row in rows if row.enabled]
    if len(enabled) != 1:
        raise errors.Invalid("Name the device: X-Device-Token, or device_id")
    return enabled[0]


async def _own(call: Call, id: str) -> devices_read.Row:
    row = await devices_read.get(call.api.process.db, call.tenant, call.principal.owner, id)
    if row is None:
        raise _unknown()
    return row


def _unknown() -> errors.NotFound:
    return errors.NotFound("There is no such device", kind="device")


async def _other(call: Call, id: str) -> errors.Error:
    """A device's token on another device: forbidden where that is the same user's, else there is no such device."""
    await _own(call, id)
    return errors.Forbidden("This token belongs to another device")


async def _touch(database: Database, row: devices_read.Row) -> None:
    await database.execute(
        "insert into undrift.device_state as d (device, tenant, owner, last_seen_at)"
        " values ($1, $2, $3, clock_timestamp())"
        " on conflict (device) do update set last_seen_at = excluded.last_seen_at"
        f" where d.last_seen_at is null or not ({_RECENTLY})",
        row.id,
        row.tenant,
        row.owner,
    )


# What it looks like.


def shape(call: Call, row: devices_read.Row, state: State) -> Device:
    process = call.api.process
    cursor = None
    if state.acked:
        cursor = Cursors(process.master).make(row.tenant, row.owner, process.epoch, state.acked)
    return Device(
        id=row.id,
        name=row.name,
        device_type=row.device_type,
        client_version=row.client_version,
        os_info=row.os_info,
        last_sync_at=None if state.last_sync_at is None else timestamp_ms(state.last_sync_at),
        last_seen_at=None if state.last_seen_at is None else timestamp_ms(state.last_seen_at),
        sync_cursor=cursor,
        enabled=row.enabled,
        created_at=timestamp_ms(row.created_at),
    )


async def _shown(call: Call, id: str) -> tuple[Device, int]:
    position = await call.caught_up(devices.STREAM)
    row = await _own(call, id)
    found = (await states(call.api.process.db, [id])).get(id, State())
    return shape(call, row, found), position


async def _allowed(call: Call) -> str:
    """The device of the path: a user's own, or the one whose token this is."""
    id = call.path("device_id")
    if call.principal.kind == "device" and id != call.principal.id:
        raise await _other(call, id)
    return id


# Routes.


async def list_(call: Call) -> Any:
    position = await call.caught_up(devices.STREAM)
    rows = await devices_read.list_(call.api.process.db, call.tenant, call.principal.owner)
    found = await states(call.api.process.db, [row.id for row in rows])
    return call.reply([shape(call, row, found.get(row.id, State())) for row in rows], position)


def _token(call: Call, device: str, number: int) -> str:
    """Derived, so that a retry shows the same one and nothing keeps it."""
    return f"udd_{device}_{secrets.token(call.api.process.master, 'device', device, str(number))}"


async def register(call: Call) -> Any:
    body = await call.body(Register)
    if call.principal.kind != "user":
        raise errors.Forbidden("A device cannot register another")
    done = await call.earlier(devices)
    if done is None:
        id = str(uuid.uuid4())
        command = devices.Register(
            body.name, body.device_type, body.client_version, body.os_info, tokens.digest(_token(call, id, 1))
        )
        done = await call.execute([Wish(devices, id, command, fresh=True)])
    # The token opens something once the read model knows it.
    await call.api.reads.reached(done.position, call.api.process.settings.gateway.read_wait_s)
    first = done.events[0]
    assert isinstance(first.event, devices.Registered)
    made = Device(
        id=first.id,
        name=first.event.name,
        device_type=first.event.device_type,
        client_version=first.event.client_version,
        os_info=first.event.os_info,
        last_sync_at=None,
        last_seen_at=None,
        sync_cursor=None,
        enabled=True,
        created_at=timestamp_ms(first.recorded_at),
    )
    return call.reply(Registered(made, _token(call, first.id, 1)), done.position)


async def show(call: Call) -> Any:
    """With `as_of` as it was then: when it was last seen, and how far it had come, is null where it has moved since."""
    if (moment := await as_of.wanted(call)) is not None:
        return call.reply(await _was(call, moment), moment.position)
    device, position = await _shown(call, await _allowed(call))
    return call.reply(device, position)


async def _was(call: Call, moment: Moment) -> Device:
    source = await DEVICE_THING.find(call, id := call.path(DEVICE_THING.parameter))
    process = call.api.process
    row = as_of.folded(await process.store.stream(source.stream, until=moment.position), devices_read.fold)
    if row is None:
        raise errors.NotFound("There was no such device then", kind="device")
    state = (await states(process.db, [id])).get(id, State())
    synced = moment.saw(state.last_sync_at)
    known = State(
        acked=state.acked if synced else 0,
        last_seen_at=state.last_seen_at if moment.saw(state.last_seen_at) else None,
        last_sync_at=state.last_sync_at if synced else None,
    )
    return shape(call, row, known)


async def change(call: Call) -> Any:
    body = await call.body(Change)
    id = await _allowed(call)
    await _own_or_written(call, id)
    done = await call.earlier(devices) or await call.execute(
        [Wish(devices, id, devices.Change(body.name, body.enabled))]
    )
    await call.api.reads.reached(done.position, call.api.process.settings.gateway.read_wait_s)
    device, _ = await _shown(call, id)
    return call.reply(device, done.position)


async def delete(call: Call) -> Any:
    id = await _allowed(call)
    done = await call.earlier(devices)
    if done is None:
        await _own_or_written(call, id)
        done = await call.execute([Wish(devices, id, devices.Delete())])
        call.api.authenticator.revoke(id)
    return Reply(204, b"", [(b"undrift-position", b"%d" % done.position)])


async def regenerate(call: Call) -> Any:
    id = await _allowed(call)
    done = await call.earlier(devices)
    if done is None:
        done = await _regenerate(call, id)
    event = done.events[0].event
    assert isinstance(event, devices.TokenRegenerated)
    call.api.authenticator.revoke_token(event.before_sha256)
    await call.api.reads.reached(done.position, call.api.process.settings.gateway.read_wait_s)
    device, _ = await _shown(call, id)
    return call.reply(Registered(device, _token(call, id, event.number)), done.position)


async def _regenerate(call: Call, id: str) -> Done:
    while True:
        row = await _own_or_written(call, id)
        token = tokens.digest(_token(call, id, row.tokens + 1))
        try:
            return await call.execute([Wish(devices, id, devices.RegenerateToken(token, row.tokens + 1))])
        except errors.Conflict:  # somebody else did at the same moment
            await call.api.reads.reached(await call.api.process.store.head(), 2)


async def _own_or_written(call: Call, id: str) -> devices_read.Row:
    await call.caught_up(devices.STREAM)
    return await _own(call, id)


_ERRORS = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)
_BASE = "/api/v1/sync/devices"
_ONE = _BASE + "/{device_id:str}"

#: How the other routes of the family are told their device.
DEVICE = (
    Parameter("X-Device-Token", {"type": "string"}, "the device, beside a user's credential", where="header"),
    Parameter("device_id", {"type": "string"}, "the device, beside a user's credential"),
)

ROUTES: Sequence[Route] = (
    Route("GET", _BASE, list_, PINAKES, "List devices", answers={200: list[Device]}, errors=_ERRORS),
    Route(
        "POST", _BASE, register, PINAKES, "Register a device", body=Register, answers={200: Registered}, errors=_WRITE
    ),
    Route("GET", _ONE, show, PINAKES, "One device", query=(AS_OF,), answers={200: Device}, errors=_ERRORS),
    Route("PUT", _ONE, change, PINAKES, "Rename, enable or disable", body=Change, answers={200: Device}, errors=_WRITE),
    Route("DELETE", _ONE, delete, PINAKES, "Forget a device", answers={204: None}, errors=_WRITE),
    Route(
        "POST",
        _ONE + "/token",
        regenerate,
        PINAKES,
        "A new token; the old one is dead at once",
        answers={200: Registered},
        errors=_WRITE,
    ),
)
