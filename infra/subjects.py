"""NATS subjects out of our own names: every token is `[a-z0-9_-]+`, so no name can widen, split or inject a subject."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

EVENTS = "evt.>"
NOBODY = "_"

_PLAIN = re.compile(r"[a-z0-9_-]+")
_ENCODED = "b32_"
_DIGEST = "sha_"
_RESERVED = (_ENCODED, _DIGEST)
#: The server ends connections whose protocol line is longer than 4,096 bytes.
_LONGEST = 200


@lru_cache(maxsize=4096)
def token(text: str) -> str:
    """One token for any text, and different texts never share one. `plain` reads it back.

    What is plain already stays itself; anything else is Base32 of its UTF-8 bytes behind `b32_`; what is too long
    for a subject is its SHA-256 behind `sha_`, which alone cannot be read back.
    """
    if len(text) <= _LONGEST and _PLAIN.fullmatch(text) and not text.startswith(_RESERVED):
        return text
    raw = text.encode("utf-8", "surrogatepass")
    encoded = _ENCODED + _base32(raw)
    return encoded if len(encoded) <= _LONGEST else _DIGEST + _base32(hashlib.sha256(raw).digest())


def plain(given: str) -> str:
    """The text of a token. Raises ValueError for one that is not of our making, and for a digest."""
    text = _decoded(given) if given.startswith(_ENCODED) else given
    if text is None or given.startswith(_DIGEST) or token(text) != given:
        raise ValueError("not a token that can be read back")
    return text


def _decoded(given: str) -> str | None:
    body = given.removeprefix(_ENCODED).upper()
    try:
        return base64.b32decode(body + "=" * (-len(body) % 8)).decode("utf-8", "surrogatepass")
    except ValueError:
        return None


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


@lru_cache(maxsize=4096)
def event(tenant: str, owner: str, topic: str) -> str:
    """`evt.<tenant>.<owner>.<context>.<event>`: always five tokens. The owner is `_` where there is none."""
    context, _, name = topic.partition(".")
    return f"evt.{token(tenant)}.{token(owner or NOBODY)}.{token(context)}.{token(name)}"


def events_of(tenant: str, topics: Sequence[str] = ()) -> tuple[str, ...]:
    """Where a tenant's events are, whoever owns them: all of them, or those of topics such as `jobs.completed` and
    `jobs.*`."""
    if not topics:
        return (f"evt.{token(tenant)}.>",)
    split = (topic.partition(".") for topic in topics)
    return tuple(
        f"evt.{token(tenant)}.*.{token(context)}.{name if name == '*' else token(name)}" for context, _, name in split
    )


def within(wanted: str, allowed: str) -> bool:
    """Whether everything below one subject is below another; both may have wildcards."""
    ours, theirs = wanted.split("."), allowed.split(".")
    for place, limit in enumerate(theirs):
        if limit == ">":
            return len(ours) > place
        if place >= len(ours) or ours[place] == ">" or (ours[place] != limit and (limit != "*" or not ours[place])):
            return False
    return len(ours) == len(theirs)


def person(tenant: str, owner: str) -> str:
    """Everything that belongs to one person."""
    return f"evt.{token(tenant)}.{token(owner)}.>"


def ask(kind: str) -> str:
    """`ask.<kind>`: always two tokens."""
    return f"ask.{token(kind)}"


def server(uuid: str, what: str) -> str:
    """`servers.<uuid>.<what>`: what is said about a server over core NATS, and kept nowhere; `*` is any server."""
    return f"servers.{uuid if uuid == '*' else token(uuid)}.{what}"
