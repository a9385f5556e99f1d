"""Secrets of an installation: one master key in a file, everything else derived from it or wrapped by it."""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import urlsafe_b64encode
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra import processes
from infra.db import Database

#: Where processes hear whose key was destroyed: `<tenant> <subject>`.
ERASED = "undrift_erased"
_DESTROY = (
    "with gone as (insert into undrift_keys.subjects values ($1, $2, null, default, clock_timestamp())"
    " on conflict (tenant, subject) do update set wrapped = null,"
    " erased_at = coalesce(subjects.erased_at, excluded.erased_at) returning tenant, subject)"
    f" select pg_notify('{ERASED}', tenant || ' ' || subject) from gone"
)


class Undecipherable(Exception):
    """The ciphertext does not belong to this key."""


def load_master(directory: Path) -> bytes:
    """The 32-byte master key in `directory`/secrets/master.key, made on first use (mode 0600)."""
    return bytes.fromhex(processes.secret(directory / "secrets" / "master.key"))


def derive(master: bytes, purpose: str, *parts: str) -> bytes:
    """32 bytes for one purpose: HMAC-SHA256 of the purpose and its parts, each prefixed by its length."""
    mac = hmac.new(master, digestmod=hashlib.sha256)
    for part in (purpose, *parts):
        raw = part.encode()
        mac.update(len(raw).to_bytes(4, "big") + raw)
    return mac.digest()


def token(master: bytes, purpose: str, *parts: str) -> str:
    """A secret that is shown once and never stored: derived, so that a retry shows the same one."""
    return urlsafe_b64encode(derive(master, purpose, *parts)).rstrip(b"=").decode()


def seal(key: bytes, plain: bytes, context: str) -> bytes:
    """AES-256-GCM under `key`, bound to `context`: a 12-byte nonce, then the ciphertext."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def unseal(key: bytes, sealed: bytes, context: str) -> bytes:
    """The plain bytes. Raises Undecipherable for another key, another context or a changed ciphertext."""
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], context.encode())
    except (InvalidTag, ValueError):
        raise Undecipherable(context) from None


class Keyring:
    """The keys of persons, wrapped by the master key in a table apart from the log.

    `ensure` and `load` bring keys into memory; `key` reads them there. A destroyed key stays destroyed, and whoever
    hears of it forgets what is remembered.
    """

    def __init__(self, database: Database, master: bytes) -> None:
        self._database = database
        self._wrapping = derive(master, "subject keys")
        self._keys: dict[tuple[str, str], bytes | None] = {}

    def key(self, tenant: str, subject: str) -> bytes | None:
        """The key of a person that was loaded; None when it was destroyed or never made."""
        return self._keys.get((tenant, subject))

    def erased(self, tenant: str, subject: str) -> bool:
        """Whether a person was looked up and their key is known to be destroyed."""
        return self._keys.get((tenant, subject), b"") is None

    def forget(self, told: str | None) -> None:
        """Drops what is remembered of the person that a notice on ERASED names, or of all: they are looked up again."""
        if told is None:
            self._keys.clear()
        else:
            tenant, _, subject = told.partition(" ")
            self._keys.pop((tenant, subject), None)

    async def ensure(self, tenant: str, subject: str) -> None:
        """Makes the person's key unless there is one."""
        if self._keys.get((tenant, subject)) is None:
            wrapped = seal(self._wrapping, os.urandom(32), f"{tenant}/{subject}")
            await self._database.execute(
                "insert into undrift_keys.subjects (tenant, subject, wrapped) values ($1, $2, $3)"
                " on conflict do nothing",
                tenant,
                subject,
                wrapped,
            )
            await self.load({(tenant, subject)})

    async def load(self, subjects: set[tuple[str, str]]) -> None:
        missing = [pair for pair in subjects if pair not in self._keys]
        if not missing:
            return
        rows = await self._database.fetch(
            "select tenant, subject, wrapped from undrift_keys.subjects"
            " where (tenant, subject) in (select * from unnest($1::text[], $2::text[]))",
            [tenant for tenant, _ in missing],
            [subject for _, subject in missing],
        )
        for tenant, subject, wrapped in rows:
            context = f"{tenant}/{subject}"
            self._keys[tenant, subject] = None if wrapped is None else unseal(self._wrapping, wrapped, context)

    async def destroy(self, tenant: str, subject: str) -> None:
        """Erases the person: what was sealed under the key can never be read again."""
        await self._database.execute(_DESTROY, tenant, subject)
        self._keys[tenant, subject] = None


def admin_token(directory: Path, master: bytes) -> str:
    """The token of the installation's own key, in `directory`/secrets/admin.token (mode 0600)."""
    made = f"udk_admin_{token(master, 'api key', 'admin')}"
    return processes.secret(directory / "secrets" / "admin.token", lambda: made)
