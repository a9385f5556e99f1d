"""Secrets in an integration's configuration: sealed before anything is recorded, and never shown."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from domain import errors, kinds
from infra.vault import PREFIX, Vault


async def sealed(
    vault: Vault, tenant: str, kind: str, id: str, config: dict[str, Any], before: Raw | None = None
) -> Any:
    """The configuration as its kind's struct, with references in place of secrets. One that is left out stays as it
    was `before`. Raises errors.Invalid, before anything is sealed."""
    names = kinds.kind(kind).secrets
    kept: dict[str, Any] = {} if before is None else msgspec.json.decode(before)
    whole = {**{name: kept[name] for name in names if name in kept}, **config}
    for name in names:
        if str(config.get(name, "")).startswith(PREFIX):
            raise errors.Invalid(f"config.{name} is the secret itself, or left out to keep the one that is set")
    kinds.configuration(kind, whole)
    for name in names:
        if isinstance(plain := config.get(name), str):
            whole[name] = await vault.seal(tenant, plain, f"{id}/{name}")
    return kinds.configuration(kind, whole)


async def clear(vault: Vault, tenant: str, spec: Raw) -> dict[str, str]:
    """The secrets that a specification refers to, by the names of its fields. Raises errors.NotFound."""
    if PREFIX.encode() not in bytes(spec):
        return {}
    fields: dict[str, Any] = msgspec.json.decode(spec)
    return {
        name: await vault.unseal(tenant, value)
        for name, value in fields.items()
        if isinstance(value, str) and value.startswith(PREFIX)
    }


def shown(kind: str, config: Raw | str) -> Raw:
    """The configuration without its secrets."""
    names = kinds.kind(kind).secrets
    raw = config.encode() if isinstance(config, str) else bytes(config)
    if not names:
        return Raw(raw)
    found: dict[str, Any] = msgspec.json.decode(raw)
    return Raw(msgspec.json.encode({name: value for name, value in found.items() if name not in names}))


def references(kind: str, config: Raw) -> list[str]:
    """What a configuration refers to in the vault."""
    found: dict[str, Any] = msgspec.json.decode(config)
    return [found[name] for name in kinds.kind(kind).secrets if str(found.get(name, "")).startswith(PREFIX)]
