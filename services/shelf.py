"""Where a library's facts are looked up and kept, and the names of places in it."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from domain import library, messages
from domain.library import File, Place
from domain.plans import library as plan
from domain.plans.library import Known
from infra import secrets
from infra.eventstore.store import Wish


class Who(Struct, frozen=True):
    """Whose library, and which device speaks; `acked` is the position up to which it has acknowledged the feed."""

    tenant: str
    owner: str
    actor: str
    device: str | None = None
    acked: int = 0

    def metadata(self) -> messages.Metadata:
        return messages.Metadata(actor=self.actor, owner=self.owner, subject=self.owner)


class Shelf(Protocol):
    """Where a library's facts are looked up and kept."""

    async def head(self) -> int:
        """A position; what is looked up afterwards is at least that new."""

    async def there(self, who: Who, places: Collection[str]) -> Mapping[str, str]:
        """The files that stand in places now, from the claims: place -> file."""

    async def files(self, who: Who, ids: Collection[str]) -> Mapping[str, File]: ...

    async def known(self, who: Who, places: Collection[str]) -> Mapping[str, Known]:
        """What the device knew to stand in places."""

    async def conflicts(self, who: Who, places: Collection[str]) -> Sequence[library.ConflictFound]:
        """Unresolved conflicts of this device at places, about whichever file."""

    async def contents(self, who: Who, hashes: Collection[str]) -> Mapping[str, tuple[str, int]]:
        """Bytes that this owner has stored, by either hash: hash -> (BLAKE3, size)."""

    async def append(self, who: Who, wishes: Sequence[Wish]) -> int:
        """Carries out commands as one; answers the position. Raises Claimed, errors.Conflict."""


class Places:
    """Names for paths that say nothing without the key: what stands in one place on some device shares one. For one
    request."""

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._keys: dict[tuple[str, str], bytes] = {}
        self._folders: dict[tuple[bytes, str], str] = {}

    def of(self, who: Who, path: str) -> Place:
        if (key := self._keys.get((who.tenant, who.owner))) is None:
            key = secrets.derive(self._master, "library places", who.tenant, who.owner)
            self._keys[who.tenant, who.owner] = key
        return Place(self._name(key, path), tuple(self._folder(key, one) for one in plan.ancestors(path)))

    def _folder(self, key: bytes, path: str) -> str:
        """Most files of a report stand in the same few."""
        if (name := self._folders.get((key, path))) is None:
            name = self._folders[key, path] = self._name(key, path)
        return name

    def _name(self, key: bytes, path: str) -> str:
        return hmac.digest(key, plan.folded(path).encode(), "sha256").hex()[:32]
