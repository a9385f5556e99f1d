"""Conflicts between devices: what they are, what each resolution would do, and resolving them, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import devices, errors, library, messages
from infra.eventstore.store import Wish
from projections import devices as devices_read
from projections import library as library_read
from services.conflicts import Conflicts
from services.gateway import as_of, bodies
from services.gateway import devices as device_routes
from services.gateway import library as library_routes
from services.gateway.as_of import AS_OF, Moment
from services.gateway.devices import DEVICE
from services.gateway.dialects import PINAKES
from services.gateway.library import Conflict, shape
from services.gateway.routes import Call, Parameter, Route
from services.gateway.things import CONFLICT
from services.resolutions import Settlement
from services.shelf import Who


class Resolve(Struct):
    resolution: library.Resolution


class Filter(Struct):
    """Which of the open conflicts: all of these hold."""

    path_prefix: str | None = None
    device_id: str | None = None
    rule: str | None = None


class ResolveMany(Struct):
    """Either `ids` or a `filter`."""

    resolution: library.Resolution
    ids: Annotated[list[str], Meta(max_length=1000)] | None = None
    filter: Filter | None = None


class Resolved(Struct):
    """`upload_required`: the library has yet to be sent the device's bytes; `kept_path` is where they are kept."""

    id: str
    resolution: str
    upload_required: bool
    kept_path: str | None


class Failed(Struct):
    id: str
    error: str


class ResolvedMany(Struct):
    resolved: list[Resolved]
    failed: list[Failed]


class Step(Struct):
    action: str
    path: str
    content_hash: str | None


class Preview(Struct):
    resolution: str
    upload_required: bool
    changes: list[Step]


class Explained(Struct):
    """A conflict, and what each resolution of it would do now."""

    conflict: Conflict
    resolutions: list[Preview]


def _who(call: Call) -> Who:
    device = call.principal.id if call.principal.kind == "device" else None
    return Who(call.tenant, call.principal.owner, call.principal.actor, device)


async def _find(call: Call, id: str) -> library_read.Conflict:
    row = await library_read.conflict(call.api.process.db, call.tenant, call.principal.owner, id)
    if row is None:
        raise errors.NotFound("There is no such conflict", kind="conflict")
    return row


async def _named(call: Call, row: library_read.Conflict) -> tuple[str, str]:
    """What a copy of the device's side is called after: the device, and today."""
    device = await devices_read.get(call.api.process.db, call.tenant, call.principal.owner, row.device)
    return "" if device is None else device.name, datetime.now(UTC).date().isoformat()


async def list_(call: Call) -> Any:
    position = await call.caught_up(library.STREAM)
    query = call.query()
    limit = bodies.integer(query, "limit", 1000, 1, 1000)
    after = bodies.integer(query, "after", 0, 0, 2**62)
    rows = await library_read.open_conflicts(call.api.process.db, call.tenant, call.principal.owner, after, limit)
    if query.get("mine", "false") not in ("true", "false"):
        raise errors.Invalid("mine is true or false")
    if query.get("mine") == "true":
        mine = (await device_routes.of_call(call, query.get("device_id"))).row.id
        rows = [row for row in rows if row.device == mine]
    return call.reply([shape(row) for row in rows], position)


async def show(call: Call) -> Any:
    """Also one that is resolved, with what it came to. With `as_of` as it was then, and what each resolution would
    have done then."""
    if (moment := await as_of.wanted(call)) is not None:
        return await _was(call, moment)
    position = await call.caught_up(library.STREAM)
    row = await _find(call, call.path("conflict_id"))
    explained = await _explained(call, row, await _named(call, row), library_routes.conflicts_of(call))
    return call.reply(explained, position)


async def _was(call: Call, moment: Moment) -> Any:
    source = await CONFLICT.find(call, call.path(CONFLICT.parameter))
    await as_of.reached(call, moment)
    store = call.api.process.store
    told = [one for one in await store.stream(source.stream, until=moment.position) if source.tells(one)]
    row = as_of.folded(told, library_read.fold_conflict)
    if row is None:
        raise errors.NotFound("There was no such conflict then", kind="conflict")
    stream = messages.stream(devices.STREAM, call.tenant, row.device)
    device = as_of.folded(await store.stream(stream, until=moment.position), devices_read.fold)
    named = "" if device is None else device.name, moment.now.date().isoformat()
    explained = await _explained(call, row, named, library_routes.conflicts_of(call, moment))
    return call.reply(explained, moment.position)


async def _explained(call: Call, row: library_read.Conflict, named: tuple[str, str], rules: Conflicts) -> Explained:
    choices: Sequence[library.Resolution] = ("server_wins", "client_wins", "keep_both", "manual")
    previews: list[Preview] = []
    for resolution in choices if row.resolved_at is None else ():
        settled = await rules.preview(_who(call), row.file, row.conflict, resolution, *named)
        previews.append(Preview(resolution, settled.awaits is not None, _steps(settled, row)))
    return Explained(shape(row), previews)


