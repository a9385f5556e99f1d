"""How an event is told in the words of a family: its fields in that family's case, without what is a secret or only
ours."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from domain import jobs, kinds, messages
from infra.vault import PREFIX
from services.gateway.dialects import Dialect

#: Digests of tokens and locations, keyed names of places, and a job's ticket: each event repeats what the first said.
_HIDDEN = frozenset({"token_sha256", "before_sha256", "name_key", "digest", "place", "old_place", "ticket"})
#: The families whose words are written like this.
_CAMEL = frozenset({0, 2, 3})


def fields(event: messages.Event, dialect: Dialect) -> dict[str, Any]:
    """What an event says, as JSON. Of one that cannot be read only that."""
    if isinstance(event, messages.Unreadable):
        return {"unreadable": True}
    shown: dict[str, Any] = _shown(event, dialect)
    match event:
        case jobs.Queued(ticket=ticket):
            shown = {"kind": ticket.kind, "type": ticket.type, "lane": ticket.lane, **shown}
            shown["spec"] = _typed(event.spec, ticket.kind, "spec", dialect)
            if ticket.integration is not None:
                shown[_name("integration_id", dialect)] = ticket.integration
        case jobs.Completed(ticket=ticket):
            shown["result"] = _typed(event.result, ticket.kind, "result", dialect)
    return shown


def _typed(raw: Raw, kind: str, part: Literal["spec", "result"], dialect: Dialect) -> Any:
    """A kind's own struct in the family's case; of a kind that is no more as it was written."""
    try:
        return _shown(msgspec.json.decode(raw, type=getattr(kinds.KINDS[kind], part)), dialect)
    except (KeyError, msgspec.ValidationError):
        return _free(msgspec.json.decode(raw))


def topic(event: messages.Event) -> str:
    return event.stored_topic if isinstance(event, messages.Unreadable) else messages.topic(event)


def _shown(value: Any, dialect: Dialect) -> Any:
    if isinstance(value, Struct):
        return {
            _name(name, dialect): _shown(getattr(value, name), dialect)
            for name in value.__struct_fields__
            if name not in _HIDDEN and not _is_secret(getattr(value, name))
        }
    if isinstance(value, Raw):
        return _free(msgspec.json.decode(value))
    if isinstance(value, list | tuple):
        return [_shown(one, dialect) for one in value]
    if isinstance(value, datetime):
        return dialect.timestamp(value)
    return _free(value)


def _free(value: Any) -> Any:
    """What has words of its own, without references to secrets."""
    if isinstance(value, dict):
        return {name: _free(inner) for name, inner in value.items() if not _is_secret(inner)}
    if isinstance(value, list):
        return [_free(one) for one in value if not _is_secret(one)]
    return value


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(PREFIX)


def _name(name: str, dialect: Dialect) -> str:
    if dialect.family not in _CAMEL:
        return name
    first, *more = name.split("_")
    return first + "".join(word.capitalize() for word in more)
