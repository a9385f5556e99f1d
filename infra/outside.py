"""Which consumers from outside are connected, at all nodes of NATS, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from infra import permissions
from infra.bus import Bus

#: How long all nodes have to say who is connected, and how many one says at a time.
_SAY_S, _PAGE = 0.5, 500
_TIMEOUT_S = 5.0


class _Connection(Struct):
    cid: int
    authorized_user: str = ""


class _Connections(Struct):
    server_id: str
    connections: Sequence[_Connection] = ()
    total: int = 0


class _Node(Struct):
    data: _Connections


class Connected(NamedTuple):
    """A connection: at which node, and by the credential of which id."""

    server: str
    number: int
    id: str


async def connected(bus: Bus) -> list[Connected]:
    """Everybody from outside who is here. Raises errors.Unavailable."""
    found: list[Connected] = []
    offset = 0
    while True:
        nodes = [said.data for said in await _all_nodes(bus, offset)]
        for node in nodes:
            found += [Connected(node.server_id, one.cid, one.authorized_user) for one in node.connections]
        offset += _PAGE
        if not any(node.total > offset for node in nodes):
            return found


async def end(bus: Bus, one: Connected) -> None:
    """Ends a connection. Raises errors.Unavailable and TimedOut."""
    subject = permissions.KICK.replace("*", one.server)
    await bus.request(subject, msgspec.json.encode({"cid": one.number}), _TIMEOUT_S)


async def _all_nodes(bus: Bus, offset: int) -> list[_Node]:
    inbox, said = bus.inbox(), list[_Node]()

    async def hear(message: Msg) -> None:
        said.append(msgspec.json.decode(message.data, type=_Node))

    listener = await bus.subscribe(inbox, hear)
    asked = {"auth": True, "acc": permissions.OUTSIDE, "offset": offset, "limit": _PAGE}
    body = msgspec.json.encode(asked)
    try:
        await bus.send(f"PUB {permissions.CONNECTIONS} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        await asyncio.sleep(_SAY_S)
    finally:
        await listener.close()
    return said
