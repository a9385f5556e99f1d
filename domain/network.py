"""The RAIDA network as an installation uses it: which server keeps the parity. Its people and servers are items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, assert_never

from msgspec import Struct

from domain import messages

STREAM = "network"
#: The integration, and with it the collection, that stands for the network.
NAME = "network"


class ParityDesignated(messages.Event, frozen=True, tag="network.parity_designated"):
    """`automatic` when a sync chose it because nobody had."""

    PUBLIC: ClassVar[bool] = True
    server_id: str
    automatic: bool


Event = ParityDesignated


class Network(Struct, frozen=True):
    parity: str | None = None


initial = Network()


def evolve(state: Network, event: Event) -> Network:
    return Network(parity=event.server_id)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Designate(messages.Command, frozen=True):
    """Somebody chose a server, which must have been found to exist."""

    server_id: str


class DesignateIfNone(messages.Command, frozen=True):
    """By a sync, with the last of its servers."""

    server_id: str


Command = Designate | DesignateIfNone


def decide(command: Command, state: Network) -> Sequence[Event]:
    match command:
        case Designate():
            if state.parity == command.server_id:
                return []
            return [ParityDesignated(server_id=command.server_id, automatic=False)]
        case DesignateIfNone():
            if state.parity is not None:
                return []
            return [ParityDesignated(server_id=command.server_id, automatic=True)]
        case _:
            assert_never(command)
