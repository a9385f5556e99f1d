"""Every event there is: the closed registry of the log, and where the contexts meet."""

from __future__ import annotations

from types import UnionType
from typing import get_args

from domain import (
    accounts,
    answers,
    collections,
    consumers,
    devices,
    integrations,
    items,
    jobs,
    keys,
    library,
    messages,
    network,
    nodes,
    servers,
    sessions,
    tenants,
    uploads,
    webhooks,
)

CONTEXTS = (
    jobs,
    integrations,
    keys,
    consumers,
    tenants,
    items,
    collections,
    network,
    library,
    answers,
    accounts,
    devices,
    nodes,
    servers,
    sessions,
    uploads,
    webhooks,
)


def _classes(event: UnionType | type[messages.Event]) -> tuple[type[messages.Event], ...]:
    return get_args(event) if isinstance(event, UnionType) else (event,)


#: topic -> class
REGISTRY: dict[str, type[messages.Event]] = {
    messages.topic(kind): kind for context in CONTEXTS for kind in _classes(context.Event)
}
