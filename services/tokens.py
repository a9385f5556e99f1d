"""Bearer tokens of ours: how they look, what is kept of them, and which scopes a key's stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from domain import errors, keys

PATTERN = re.compile(rb"ud[a-z]_[a-z0-9-]{1,64}_[A-Za-z0-9_-]{43}")


def of_key(id: str, secret: str) -> str:
    """An API key as its owner sees it, once: `secret` is 32 bytes in unpadded base64url."""
    made = f"udk_{id}_{secret}"
    assert PATTERN.fullmatch(made.encode()), "a key's id is lower-case letters, digits and -"
    return made


def digest(token: str) -> str:
    """What is kept of a token: SHA-256, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def scopes(names: Iterable[str]) -> frozenset[str]:
    """Scopes as a key holds them; `jobs` alone stands for `jobs:read` and `jobs:write`. Raises errors.Invalid."""
    found: set[str] = set()
    for name in names:
        found |= {f"{name}:read", f"{name}:write"} if name in keys.AREAS else {name}
    if unknown := sorted(found - keys.SCOPES):
        raise errors.Invalid(f"Unknown scope {unknown[0]}; there are {', '.join(sorted(keys.SCOPES))}")
    return frozenset(found)
