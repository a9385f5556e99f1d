"""What the gateway asks of a worker over NATS: work that only looks, answered and not recorded."""

from __future__ import annotations

from msgspec import Raw, Struct


class Ask(Struct, frozen=True):
    """A kind's specification, and the roots and tenant of whoever asks."""

    spec: Raw
    roots: tuple[str, ...]
    tenant: str
