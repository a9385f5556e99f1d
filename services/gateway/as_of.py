"""As of: one thing as it was, folded from its events by the read model's own fold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from domain import errors, messages
from infra.eventstore import past
from services.gateway.routes import Call, Parameter

R = TypeVar("R")

_POSITION = re.compile(r"[0-9]{1,18}")
#: In a query that nobody escaped, the `+` of a time zone is a space.
_UNESCAPED = re.compile(r" (?=[0-9]{2}:[0-9]{2}$)")
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}

AS_OF = Parameter(
    "as_of",
    {"anyOf": [{"type": "integer", "minimum": 0}, _TIME]},
    "as it was then: a position of the log, or a time of RFC 3339",
)


class Moment(Struct, frozen=True):
    """The log up to `position`, and rows that were written before `until`; None is the present."""

    position: int
    until: datetime | None = None

    def saw(self, at: datetime | None) -> bool:
        """Whether what was written at that time was there by then."""
        return at is not None and (self.until is None or at < self.until)

    @property
    def now(self) -> datetime:
        """What a clock showed, at most."""
        return datetime.now(UTC) if self.until is None else self.until


PRESENT = Moment(position=2**62)


async def wanted(call: Call) -> Moment | None:
    """The moment that `as_of` names, None without it. Raises errors.Invalid for one that has not come yet.

    A position stands for all the time until the next one was recorded. A time is as exact as times are shown: an event
    of that very millisecond is seen.
    """
    text = call.query().get("as_of")
    if text is None:
        return None
    store = call.api.process.store
    head = await store.head()
    if _POSITION.fullmatch(text):
        position = int(text)
        if position > head:
            raise errors.Invalid(f"as_of is ahead of the log, which ends at {head}")
        return Moment(position, await past.time_of(store.database, position + 1))
    until = end_of(await passed(call, "as_of", text))
    return Moment(await past.position_before(store.database, until), until)


async def passed(call: Call, name: str, text: str) -> datetime:
    """A time of RFC 3339 that has come, on this clock or on that of the log. Raises errors.Invalid."""
    at = time(name, text)
    if at > datetime.now(UTC):
        store = call.api.process.store
        last = await past.time_of(store.database, await store.head())
        if last is None or at > last:
            raise errors.Invalid(f"{name} has not come yet")
    return at


def time(name: str, text: str) -> datetime:
    """A parameter that is a time of RFC 3339. Raises errors.Invalid."""
    try:
        at = msgspec.convert(_UNESCAPED.sub("+", text), datetime)
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(UTC)
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise errors.Invalid(f"{name} is a position of the log, or a time of RFC 3339 with its zone") from None


def end_of(at: datetime) -> datetime:
    """Where the millisecond of a time ends."""
    try:
        return at.replace(microsecond=at.microsecond // 1000 * 1000) + timedelta(milliseconds=1)
    except OverflowError:
        raise errors.Invalid("There is no such time") from None


def folded(events: Iterable[messages.Recorded], fold: Callable[[R | None, messages.Recorded], R | None]) -> R | None:
    """What events come to. Raises errors.Unavailable where one of them cannot be read."""
    row: R | None = None
    for recorded in events:
        row = fold(row, readable(recorded))
    return row


def readable(recorded: messages.Recorded) -> messages.Recorded:
    """The same. Raises errors.Unavailable."""
    if isinstance(recorded.event, messages.Unreadable):
        raise errors.Unavailable(f"{recorded.stream} holds an event that this version cannot read")
    return recorded


async def reached(call: Call, moment: Moment) -> None:
    """Waits until the read models know that moment. Raises errors.Unavailable."""
    if not await call.api.reads.reached(moment.position, call.api.process.settings.gateway.read_wait_s):
        raise errors.Unavailable("The read models have not come that far yet", retry_after=1)
