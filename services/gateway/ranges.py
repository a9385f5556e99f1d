"""Byte ranges of RFC 9110: which parts of a representation a request wants, and whether it wants any."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from services.gateway.headers import Headers

#: Ranges that a request may name; more are answered with the whole.
MOST = 8
_SPEC = re.compile(rb"(\d{0,18})-(\d{0,18})")


class Range(NamedTuple):
    """From the first to the last byte, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


class Unsatisfiable(Exception):
    """No range of the request has a byte in it."""


def wanted(headers: Headers, size: int, etag: bytes, modified: datetime) -> list[Range]:
    """The ranges to answer with, in order and without overlaps; none for the whole. Raises Unsatisfiable.

    What is malformed, or too many, is as if it had not been said (RFC 9110, 14.2).
    """
    raw = headers.get(b"range")
    if raw is None or not _still(headers.get(b"if-range"), etag, modified):
        return []
    unit, _, rest = raw.partition(b"=")
    parts = [part.strip() for part in rest.split(b",") if part.strip()]
    if unit.strip().lower() != b"bytes" or not parts or len(parts) > MOST:
        return []
    found: list[Range] = []
    for part in parts:
        match = _SPEC.fullmatch(part)
        if match is None or match[0] == b"-":
            return []
        one = _range(match[1], match[2], size)
        if one is None:
            return []
        if one.length > 0:
            found.append(one)
    if not found:
        raise Unsatisfiable
    return _merged(found)


def _range(first: bytes, last: bytes, size: int) -> Range | None:
    """None for one that is no range; of no length for one that has no byte of the representation."""
    if not first:
        count = min(int(last), size)
        return Range(size - count, size - 1) if count else Range(0, -1)
    begin = int(first)
    end = size - 1 if not last else int(last)
    if last and end < begin:
        return None
    return Range(begin, min(end, size - 1)) if begin < size else Range(0, -1)


def _merged(ranges: list[Range]) -> list[Range]:
    """Overlapping and adjacent ones become one, so that nobody gets a byte twice."""
    merged: list[Range] = []
    for one in sorted(ranges):
        if merged and one.first <= merged[-1].last + 1:
            merged[-1] = Range(merged[-1].first, max(merged[-1].last, one.last))
        else:
            merged.append(one)
    return merged


def _still(condition: bytes | None, etag: bytes, modified: datetime) -> bool:
    """Whether `If-Range` still holds; a weak validator never does."""
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/")):
        return condition == etag
    at = _date(condition)
    return at is not None and at == modified.replace(microsecond=0)


def unchanged(headers: Headers, etag: bytes, modified: datetime) -> bool:
    """Whether what the client has is current: `If-None-Match`, else `If-Modified-Since`."""
    if (match := headers.get(b"if-none-match")) is not None:
        known = [one.strip().removeprefix(b"W/") for one in match.split(b",")]
        return b"*" in known or etag in known
    since = headers.get(b"if-modified-since")
    at = None if since is None else _date(since)
    return at is not None and modified.replace(microsecond=0) <= at


def _date(raw: bytes) -> datetime | None:
    try:
        at = parsedate_to_datetime(raw.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
