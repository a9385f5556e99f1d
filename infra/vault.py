"""Secrets that must be had in clear again, such as a remote's API key: sealed in a table apart from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from domain import errors
from infra import secrets
from infra.db import Database

PREFIX = "sealed:"


class Vault:
    """`seal` gives a reference that may stand in an event, `unseal` the secret behind it.

    A reference is a keyed hash of the secret and its owner: the same secret of the same owner gets the same one, so
    that saying it again changes nothing, and nobody without the master key learns anything from it.
    """

    def __init__(self, database: Database, master: bytes) -> None:
        self._database, self._master = database, master
        self._key = secrets.derive(master, "vault")

    async def seal(self, tenant: str, plain: str, owner: str = "") -> str:
        """Keeps a secret; its reference, `sealed:<32 hex>`. `owner` is whatever it belongs to, such as
        `plane-integration-1/apiKey`."""
        return (await self.seal_all(tenant, {owner: plain}))[owner]

    async def seal_all(self, tenant: str, plain: Mapping[str, str]) -> dict[str, str]:
        """As `seal`, of many at once, by owner."""
        references = {owner: self.reference(tenant, value, owner) for owner, value in plain.items()}
        ids = [reference.removeprefix(PREFIX) for reference in references.values()]
        if ids:
            await self._database.execute(
                "insert into undrift_keys.secrets (tenant, id, sealed)"
                " select $1, * from unnest($2::text[], $3::bytea[]) on conflict do nothing",
                tenant,
                ids,
                [
                    secrets.seal(self._key, value.encode(), f"{tenant}/{id}")
                    for id, value in zip(ids, plain.values(), strict=True)
                ],
            )
        return references

    def reference(self, tenant: str, plain: str, owner: str = "") -> str:
        """What `seal` answers, without keeping anything."""
        return f"{PREFIX}{secrets.derive(self._master, 'vault reference', tenant, owner, plain).hex()[:32]}"

    async def unseal(self, tenant: str, reference: str) -> str:
        """The secret in clear. Raises errors.NotFound when it is not kept, or not under this installation's key."""
        id = reference.removeprefix(PREFIX)
        sealed = await self._database.fetchval(
            "select sealed from undrift_keys.secrets where tenant = $1 and id = $2", tenant, id
        )
        return self._opened(tenant, id, sealed)

    async def unseal_all(self, tenant: str, references: Mapping[str, str]) -> dict[str, str]:
        """As `unseal`, of many at once, by whatever they are called."""
        ids = {name: reference.removeprefix(PREFIX) for name, reference in references.items()}
        rows = await self._database.fetch(
            "select id, sealed from undrift_keys.secrets where tenant = $1 and id = any ($2)", tenant, [*ids.values()]
        )
        sealed = {row["id"]: row["sealed"] for row in rows}
        return {name: self._opened(tenant, id, sealed.get(id)) for name, id in ids.items()}

    def _opened(self, tenant: str, id: str, sealed: bytes | None) -> str:
        try:
            if sealed is not None:
                return secrets.unseal(self._key, bytes(sealed), f"{tenant}/{id}").decode()
        except secrets.Undecipherable:
            raise errors.NotFound("A secret was sealed under another master key; set it again", kind="secret") from None
        raise errors.NotFound("A secret is not kept any more; set it again", kind="secret")

    async def forget(self, tenant: str, references: Sequence[str]) -> None:
        """Destroys secrets that nothing refers to any more."""
        await self._database.execute(
            "delete from undrift_keys.secrets where tenant = $1 and id = any ($2)",
            tenant,
            [reference.removeprefix(PREFIX) for reference in references],
        )
