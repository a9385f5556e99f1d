"""What requests say in their headers, as small pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from msgspec import Struct

from domain import errors

Headers = Mapping[bytes, bytes]
Pair = tuple[bytes, bytes]

_CACHED = "undrift.headers"
_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_POSITION = re.compile(rb"[0-9]{1,19}")
_ETAG = re.compile(r'"?([A-Za-z0-9:._-]{1,128})"?')
_WAIT = re.compile(r"[0-9]{1,6}")
_INT64 = 2**63 - 1


class Prefer(Struct, frozen=True):
    """RFC 7240: `return=plan` is ours, `wait` is in seconds. What is unknown or malformed is ignored."""

    plan: bool = False
    representation: bool = False
    respond_async: bool = False
    wait: int | None = None


NO_PREFERENCE = Prefer()


def of(scope: MutableMapping[str, Any]) -> Headers:
    """The request's headers by lower-case name; fields sent twice are joined by a comma (RFC 9110, 5.3)."""
    found: dict[bytes, bytes] | None = scope.get(_CACHED)
    if found is None:
        raw: list[Pair] = scope["headers"]
        found = dict(raw)
        if len(found) != len(raw):
            found = _joined(raw)
        scope[_CACHED] = found
    return found


def idempotency_key(headers: Headers) -> str | None:
    """The value of `Idempotency-Key`: 1 to 255 visible ASCII characters. Raises Invalid."""
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    if not _KEY.fullmatch(raw):
        raise errors.Invalid("Idempotency-Key is 1 to 255 visible ASCII characters")
    return raw.decode("ascii")


def prefer(headers: Headers) -> Prefer:
    raw = headers.get(b"prefer")
    if raw is None:
        return NO_PREFERENCE
    wishes: dict[str, str] = {}
    for part in raw.decode("latin-1").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        wishes.setdefault(name.strip().lower(), value.strip().strip('"').lower())
    wait = wishes.get("wait", "")
    return Prefer(
        plan=wishes.get("return") == "plan",
        representation=wishes.get("return") == "representation",
        respond_async="respond-async" in wishes,
        wait=int(wait) if _WAIT.fullmatch(wait) else None,
    )


def if_match(headers: Headers) -> str | None:
    """The one hash in `If-Match`, quoted or not; None where it is absent or `*`. Raises Invalid."""
    raw = headers.get(b"if-match", b"*").strip()
    if raw == b"*":
        return None
    if not (match := _ETAG.fullmatch(raw.decode("latin-1"))):
        raise errors.Invalid("If-Match holds one quoted hash")
    return match[1]


def min_position(headers: Headers) -> int | None:
    """The log position that the read models must have passed, from `Undrift-Min-Position`. Raises Invalid."""
    raw = headers.get(b"undrift-min-position")
    if raw is None:
        return None
    if not _POSITION.fullmatch(raw) or int(raw) > _INT64:
        raise errors.Invalid("Undrift-Min-Position is a log position")
    return int(raw)


def last_event_id(headers: Headers) -> str | None:
    """The id of the last event that a client of a stream has seen."""
    raw = headers.get(b"last-event-id", b"").strip()
    return raw.decode("latin-1") or None


def position(value: int) -> Pair:
    """The header that tells a client where in the log its command ended, or how far its read saw."""
    return (b"undrift-position", b"%d" % value)


def _joined(raw: Iterable[Pair]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in raw:
        found[name] = found[name] + b", " + value if name in found else value
    return found
