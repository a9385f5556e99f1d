"""Tenants: who shares nothing with whom. The first is `main`; their events are in its log space."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from domain import errors, messages

STREAM = "tenants"
FIRST = "main"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Added(messages.Event, frozen=True, tag="tenants.added"):
    name: str


Event = Added


class Tenant(Struct, frozen=True):
    name: str | None = None


initial = Tenant()


def evolve(state: Tenant, event: Event) -> Tenant:
    return Tenant(name=event.name)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Add(messages.Command, frozen=True):
    name: str


Command = Add


def decide(command: Command, state: Tenant) -> Sequence[Event]:
    if not _NAME.fullmatch(command.name):
        raise errors.Invalid("A tenant's name is 1 to 63 of a-z, 0-9 and -, and does not begin with -")
    return [] if state.name is not None else [Added(name=command.name)]
