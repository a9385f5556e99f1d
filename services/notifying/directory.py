"""Which endpoints there are at a position of the log, and who of them is told of an event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import structlog

from domain import catalogue, messages, webhooks
from infra.eventstore.store import Store
from services import deliverable
from services.notifying.rows import Key

log = structlog.get_logger("notifier")


class Directory:
    """A fold of the events of webhooks."""

    def __init__(self, states: Mapping[Key, webhooks.Endpoint] | None = None) -> None:
        self.states: dict[Key, webhooks.Endpoint] = dict(states or {})
        self._wanting: dict[tuple[str, str], tuple[str, ...]] = {}

    @classmethod
    async def at(cls, store: Store, keys: Iterable[Key], position: int) -> Directory:
        """These endpoints as they were there."""
        directory = cls()
        streams = [messages.stream(webhooks.STREAM, tenant, endpoint) for tenant, endpoint in keys]
        for recorded in await store.decode(await store.recorder.select_streams(streams)):
            if recorded.position <= position:
                directory.follow(recorded)
        return directory

    def follow(self, recorded: messages.Recorded) -> Key | None:
        """Takes an event in, if it is one of an endpoint's; answers whose."""
        if not recorded.stream.startswith(f"{webhooks.STREAM}/"):
            return None
        key = (recorded.tenant, recorded.id)
        if isinstance(recorded.event, messages.Unreadable):
            log.error("an event of a webhook cannot be read", position=recorded.position)
            return None
        assert isinstance(recorded.event, webhooks.Event)
        state = webhooks.evolve(self.states.get(key, webhooks.initial), recorded.event)
        if state.deleted:
            self.states.pop(key, None)
        else:
            self.states[key] = state
        self._wanting.clear()
        return key

    def told(self, recorded: messages.Recorded) -> Sequence[tuple[str, Sequence[str]]]:
        """Under which names an event goes out, and to which endpoints of its tenant. After `follow`."""
        if isinstance(recorded.event, webhooks.Tested):
            return [(catalogue.TEST, (recorded.id,))] if (recorded.tenant, recorded.id) in self.states else []
        return [(name, told) for name in deliverable.names_of(recorded) if (told := self._who(recorded.tenant, name))]

    def _who(self, tenant: str, name: str) -> tuple[str, ...]:
        found = self._wanting.get((tenant, name))
        if found is None:
            found = self._wanting[tenant, name] = tuple(
                endpoint
                for (owner, endpoint), state in self.states.items()
                if owner == tenant and state.enabled and catalogue.matches(state.events, name)
            )
        return found
