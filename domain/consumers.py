"""Consumers outside: a named credential with which a program reads a tenant's events from NATS, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar, assert_never

from msgspec import Struct

from domain import errors, messages

STREAM = "consumers"
#: How many topics one credential names, at most.
MOST_TOPICS = 100


class Issued(messages.Event, frozen=True, tag="consumers.issued"):
    """Only the SHA-256 of the token is kept; the token is derived from the id and shown once. No `topics` are all;
    without `expires_at` it lasts until it is revoked."""

    PUBLIC: ClassVar[bool] = False
    name: str
    token_sha256: str
    topics: tuple[str, ...] = ()
    expires_at: datetime | None = None


class Revoked(messages.Event, frozen=True, tag="consumers.revoked"):
    """From here on the token opens nothing, and what it had opened ends."""

    name: str


Event = Issued | Revoked


class Consumer(Struct, frozen=True):
    issued: Issued | None = None
    revoked: bool = False


initial = Consumer()


def evolve(state: Consumer, event: Event) -> Consumer:
    match event:
        case Issued():
            return Consumer(issued=event)
        case Revoked():
            return Consumer(issued=state.issued, revoked=True)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Issue(messages.Command, frozen=True):
    """`topics` are such as `jobs.completed` and `jobs.*`; those that others among them cover are left out."""

    name: str
    token_sha256: str
    topics: tuple[str, ...] = ()
    expires_at: datetime | None = None


class Revoke(messages.Command, frozen=True):
    pass


Command = Issue | Revoke


def decide(command: Command, state: Consumer) -> Sequence[Event]:
    match command:
        case Issue():
            return _issue(command, state)
        case Revoke():
            if state.issued is None:
                raise errors.NotFound("There is no such credential", kind="credential")
            return [] if state.revoked else [Revoked(name=state.issued.name)]
        case _:
            assert_never(command)


def _issue(command: Issue, state: Consumer) -> Sequence[Event]:
    if state.issued is not None:
        return []
    if not command.name or len(command.name) > 255:
        raise errors.Invalid("A credential's name has 1 to 255 characters")
    if len(command.topics) > MOST_TOPICS:
        raise errors.Invalid(f"A credential names at most {MOST_TOPICS} topics")
    topics = least(command.topics)
    return [Issued(command.name, command.token_sha256, topics, command.expires_at)]


def least(topics: Sequence[str]) -> tuple[str, ...]:
    """The same topics without those that another one covers; () for all of them."""
    if "*" in topics:
        return ()
    whole = {topic[:-2] for topic in topics if topic.endswith(".*")}
    kept = (topic for topic in topics if topic.endswith(".*") or topic.partition(".")[0] not in whole)
    return tuple(sorted(set(kept)))
