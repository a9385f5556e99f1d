"""Where the node is asked about its servers, by gateways, over NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from domain import errors
from infra.bus import Bus
from services import servers as shared
from services.node.fleet import Fleet

_AT_ONCE, _WAITING = 16, 256
_LONGEST_LINE = 8192

_decode = msgspec.json.Decoder(shared.Asked).decode
_encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def answering(bus: Bus, fleet: Fleet) -> AsyncIterator[None]:
    async def handle(payload: bytes, seconds: float) -> bytes:
        return await _answer(fleet, _decode(payload))

    desk = await bus.answer(shared.NODE, handle, _AT_ONCE, _WAITING)
    try:
        yield
    finally:
        await desk.close()


async def _answer(fleet: Fleet, asked: shared.Asked) -> bytes:
    match asked:
        case shared.Lines():
            await _say(fleet, asked)
            return b"{}"
        case shared.Recent():
            life = fleet[asked.server].life
            found = [] if life is None else await life.running.recent(asked.lines)
            return _encode([line.decode(errors="replace") for line in found])
        case shared.Figures():
            every = await asyncio.gather(*map(fleet.figures, asked.servers))
            return _encode({uuid: one for uuid, one in zip(asked.servers, every, strict=True) if one is not None})


async def _say(fleet: Fleet, asked: shared.Lines) -> None:
    server = fleet[asked.server]
    if server.state.suspended:
        raise errors.Forbidden("The server is suspended")
    if server.life is None or server.life.ended.done():
        raise errors.InvalidState("The server does not run")
    for line in asked.lines:
        await server.life.running.say(line[:_LONGEST_LINE].replace("\n", " ").replace("\r", " "))
