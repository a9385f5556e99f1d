"""Where a sync session goes from and to, told apart by the text alone, and what of it may be kept.

A location is a folder, a named connection, or any other name. A connection string is a name, too, but a secret one:
only what is known to be harmless is kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from domain import errors

Kind = Literal["folder", "connection", "name", "secret"]

CONNECTION = "connection:"
HIDDEN = "***"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WINDOWS = re.compile(r"[A-Za-z]:(?:[\\/]|$)|\\\\")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_QUERY = re.compile(r"[?#]")
_PLACE = re.compile(r"[\w.:/%~\[\]-]+")
#: Of a connection string in the words of ADO.NET and of its kin, what names a place and nobody's secret.
_SHOWN = frozenset(
    {"server", "data source", "datasource", "address", "addr", "network address", "host", "hostname", "port"}
    | {"database", "initial catalog", "dbname", "filename"}
)
_HARMLESS = re.compile(r"[\w .,:\\/()\[\]-]{1,200}")


class Location(Struct, frozen=True):
    """`shown` may be kept and told; of a `secret` that is not all of it."""

    kind: Kind
    shown: str


def parse(text: str) -> Location:
    """Raises errors.Invalid for what can be no location here; its text is not in the error."""
    if not text.strip() or not text.isprintable():
        raise errors.Invalid("A location is a folder, connection:NAME or a name, of printable characters")
    if text.startswith("/"):
        return Location("folder", text)
    if _WINDOWS.match(text):
        raise errors.Invalid("A folder is an absolute path such as /srv/data; paths of Windows mean nothing here")
    if text.startswith(CONNECTION):
        if not _NAME.fullmatch(text.removeprefix(CONNECTION)):
            raise errors.Invalid("A connection is connection:NAME, the name of letters, digits, '.', '_' and '-'")
        return Location("connection", text)
    if _URL.match(text):
        shown = _url(text)
        open_ = shown == text and text.lower().startswith(("http://", "https://"))
        return Location("name" if open_ else "secret", shown)
    if "=" in text:
        return Location("secret", _pairs(text))
    login, _, place = text.rpartition("@")
    if ":" in login:  # user:password@host
        return Location("secret", place if _PLACE.fullmatch(place) else HIDDEN)
    return Location("name", text)


def _url(text: str) -> str:
    """Scheme, host, port and path: neither who asks nor what is asked. A password may hold any mark unescaped, so what
    is before the last `@` is left out, and all of it where that cannot be told."""
    scheme, _, rest = text.partition("://")
    base = _QUERY.split(rest, maxsplit=1)[0]
    place = base.rpartition("@")[2]
    if "@" in rest[len(base) :] or not _PLACE.fullmatch(place):
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{place}"


def _pairs(text: str) -> str:
    """`Key=value;…` with only the harmless keys, and of those only harmless values; nothing where it is malformed."""
    try:
        found = list(_parsed(text))
    except ValueError:
        return HIDDEN
    kept = [f"{key}={value}" for key, value in found if key.lower() in _SHOWN and _HARMLESS.fullmatch(value)]
    return ";".join(kept) + ";" if kept else HIDDEN


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    """Values may stand in quotes, a doubled one is itself. Raises ValueError for what cannot be told apart: a piece of
    a password must not be taken for a pair of its own."""
    at = 0
    while at < len(text):
        if text[at] in "; ":
            at += 1
            continue
        key, found, _ = text[at:].partition("=")
        if not found or ";" in key:
            raise ValueError("a key without a value")
        at += len(key) + 1
        while at < len(text) and text[at] == " ":
            at += 1
        if at < len(text) and text[at] in "\"'":
            value, at = _quoted(text, at)
        else:
            value = text[at:].partition(";")[0]
            at += len(value)
            if any(mark in value for mark in "\"'{}"):
                raise ValueError("a quote within a value")
        yield key.strip(), value.strip()


def _quoted(text: str, at: int) -> tuple[str, int]:
    quote, value = text[at], ""
    at += 1
    while True:
        end = text.find(quote, at)
        if end < 0:
            raise ValueError("a quote that is not closed")
        value += text[at:end]
        at = end + 1
        if text[at : at + 1] != quote:
            break
        value, at = value + quote, at + 1
    if text[at:].lstrip(" ")[:1] not in ("", ";"):
        raise ValueError("something behind a quote")
    return value, at
