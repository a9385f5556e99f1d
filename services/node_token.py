"""The node's token, as it was renewed last: every process goes by it from the moment its event is read.

It is in the log by reference and in the vault sealed. What the settings say counts until something replaces it, and
again once they say something that was never replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from domain import errors, messages, nodes, tenants
from infra import config, secrets
from infra.db import CONNECTION_LOST, Database
from infra.eventstore.store import Store
from infra.tail import Tail
from infra.vault import Vault

log = structlog.get_logger("process")

_AGAIN_S = 0.2


class NodeToken:
    """One per process. Whoever reads `settings.panel` at the moment of use has what counts then; `changed` are told
    when that is something else than before."""

    def __init__(self, settings: config.Panel, store: Store, database: Database, master: bytes) -> None:
        self.changed: list[Callable[[], None]] = []
        self._settings, self._store, self._master = settings, store, master
        self._vault = Vault(database, master)
        self._given = (settings.token_id, settings.token)
        self._lock = asyncio.Lock()

    @property
    def mark(self) -> str:
        """Of what is in use."""
        return self._mark(self._settings.token_id, self._settings.token)

    def _mark(self, token_id: str, token: str) -> str:
        """By it nobody without the master key can tell what it is of."""
        return secrets.derive(self._master, "node token", token_id, token).hex()[:32] if token else ""

    async def load(self) -> None:
        """Puts in use what counts by the log."""
        async with self._lock:  # one that read earlier must not come later
            state: nodes.Node = (await self._store.load(nodes, _STREAM)).state
            token_id, token = self._given
            if state.overrules(self._mark(*self._given)):
                try:
                    token_id, token = state.token_id, await self._vault.unseal(tenants.FIRST, state.token)
                except errors.NotFound as error:
                    log.error("the renewed token of the node cannot be read: the settings count", reason=error.message)
            if (token_id, token) != (self._settings.token_id, self._settings.token):
                self._settings.token_id, self._settings.token = token_id, token
                for tell in self.changed:
                    tell()

    async def renewal(self, token_id: str | None, token: str | None) -> nodes.Renew:
        """The command that puts others in use, where None leaves one as it is; the token is sealed already."""
        settings = self._settings
        token_id, token = token_id or settings.token_id, token or settings.token
        reference = await self._vault.seal(tenants.FIRST, token, f"nodes/{nodes.THIS}")
        return nodes.Renew(token_id, reference, self._mark(token_id, token), self.mark)

    async def follow(self, tail: Tail) -> None:
        """Serves until cancelled."""
        subscription = tail.subscribe(tail.position, contexts=frozenset({nodes.STREAM}))
        try:
            await self._load_surely()  # what came before the subscription began
            async for _ in subscription:
                await self._load_surely()
        finally:
            subscription.close()

    async def _load_surely(self) -> None:
        while True:
            try:
                return await self.load()
            except (*CONNECTION_LOST, errors.Unavailable):
                await asyncio.sleep(_AGAIN_S)


_STREAM = messages.stream(nodes.STREAM, tenants.FIRST, nodes.THIS)
