"""Why: the chain behind a value, from the event that made it so back to whoever wished it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from domain import errors, keys
from domain.messages import Recorded
from services.gateway import dialects, history_shapes, why_words
from services.gateway.auth import Principal
from services.gateway.dialects import Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route
from services.gateway.things import THINGS
from services.gateway.why_causes import Causes
from services.gateway.why_kinds import KINDS, Kind
from services.gateway.why_words import Rule

#: Opened by keys and by people: each kind says by whom.
WHY = msgspec.structs.replace(dialects.OURS, admits=frozenset({"key", "user", "device"}), timestamp=timestamp_ms)
#: So many links of a chain are told.
MOST = 50
_HISTORIES = {"library": "files"}


class Actor(Struct, rename="camel"):
    """Who: `kind` is key, user, device, job, hook or system. A name is told to those who may know it."""

    kind: str
    id: str
    name: str | None


class Link(Struct, rename="camel"):
    """One event of the chain. `because` are the positions of the links that led to it, none at a root. `data` is what
    it said, null where whoever asks may not read that. `href` shows it in its history."""

    position: int
    time: Timestamp
    type: str
    subject: str
    summary: str
    actor: Actor
    rule: Rule | None
    data: Raw
    because: list[int]
    href: str
    trace: str | UnsetType = UNSET


class Why(Struct, rename="camel"):
    """`chain` goes from the event that made the value what it is, at `position`, back to what led to it."""

    kind: str
    id: str
    field: str | None
    value: Raw
    position: int
    chain: list[Link]


async def why(call: Call) -> Any:
    """Of a field, named as GET shows it (`status`, `result.created`, `content.name`), the last event that changed it;
    without one the last event of all. A value that was taken away is null."""
    kind, id = _kind(call), call.path("id").removeprefix("/")
    field = call.query().get("field")
    source = await kind.find(call, id)
    recorded, value = await _decided(call, kind, source, field)
    links = await _chain(call, Reader(call.principal, source.stream), recorded)
    shown = Why(call.path("kind"), id, field, Raw(msgspec.json.encode(value)), recorded.position, links)
    return call.reply(shown, await call.api.process.store.head())


def _kind(call: Call) -> Kind:
    name, principal = call.path("kind"), call.principal
    if name not in KINDS:
        raise errors.NotFound(f"There is no such kind; there are {', '.join(KINDS)}", kind="kind")
    kind = KINDS[name]
    if principal.kind not in kind.admits:
        raise errors.Forbidden(f"Of {name} this credential reads nothing")
    if kind.needs is not None and not principal.may(kind.needs):
        raise errors.Forbidden(f"This needs the scope {kind.needs}")
    return kind


async def _decided(call: Call, kind: Kind, source: Any, field: str | None) -> tuple[Recorded, Any]:
    """The event behind a value, and the value. Raises errors.Invalid for a field that there never was."""
    found: Recorded = source.first
    last: Recorded = source.first
    shown: Any = None
    glanced: Any = kind  # nothing that a row looks like
    value: Any = None
    known: set[str] = set()
    async for recorded, row in kind.states(call, source):
        if recorded.stream == source.stream:
            last = recorded
        if (glance := None if row is None else kind.glance(row)) != glanced:
            glanced = glance
            shown = None if row is None else _plain(kind.show(call, row))
            known |= set(shown or ())
        now = None if field is None else _value(shown, field)
        if now != value:
            found, value = recorded, now
    if field is None:
        return last, shown
    if field.partition(".")[0] not in known:
        raise errors.Invalid(f"There is no such field; there are {', '.join(sorted(known))}")
    return found, value


def _plain(shown: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(shown))


def _value(shown: Any, field: str) -> Any:
    for name in field.split("."):
        shown = shown.get(name) if isinstance(shown, dict) else None
    return shown


class Reader(Struct, frozen=True):
    """Whoever asks, after a thing in this stream."""

    principal: Principal
    stream: str

    def may_read(self, recorded: Recorded) -> bool:
        """What is somebody's only by themselves, the rest by the scope of its family, and what was asked after."""
        owner, context = recorded.metadata.owner, recorded.stream.partition("/")[0]
        if self.principal.owner or owner != "_":
            return owner == self.principal.owner
        if recorded.stream == self.stream or recorded.metadata.actor == self.principal.actor:
            return True
        return self.principal.may("sessions:read" if context == "sessions" else "jobs:read")


async def _chain(call: Call, reader: Reader, first: Recorded) -> list[Link]:
    """Backwards in time, each event once."""
    causes = Causes(call.api.process.store, call.tenant)
    waiting, told, links = [first], {first.position}, list[Link]()
    while waiting and len(links) < MOST:
        recorded = waiting.pop()
        because = await causes.of(recorded)
        links.append(_link(reader, recorded, await causes.actor(recorded), [one.position for one in because]))
        waiting += [one for one in because if one.position not in told]
        waiting.sort(key=lambda one: one.position)
        told |= {one.position for one in because}
    return links


def _link(reader: Reader, recorded: Recorded, actor: Recorded | None, because: list[int]) -> Link:
    kind, _, id = recorded.metadata.actor.partition(":")
    name = None if actor is None or not reader.may_read(actor) else getattr(actor.event, "name", None)
    may_read = reader.may_read(recorded)
    return Link(
        position=recorded.position,
        time=timestamp_ms(recorded.recorded_at),
        type=recorded.topic,
        subject=recorded.stream,
        summary=why_words.summary(recorded) if may_read else why_words.bare(recorded),
        actor=Actor(kind, id, name),
        rule=why_words.rule(recorded) if may_read else None,
        data=Raw(msgspec.json.encode(_data(recorded) if may_read else None)),
        because=because,
        href=_href(recorded),
        trace=UNSET if recorded.metadata.traceparent is None else recorded.metadata.traceparent,
    )


def _data(recorded: Recorded) -> dict[str, Any]:
    """Of a key only what it is called."""
    data = history_shapes.fields(recorded.event, WHY)
    return {"name": data["name"]} if isinstance(recorded.event, keys.Event) else data


def _href(recorded: Recorded) -> str:
    """Where the event stands in the history of its thing, or in the feed."""
    context = recorded.stream.partition("/")[0]
    query = f"after={recorded.position - 1}&limit=1"
    for thing in THINGS:
        if WHY.admits & thing.dialect.admits and thing.kind == _HISTORIES.get(context, context):
            return f"{thing.path}/{recorded.id}/history?{query}"
    return f"/api/v1/feeds/events?{query}"


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/v1/why/{kind:str}/{id:path}",
        why,
        WHY,
        "Why something is as it is: the chain of events, rules and people behind a value",
        query=(Parameter("field", {"type": "string"}, "the field whose value is asked after, as GET shows it"),),
        answers={200: Why},
        errors=(400, 401, 403, 404, 503),
    ),
)
