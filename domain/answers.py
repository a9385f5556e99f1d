"""Answers: what a request was told that no other event says, so that it is told the same when it asks again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from msgspec import Raw, Struct

from domain import messages

STREAM = "answers"


class Given(messages.Event, frozen=True, tag="answers.given"):
    """Under the idempotency key of the command that appended it."""

    PUBLIC: ClassVar[bool] = False
    answer: Raw


Event = Given


class Answer(Struct, frozen=True):
    given: bool = False


initial = Answer()


def evolve(state: Answer, event: Event) -> Answer:
    return Answer(given=True)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Give(messages.Command, frozen=True):
    answer: Raw


Command = Give


def decide(command: Command, state: Answer) -> Sequence[Event]:
    return [] if state.given else [Given(command.answer)]
