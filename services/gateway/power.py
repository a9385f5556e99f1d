"""Power and the console of servers: wishes go into the log, what only a process can answer to the node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from domain import errors, servers
from infra.bus import Bus
from infra.eventstore.store import Wish
from projections import servers as read
from services import servers as shared
from services.gateway import headers
from services.gateway.dialects import WINGS, Reply
from services.gateway.routes import Call, Route

ACTIONS = ("start", "stop", "restart", "kill")
#: What `send logs` answers with, as the real system does.
_LOG_LINES = 150
#: How long the node may take: figures are done without where it takes longer.
_FIGURES_S, _SAY_S = 1.0, 5.0
#: Servers that are asked for at once: their answer has to fit into a message.
_AT_ONCE = 500

_INVALID = (
    b'{"error":"The power action provided was not valid, should be one of \\"stop\\", \\"start\\", \\"restart\\",'
    b' \\"kill\\""}'
)
_SUSPENDED = b'{"error":"Cannot start or restart a server that is suspended."}'
_STOPPED = b'{"error":"Cannot send commands to a stopped server instance."}'

_utilizations = msgspec.json.Decoder(dict[str, shared.Utilization]).decode
_lines = msgspec.json.Decoder(list[str]).decode
_encode = msgspec.json.Encoder().encode


class Power(Struct):
    action: Annotated[str, Meta(extra_json_schema={"enum": list(ACTIONS)})]


class Commands(Struct):
    """Lines for the input of its process."""

    commands: Annotated[list[Annotated[str, Meta(max_length=8192)]], Meta(max_length=100)]


async def power(call: Call) -> Any:
    """202 says that it is wished, and in the log; what becomes of it is told by the server's state and events. Before
    a start the Panel is asked for the configuration, and where it does not answer nothing is started."""
    body, uuid = await call.body(Power), call.path("server")
    action = next((one for one in ACTIONS if one == body.action), None)
    if action is None:
        return Reply(422, _INVALID)
    done = await call.earlier(servers)
    if done is None:
        try:
            command = servers.Ask(msgspec.convert(action, servers.Action), "node")
            done = await call.execute([Wish(servers, uuid, command)])
        except errors.InvalidState:
            return Reply(400, _SUSPENDED)
    return Reply(202, b"", [headers.position(done.position)])


async def commands(call: Call) -> Any:
    """They are written to the process as they come, and kept nowhere; a server that does not run is 502, as in the
    real system. An idempotency key changes nothing here."""
    body, uuid = await call.body(Commands), call.path("server")
    process = call.api.process
    state: servers.Server = (await process.store.load(servers, shared.stream(uuid))).state
    if state.configuration is None or state.deleted:
        raise errors.NotFound("There is no such server", kind="server")
    if state.power == "offline" or state.suspended:
        return Reply(502, _STOPPED)
    try:
        await say(process.bus, uuid, body.commands)
    except (errors.InvalidState, errors.Forbidden):
        return Reply(502, _STOPPED)
    return Reply(204, b"", [headers.position(await process.store.head())])


# What the node is asked.


async def say(bus: Bus, uuid: str, lines: Sequence[str]) -> None:
    """Raises errors.InvalidState when it does not run, errors.Forbidden when it is suspended, errors.Unavailable and
    errors.TimedOut when the node is away."""
    await bus.ask(shared.NODE, _encode(shared.Lines(uuid, list(lines))), _SAY_S)


async def recent(bus: Bus, uuid: str) -> list[str]:
    """The last lines of a server that runs; none where the node is away."""
    try:
        return _lines(await bus.ask(shared.NODE, _encode(shared.Recent(uuid, _LOG_LINES)), _SAY_S))
    except errors.Error:
        return []


async def figures(bus: Bus, uuids: Sequence[str]) -> dict[str, shared.Utilization]:
    """What servers use, as far as the node says so in time."""
    found: dict[str, shared.Utilization] = {}
    try:
        for start in range(0, len(uuids), _AT_ONCE):
            some = shared.Figures(list(uuids[start : start + _AT_ONCE]))
            found |= _utilizations(await bus.ask(shared.NODE, _encode(some), _FIGURES_S))
    except errors.Error:
        pass  # it is away, or too slow
    return found


async def utilizations(bus: Bus, rows: Iterable[read.Row]) -> dict[str, shared.Utilization]:
    """Of every server; zeros for those of which the node says nothing."""
    every = {row.uuid: row for row in rows}
    found = await figures(bus, list(every))
    return {
        uuid: msgspec.structs.replace(found[uuid], state=row.doing())
        if uuid in found
        else shared.still(row.doing(), row.configured())
        for uuid, row in every.items()
    }


ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/servers/{server:str}/power",
        power,
        WINGS,
        "Start, stop, restart or kill a server",
        body=Power,
        answers={202: None},
        errors=(400, 401, 403, 404, 413, 415, 422, 503),
    ),
    Route(
        "POST",
        "/api/servers/{server:str}/commands",
        commands,
        WINGS,
        "Write lines to the process of a server",
        body=Commands,
        answers={204: None},
        errors=(400, 401, 403, 404, 413, 415, 422, 502, 503),
    ),
)