def _steps(settled: Settlement, row: library_read.Conflict) -> list[Step]:
    return [step for wish in settled.wishes if (step := _step(wish, row)) is not None]


def _step(wish: Wish, row: library_read.Conflict) -> Step | None:
    command = wish.command.then if isinstance(wish.command, library.Resolve) else wish.command
    match command:
        case library.Create(path=path, content=content):
            return Step("create", path, content.hash)
        case library.Modify(content=content):
            return Step("modify", row.path, content.hash)
        case library.Move(path=path):
            return Step("move", path, row.local_hash)
        case library.Delete():
            return Step("delete", row.path, None)
        case _:
            return None


async def resolve(call: Call) -> Any:
    body = await call.body(Resolve)
    await call.caught_up(library.STREAM)
    resolved, position = await _resolve(call, await _find(call, call.path("conflict_id")), body.resolution)
    return call.reply(resolved, position)


async def _resolve(call: Call, row: library_read.Conflict, resolution: library.Resolution) -> tuple[Resolved, int]:
    if resolution == "merge":
        raise errors.Invalid("There is no merge engine yet; choose server_wins, client_wins, keep_both or manual")
    whose, day = await _named(call, row)
    done = await library_routes.conflicts_of(call).resolve(_who(call), row.file, row.conflict, resolution, whose, day)
    library_routes.wrote(call, done.position)
    return Resolved(row.conflict, resolution, done.awaits is not None, done.kept), done.position


async def resolve_many(call: Call) -> Any:
    body = await call.body(ResolveMany)
    if (body.ids is None) is (body.filter is None):
        raise errors.Invalid("Name the conflicts by ids, or by a filter")
    await call.caught_up(library.STREAM)
    resolved: list[Resolved] = []
    failed: list[Failed] = []
    position = call.api.reads.position
    for id, row in (await _chosen(call, body)).items():
        if row is None:
            failed.append(Failed(id, "There is no such conflict"))
            continue
        try:
            one, at = await _resolve(call, row, body.resolution)
        except errors.Error as error:
            failed.append(Failed(id, error.message))
        else:
            resolved.append(one)
            position = max(position, at)
    return call.reply(ResolvedMany(resolved, failed), position)


async def _chosen(call: Call, body: ResolveMany) -> dict[str, library_read.Conflict | None]:
    database, tenant, owner = call.api.process.db, call.tenant, call.principal.owner
    if body.ids is not None:
        found = await library_read.conflicts(database, tenant, owner, body.ids)
        return {id: found.get(id) for id in body.ids}
    assert body.filter is not None
    wanted = body.filter
    return {
        row.conflict: row
        for row in await library_read.open_conflicts(database, tenant, owner)
        if row.path.startswith(wanted.path_prefix or "")
        and wanted.device_id in (None, row.device)
        and wanted.rule in (None, row.rule)
    }


async def reopen(call: Call) -> Any:
    await call.caught_up(library.STREAM)
    row = await _find(call, call.path("conflict_id"))
    position = await library_routes.conflicts_of(call).reopen(_who(call), row.file, row.conflict)
    library_routes.wrote(call, position)
    await call.api.reads.reached(position, call.api.process.settings.gateway.read_wait_s)
    return call.reply(shape(await _find(call, row.conflict)), position)


_READ = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)
_BASE = "/api/v1/sync/conflicts"
_ONE = _BASE + "/{conflict_id:str}"
_PAGING = (
    Parameter("after", {"type": "integer"}, "the position of the last conflict seen"),
    Parameter("limit", {"type": "integer"}, "clamped to 1..1000"),
    Parameter("mine", {"type": "boolean", "default": False}, "only those in which this device is a side"),
)

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        _BASE,
        list_,
        PINAKES,
        "Unresolved conflicts",
        query=(*_PAGING, *DEVICE),
        answers={200: list[Conflict]},
        errors=_READ,
    ),
    Route(
        "POST",
        _BASE + "/resolve",
        resolve_many,
        PINAKES,
        "Resolve many conflicts",
        body=ResolveMany,
        answers={200: ResolvedMany},
        errors=_WRITE,
    ),
    Route(
        "GET", _ONE, show, PINAKES, "One conflict, explained", query=(AS_OF,), answers={200: Explained}, errors=_READ
    ),
    Route(
        "POST",
        _ONE + "/resolve",
        resolve,
        PINAKES,
        "Resolve a conflict",
        body=Resolve,
        answers={200: Resolved},
        errors=_WRITE,
    ),
    Route("POST", _ONE + "/reopen", reopen, PINAKES, "Undo a resolution", answers={200: Conflict}, errors=_WRITE),
)
