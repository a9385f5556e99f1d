"""Collections: what an integration has brought, and where its next incremental run begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Raw, Struct

from domain import messages

STREAM = "collections"


class Observed(messages.Event, frozen=True, tag="collections.observed"):
    """A run has seen the outside to its end. `mark` is where the next incremental run begins (JSON, null for nowhere),
    `config` a digest of the configuration it belongs to, `complete` whether everything there is was seen."""

    mark: Raw
    config: str
    complete: bool


Event = Observed


class Collection(Struct, frozen=True):
    """`complete` once everything was seen under this configuration."""

    mark: Raw = Raw(b"null")
    config: str = ""
    complete: bool = False

    def mark_for(self, config: str) -> Raw:
        """The mark, unless it belongs to another configuration."""
        return self.mark if config == self.config else Raw(b"null")


initial = Collection()


def evolve(state: Collection, event: Event) -> Collection:
    before = event.config == state.config and state.complete
    return Collection(event.mark, event.config, event.complete or before)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Observe(messages.Command, frozen=True):
    """Said together with the completion of a run, so never twice. Without a mark the present one stays, where it
    belongs to the same configuration."""

    mark: Raw | None
    config: str
    complete: bool


Command = Observe


def decide(command: Command, state: Collection) -> Sequence[Event]:
    mark = state.mark_for(command.config) if command.mark is None else command.mark
    return [Observed(mark=mark, config=command.config, complete=command.complete)]
