"""What else becomes true together with a job's completion, in one visible list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec import Raw

from domain import messages, network
from domain.plans import network as network_plan
from infra.eventstore.store import Decided, Store

Ending = Callable[[Store, str, Raw], Awaitable[Sequence[Decided]]]


async def _designate_parity(store: Store, tenant: str, result: Raw) -> Sequence[Decided]:
    """The last server keeps the parity where nobody has chosen one."""
    last = msgspec.json.decode(result, type=network_plan.Result).last_server
    if last is None:
        return []
    before = await store.load(network, messages.stream(network.STREAM, tenant, network.NAME))
    decided = network.decide(network.DesignateIfNone(last), before.state)
    return [Decided(network, network.NAME, before, decided)] if decided else []


#: (kind, collection) -> what follows
ENDINGS: Mapping[tuple[str, str], Ending] = {("network", network.NAME): _designate_parity}


async def further(store: Store, tenant: str, kind: str, collection: str, result: Raw) -> Sequence[Decided]:
    """Decisions for the append that completes a job."""
    ending = ENDINGS.get((kind, collection))
    return [] if ending is None else await ending(store, tenant, result)
