"""Who asks, and what they may do: bearer tokens, scopes, and requests from this machine without a token.

A token is found by its SHA-256, so nothing of it is ever compared byte by byte.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct

from domain import errors, tenants
from infra.config import Panel
from infra.db import CONNECTION_LOST
from services import tokens
from services.gateway import dialects, headers, limits
from services.gateway.cors import Cors

Kind = Literal["key", "loopback", "user", "device", "node", "hook"]

RATE = "undrift.rate"
_LOOPBACK_HOST = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_CAPACITY = 10_000


class Principal(Struct, frozen=True):
    """Whoever a request comes from. Empty `roots` means every configured root, likewise `connections`; `owner` is
    the user whose library a user's session or a device opens."""

    tenant: str
    id: str
    kind: Kind
    name: str = ""
    owner: str = ""
    scopes: frozenset[str] = frozenset()
    roots: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()

    @property
    def actor(self) -> str:
        """As it stands in an event's metadata: a user, whichever session speaks."""
        if self.kind == "user":
            return f"user:{self.owner}"
        return "system:loopback" if self.kind == "loopback" else f"{self.kind}:{self.id}"

    @property
    def credential(self) -> str:
        """What can be revoked."""
        return f"{self.kind}:{self.id}"

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOOPBACK = Principal(
    tenant=tenants.FIRST,
    id="loopback",
    kind="loopback",
    name="this machine",
    scopes=frozenset(f"{area}:{right}" for area in ("jobs", "files", "network") for right in ("read", "write")),
)
"""Requests without a token where `auth.open_loopback` is on: they open families 1 and 2 only."""

NODE = Principal(tenant=tenants.FIRST, id="panel", kind="node", name="the Panel")
"""The Panel: it opens family 5, and nothing else does."""

Lookup = Callable[[str], Awaitable[Principal | None]]


def require(principal: Principal, scope: str) -> None:
    """Raises Forbidden unless the principal has this scope, or `admin`."""
    if not principal.may(scope):
        raise errors.Forbidden(f"This needs the scope {scope}")


