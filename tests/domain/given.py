"""Deciders tested by given / when / then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from domain import errors, messages


def fold(context: Any, events: Sequence[messages.Event]) -> Any:
    state = context.initial
    for event in events:
        state = context.evolve(state, event)
    return state


class Given:
    """`given(context, *events).when(command).then(*events)`, or `.refused(error)`."""

    def __init__(self, context: Any, events: Sequence[messages.Event]) -> None:
        self._context, self._events = context, events

    def when(self, command: messages.Command) -> When:
        return When(self._context, self._events, command)


class When:
    def __init__(self, context: Any, events: Sequence[messages.Event], command: messages.Command) -> None:
        self._context, self._state, self._command = context, fold(context, events), command

    def then(self, *expected: messages.Event) -> None:
        assert list(expected) == list(self._context.decide(self._command, self._state))

    def refused(self, error: type[errors.Error], match: str | None = None) -> None:
        with pytest.raises(error, match=match) as raised:
            self._context.decide(self._command, self._state)
        assert type(raised.value) is error


def given(context: Any, *events: messages.Event) -> Given:
    return Given(context, events)


def held(context: Any, events: Sequence[messages.Event]) -> set[tuple[str, str]]:
    """The names a stream has taken and not given back."""
    names: set[tuple[str, str]] = set()
    for event in events:
        for claim in context.claims(event):
            (names.add if claim.action == "take" else names.discard)((claim.kind, claim.key))
    return names
