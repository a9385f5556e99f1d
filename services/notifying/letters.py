"""What is posted for a row: the body of its event, made once for all endpoints, and the signatures of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from domain import messages, webhooks
from infra.eventstore.store import Store
from infra.vault import Vault
from services import deliverable
from services.notifying import rows
from services.notifying.rows import Row

_EVENTS = 2000
_BODIES, _BODIES_BYTES = 2000, 64 * 1024 * 1024


class Unreadable(Exception):
    """There is nothing to send: the event cannot be read."""


class Letters:
    """Bodies of recent events. Of the same row it is the same bytes each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: OrderedDict[int, messages.Recorded] = OrderedDict()
        self._bodies: OrderedDict[tuple[int, str, str | None], bytes] = OrderedDict()
        self._bytes = 0

    async def read(self, page: Sequence[Row]) -> None:
        """Reads the events of many rows at once."""
        missing = [row.position for row in page if row.position not in self._events]
        if missing:
            self._events.update(await rows.events(self._store, missing))
        for row in page:
            row.event = self._events.get(row.position)
        while len(self._events) > _EVENTS:
            self._events.popitem(last=False)

    async def body(self, row: Row) -> bytes:
        """Raises Unreadable."""
        key = (row.position, row.name, row.replay)
        if (made := self._bodies.get(key)) is not None:
            return made
        if row.event is None:
            await self.read([row])
        if row.event is None or isinstance(row.event.event, messages.Unreadable):
            raise Unreadable
        made = await deliverable.body(self._store, row.event, row.name, row.replay)
        if key not in self._bodies:
            self._bodies[key] = made
            self._bytes += len(made)
        while len(self._bodies) > _BODIES or self._bytes > _BODIES_BYTES:
            self._bytes -= len(self._bodies.popitem(last=False)[1])
        return made


class Signer:
    """Signs with the secrets of one endpoint; two of them during a rotation."""

    def __init__(self, current: Webhook, previous: Webhook | None = None, until: datetime | None = None) -> None:
        self._current, self._previous, self._until = current, previous, until

    @classmethod
    async def of(cls, vault: Vault, tenant: str, endpoint: webhooks.Endpoint) -> Signer:
        """Raises errors.NotFound when a secret is not kept any more."""
        current = Webhook(await vault.unseal(tenant, endpoint.secret))
        until = endpoint.previous_until
        if endpoint.previous is None or until is None or until <= datetime.now(UTC):
            return cls(current)
        return cls(current, Webhook(await vault.unseal(tenant, endpoint.previous)), until)

    def headers(self, message: str, body: bytes, now: datetime) -> bytes:
        """The lines of the Standard Webhooks specification."""
        text = body.decode()
        signature = self._current.sign(message, now, text)
        if self._previous is not None and self._until is not None and now < self._until:
            signature = f"{signature} {self._previous.sign(message, now, text)}"
        return (
            f"webhook-id: {message}\r\nwebhook-timestamp: {int(now.timestamp())}\r\nwebhook-signature: {signature}\r\n"
        ).encode("ascii")