class Authenticator:
    """Finds the principal of a request.

    `lookup` takes the SHA-256 of a token (hex). What it found is remembered for `fresh_s`; a revoked id
    never opens anything again in this process, whatever the read model still says.
    """

    def __init__(
        self,
        lookup: Lookup,
        cors: Cors,
        counted: limits.Limits,
        *,
        open_loopback: bool = False,
        panel: Panel | None = None,
        fresh_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._cors = cors
        self._counted = counted
        self._open_loopback = open_loopback
        self._panel = panel
        self._fresh_s = fresh_s
        self._clock = clock
        self._known: dict[str, tuple[Principal, float]] = {}
        self._revoked: set[str] = set()

    def revoke(self, id: str) -> None:
        """From here on tokens of this key (or session) are refused."""
        self._revoked.add(id)
        self._known = {mark: entry for mark, entry in self._known.items() if entry[0].id != id}

    def revoke_token(self, token_sha256: str) -> None:
        """From here on this one token is refused; another of the same device is not."""
        self._revoked.add(token_sha256)
        self._known.pop(token_sha256, None)

    def forget_owner(self, tenant: str, owner: str, kind: Kind | None = None) -> list[str]:
        """Looks the credentials of a user up again from here on; answers those that were known."""
        known = {
            mark: principal
            for mark, (principal, _) in self._known.items()
            if (principal.tenant, principal.owner) == (tenant, owner) and kind in (None, principal.kind)
        }
        for mark in known:
            del self._known[mark]
        return [principal.credential for principal in known.values()]

    async def device(self, token: bytes) -> Principal | None:
        """The device that a token names beside a user's own credential."""
        principal = await self._bearer(b"Bearer " + token)
        return principal if principal is not None and principal.kind == "device" else None

    def is_revoked(self, actor: str) -> bool:
        """Whether a principal that was admitted has been revoked since."""
        kind, _, id = actor.partition(":")
        return kind != "system" and id in self._revoked

    async def admit(self, scope: Any, dialect: dialects.Dialect, needs: str | None = None) -> Principal:
        """The principal of a request to a route of this dialect that needs this scope.

        Also kept as `scope["user"]`. Raises Unauthenticated, Forbidden, RateLimited.
        """
        found = headers.of(scope)
        credential = found.get(b"authorization")
        principal: Principal | None
        if NODE.kind in dialect.admits:
            principal = self._node(credential)
        elif credential is None:
            principal = LOOPBACK if self._is_open(scope, found) else None
        else:
            principal = await self._bearer(credential)
        if principal is not None and principal.kind not in dialect.admits:
            principal = None
        if self._counted.counts(dialect.family):
            await self._limit(scope, dialect, principal)
        if principal is None:
            raise errors.Unauthenticated
        if needs is not None and not principal.may(needs):
            raise errors.Forbidden(f"This needs the scope {needs}")
        scope["user"] = principal
        return principal

    def _node(self, credential: bytes | None) -> Principal | None:
        """The Panel, by the node's one token, as the real Wings looks at it. Raises Forbidden for another token."""
        scheme, space, token = (credential or b"").partition(b" ")
        if scheme != b"Bearer" or not space:
            return None
        mine = b"" if self._panel is None else self._panel.token.encode()  # it may have been renewed
        if not mine or not hmac.compare_digest(token, mine):
            raise errors.Forbidden
        return NODE

    async def _bearer(self, credential: bytes) -> Principal | None:
        scheme, _, raw = credential.partition(b" ")
        raw = raw.strip()
        if scheme.lower() != b"bearer" or not tokens.PATTERN.fullmatch(raw):
            return None
        mark = hashlib.sha256(raw).hexdigest()
        entry = self._known.get(mark)
        if entry is not None and self._clock() - entry[1] < self._fresh_s:
            return entry[0]
        return await self._look_up(mark)

    async def _look_up(self, mark: str) -> Principal | None:
        asked_at = self._clock()
        principal = await self._lookup(mark)
        if principal is None or principal.id in self._revoked or mark in self._revoked:
            self._known.pop(mark, None)
            return None
        if len(self._known) >= _CAPACITY:
            self._known.pop(next(iter(self._known)))
        self._known[mark] = (principal, asked_at)
        return principal

    def _is_open(self, scope: Any, found: headers.Headers) -> bool:
        """Only from a loopback peer, only to a loopback name, never across sites: no DNS rebinding."""
        if not self._open_loopback or not is_loopback(scope):
            return False
        if not _LOOPBACK_HOST.fullmatch(found.get(b"host", b"")):
            return False
        origin = found.get(b"origin")
        return origin is None or self._cors.allows(origin)

    async def welcome(self, scope: Any, dialect: dialects.Dialect) -> None:
        """Counts a request to a route that is open to anybody. Raises RateLimited."""
        if self._counted.counts(dialect.family):
            await self._limit(scope, dialect, None)

    async def meter(self, scope: Any, dialect: dialects.Dialect) -> limits.Allowance | None:
        """Counts a request that reached no route, for the credential that it shows."""
        credential = headers.of(scope).get(b"authorization")
        try:
            principal = None if credential is None else await self._bearer(credential)
        except CONNECTION_LOST:
            principal = None
        return await self._count(scope, dialect, principal)

    async def _limit(self, scope: Any, dialect: dialects.Dialect, principal: Principal | None) -> None:
        allowance = await self._count(scope, dialect, principal)
        if allowance is not None and allowance.exceeded:
            raise errors.RateLimited(retry_after=allowance.reset_s)

    async def _count(
        self, scope: Any, dialect: dialects.Dialect, principal: Principal | None
    ) -> limits.Allowance | None:
        """For a user whichever session speaks, and for the address where no credential does."""
        if not self._counted.counts(dialect.family):
            return None
        if principal is None or principal.kind == "loopback":
            caller = self._counted.address(scope)
        else:
            caller = f"{principal.tenant}/{principal.actor}"
        scope[RATE] = allowance = await self._counted.take(dialect.family, caller)
        return allowance


def is_loopback(scope: Any) -> bool:
    """Whether the peer is this machine, by its socket and by nothing it says."""
    client = scope.get("client")
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
