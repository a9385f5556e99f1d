"""The read models, in one visible list."""

from projections import (
    accounts,
    collections,
    consumers,
    devices,
    integrations,
    jobs,
    keys,
    library,
    network,
    servers,
    sessions,
    syncs,
    tenants,
    usage,
    webhooks,
)
from projections.table import Projection

ALL: tuple[Projection, ...] = (
    jobs,
    integrations,
    keys,
    consumers,
    tenants,
    collections,
    network,
    library,
    accounts,
    devices,
    servers,
    sessions,
    usage,
    syncs,
    webhooks,
)
