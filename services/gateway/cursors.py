"""Cursors of a user's feed: a position in one history, for one owner, which nobody else can use or make."""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode

from msgspec import Struct

from domain import errors
from infra import secrets

_BODY = struct.Struct(">BIQ")
_VERSION = 1
_MAC = 12
_TEXT = re.compile(r"[A-Za-z0-9_-]{34}")


class Cursor(Struct, frozen=True):
    epoch: int
    position: int


class Cursors:
    """Makes and reads them; the owner is part of what is signed, so a cursor of somebody else's is simply wrong."""

    def __init__(self, master: bytes) -> None:
        self._key = secrets.derive(master, "feed cursors")

    def make(self, tenant: str, owner: str, epoch: int, position: int) -> str:
        body = _BODY.pack(_VERSION, epoch, position)
        return _text(body + self._mac(tenant, owner, body))

    def read(self, tenant: str, owner: str, text: str) -> Cursor:
        """Raises errors.Invalid for what was not made here, for this owner."""
        if not _TEXT.fullmatch(text):
            raise errors.Invalid("That is no cursor of this feed")
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        body, mac = raw[: _BODY.size], raw[_BODY.size :]
        if _text(raw) != text or not hmac.compare_digest(mac, self._mac(tenant, owner, body)):
            raise errors.Invalid("That is no cursor of this feed")
        _, epoch, position = _BODY.unpack(body)
        return Cursor(epoch, position)

    def _mac(self, tenant: str, owner: str, body: bytes) -> bytes:
        parts = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in (tenant, owner))
        return hmac.new(self._key, parts + body, hashlib.sha256).digest()[:_MAC]


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")
