"""The vault: secrets come back as they were, to whom they belong, and are nowhere in clear."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from domain import errors
from infra.db import Database
from infra.vault import Vault

MASTER = bytes(range(32))


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 2)
    yield opened
    await opened.close()


async def test_a_secret_comes_back(db: Database) -> None:
    vault = Vault(db, MASTER)
    reference = await vault.seal("main", "plane_api_\u00fc", "one/apiKey")
    assert re.fullmatch(r"sealed:[0-9a-f]{32}", reference)
    assert await vault.unseal("main", reference) == "plane_api_\u00fc"


async def test_what_is_kept_is_not_in_clear(db: Database) -> None:
    await Vault(db, MASTER).seal("main", "plane_api_clear")
    rows = await db.fetch("select s::text as text, sealed from undrift_keys.secrets s")
    assert len(rows) == 1
    assert "plane_api_clear" not in rows[0]["text"]
    assert b"plane_api_clear" not in bytes(rows[0]["sealed"])


async def test_the_same_secret_of_the_same_owner_has_one_reference(db: Database) -> None:
    vault = Vault(db, MASTER)
    first = await vault.seal("main", "key", "one/apiKey")
    assert await vault.seal("main", "key", "one/apiKey") == first
    others = {
        await vault.seal("main", "key", "two/apiKey"),
        await vault.seal("main", "other", "one/apiKey"),
        await vault.seal("second", "key", "one/apiKey"),
        await Vault(db, bytes(32)).seal("main", "key", "one/apiKey"),
    }
    assert len(others) == 4
    assert first not in others


async def test_a_secret_is_bound_to_its_tenant_its_reference_and_the_master_key(db: Database) -> None:
    vault = Vault(db, MASTER)
    first, second = await vault.seal("main", "first"), await vault.seal("main", "second")
    with pytest.raises(errors.NotFound, match="not kept"):
        await vault.unseal("second", first)
    with pytest.raises(errors.NotFound, match="another master key"):
        await Vault(db, bytes(32)).unseal("main", first)
    swap = "delete from undrift_keys.secrets where id = $1 returning sealed"
    sealed = await db.fetchval(swap, second.removeprefix("sealed:"))
    await db.execute("delete from undrift_keys.secrets where id = $1", first.removeprefix("sealed:"))
    insert = "insert into undrift_keys.secrets values ('main', $1, $2)"
    await db.execute(insert, first.removeprefix("sealed:"), sealed)
    with pytest.raises(errors.NotFound):
        await vault.unseal("main", first)


async def test_what_is_forgotten_is_gone(db: Database) -> None:
    vault = Vault(db, MASTER)
    kept, gone = await vault.seal("main", "kept"), await vault.seal("main", "gone")
    await vault.forget("main", [gone])
    assert await vault.unseal("main", kept) == "kept"
    with pytest.raises(errors.NotFound):
        await vault.unseal("main", gone)
