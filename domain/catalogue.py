"""The public names of events: what goes out under which name, to webhooks and consumers outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from domain import errors, events, jobs, messages

#: Kinds of job that are a sync: what ends one of another kind is public under its own name only.
SYNC_KINDS = frozenset({"files", "databases", "plane", "network", "servers"})
#: What a test of an endpoint goes out as, to that endpoint alone, whatever it asked for.
TEST = "webhooks.tested"
_EVERYTHING = "*"
_ALL_OF = ".*"


def names(kind: type[messages.Event]) -> tuple[str, ...]:
    """The public names of a class of events: its topic where it is public, and its alias."""
    own = (messages.topic(kind),) if kind.PUBLIC else ()
    return own if kind.ALIAS is None else (*own, kind.ALIAS)


def names_of(event: messages.Event) -> tuple[str, ...]:
    """The public names under which one event goes out: `sync.completed` and `sync.failed` only where the job that
    ended is a sync."""
    if isinstance(event, jobs.Completed | jobs.Failed) and event.ticket.kind not in SYNC_KINDS:
        return (messages.topic(event),)
    return names(type(event))


def _public() -> Mapping[str, tuple[type[messages.Event], ...]]:
    found: dict[str, tuple[type[messages.Event], ...]] = {}
    for kind in events.REGISTRY.values():
        for name in names(kind):
            found[name] = (*found.get(name, ()), kind)
    return dict(sorted(found.items()))


#: public name -> the classes whose events go out under it
PUBLIC: Mapping[str, tuple[type[messages.Event], ...]] = _public()
#: All that an endpoint can be sent.
SENT: Mapping[str, tuple[type[messages.Event], ...]] = {**PUBLIC, TEST: (events.REGISTRY[TEST],)}


def matches(wanted: Iterable[str], name: str) -> bool:
    """Whether a public name is one of those wanted: a name, `jobs.*` for all that begin so, `*` for all."""
    return any(_matches(one, name) for one in wanted)


def _matches(wanted: str, name: str) -> bool:
    if wanted.endswith(_ALL_OF):
        return name.startswith(wanted[:-1])
    return wanted in (name, _EVERYTHING)


def check(wanted: Sequence[str]) -> tuple[str, ...]:
    """What an endpoint may ask for, each once. Raises errors.Invalid for what no event is called."""
    if not wanted:
        raise errors.Invalid("events names at least one event, or is ['*']")
    for one in wanted:
        if not any(_matches(one, name) for name in PUBLIC):
            raise errors.Invalid("There is no event of one of these names; GET /api/v1/webhooks/catalogue lists them")
    return tuple(dict.fromkeys(wanted))
