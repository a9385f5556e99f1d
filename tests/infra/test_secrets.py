"""Secrets: one master key, what is derived from it, what is sealed under it, and persons whose key is gone."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import secrets
from infra.db import Database
from infra.secrets import Keyring

MASTER = bytes(range(32))


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 2)
    yield opened
    await opened.close()


def test_the_master_key_is_made_once_and_private(tmp_path: Path) -> None:
    master = secrets.load_master(tmp_path)
    assert len(master) == 32
    assert secrets.load_master(tmp_path) == master
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "master.key").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "secrets") == ["master.key"]


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.map(secrets.load_master, [tmp_path] * 16, chunksize=1)
    assert len(set(found)) == 1
    assert os.listdir(tmp_path / "secrets") == ["master.key"]


def test_two_installations_differ(tmp_path: Path) -> None:
    assert secrets.load_master(tmp_path / "a") != secrets.load_master(tmp_path / "b")


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_parts_cannot_be_shifted_into_each_other(one: list[str], other: list[str]) -> None:
    same = secrets.derive(MASTER, "purpose", *one) == secrets.derive(MASTER, "purpose", *other)
    assert same == (one == other)


def test_purposes_and_masters_differ() -> None:
    assert secrets.derive(MASTER, "a", "b") != secrets.derive(MASTER, "b", "a")
    assert secrets.derive(MASTER, "a") != secrets.derive(bytes(32), "a")
    assert len(secrets.derive(MASTER, "a")) == 32


def test_a_token_is_shown_again_on_a_retry() -> None:
    token = secrets.token(MASTER, "api key", "id")
    assert token == secrets.token(MASTER, "api key", "id")
    assert token != secrets.token(MASTER, "api key", "other")
    assert len(token) == 43
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.binary(), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_comes_back(plain: bytes, context: str) -> None:
    assert secrets.unseal(MASTER, secrets.seal(MASTER, plain, context), context) == plain


def test_no_two_seals_are_alike() -> None:
    assert secrets.seal(MASTER, b"x", "c") != secrets.seal(MASTER, b"x", "c")


@pytest.mark.parametrize("length", [0, 5, 12, 27])
def test_what_is_cut_short_is_undecipherable(length: int) -> None:
    with pytest.raises(secrets.Undecipherable):
        secrets.unseal(MASTER, secrets.seal(MASTER, b"", "c")[:length], "c")


def test_every_changed_bit_another_key_and_another_place_are_noticed() -> None:
    sealed = secrets.seal(MASTER, b"plain", "c")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(secrets.Undecipherable):
            secrets.unseal(MASTER, bytes(changed), "c")
    for key, context in ((bytes(32), "c"), (MASTER, "d")):
        with pytest.raises(secrets.Undecipherable):
            secrets.unseal(key, sealed, context)


async def test_a_person_s_key_is_made_once_and_kept_wrapped(db: Database) -> None:
    ring = Keyring(db, MASTER)
    assert ring.key("main", "anna") is None
    await ring.ensure("main", "anna")
    key = ring.key("main", "anna")
    assert key is not None
    await ring.ensure("main", "anna")
    assert ring.key("main", "anna") == key
    other = Keyring(db, MASTER)
    await other.ensure("main", "anna")
    assert other.key("main", "anna") == key
    for name in ("berta", "anna/x"):
        await ring.ensure("main", name)
        assert ring.key("main", name) not in (None, key)
    await ring.ensure("second", "anna")
    assert ring.key("second", "anna") not in (None, key)
    stored = await db.fetch("select wrapped from undrift_keys.subjects")
    assert all(key not in row["wrapped"] for row in stored)


async def test_another_master_key_opens_nothing(db: Database) -> None:
    await Keyring(db, MASTER).ensure("main", "anna")
    with pytest.raises(secrets.Undecipherable):
        await Keyring(db, bytes(32)).load({("main", "anna")})


async def test_a_wrapped_key_moved_to_another_person_opens_nothing(db: Database) -> None:
    ring = Keyring(db, MASTER)
    await ring.ensure("main", "anna")
    await db.execute("insert into undrift_keys.subjects select tenant, 'berta', wrapped from undrift_keys.subjects")
    with pytest.raises(secrets.Undecipherable):
        await ring.load({("main", "berta")})


async def test_a_destroyed_key_stays_destroyed(db: Database) -> None:
    ring = Keyring(db, MASTER)
    await ring.ensure("main", "anna")
    await ring.destroy("main", "anna")
    assert ring.key("main", "anna") is None
    await ring.ensure("main", "anna")
    assert ring.key("main", "anna") is None
    later = Keyring(db, MASTER)
    await later.load({("main", "anna")})
    await later.ensure("main", "anna")
    assert later.key("main", "anna") is None
    row = await db.fetchrow("select wrapped, erased_at from undrift_keys.subjects")
    assert row is not None
    assert (row["wrapped"], row["erased_at"] is None) == (None, False)


async def test_a_person_can_be_erased_before_they_are_known(db: Database) -> None:
    ring = Keyring(db, MASTER)
    await ring.destroy("main", "anna")
    await ring.ensure("main", "anna")
    assert ring.key("main", "anna") is None
