"""This node as its Panel knows it: the credentials by which each shows the other who it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from msgspec import Struct

from domain import messages

STREAM = "nodes"
#: There is one Panel, and to it we are one node.
THIS = "this"


class TokenRenewed(messages.Event, frozen=True, tag="nodes.token_renewed"):
    """Whoever shows the token before is nobody any more. `token` is a reference to the new one, `mark` is of it and its
    id; `replaces` are the marks of those before, by which settings that still say one of them are known to be older."""

    PUBLIC: ClassVar[bool] = True
    token_id: str
    token: str
    mark: str
    replaces: tuple[str, ...]


Event = TokenRenewed


class Node(Struct, frozen=True):
    """`mark` is empty where nothing was ever renewed."""

    token_id: str = ""
    token: str = ""
    mark: str = ""
    replaced: frozenset[str] = frozenset()

    def overrules(self, mark: str) -> bool:
        """Whether what was renewed last counts and not credentials of this mark, which the settings have."""
        return mark in self.replaced


initial = Node()


def evolve(state: Node, event: Event) -> Node:
    return Node(event.token_id, event.token, event.mark, state.replaced | frozenset(event.replaces))


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Renew(messages.Command, frozen=True):
    """`before` is the mark of what was in use."""

    token_id: str
    token: str
    mark: str
    before: str


Command = Renew


def decide(command: Command, state: Node) -> Sequence[Event]:
    if command.mark == command.before:
        return []  # said twice
    replaces = {command.before, state.mark} - {"", command.mark}
    return [TokenRenewed(command.token_id, command.token, command.mark, tuple(sorted(replaces)))]
