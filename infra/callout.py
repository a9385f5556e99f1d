"""Who comes in to NATS from outside: the server asks, and takes our signed word for it (its auth callout).

Its words are JSON web tokens under Ed25519 keys in its own spelling of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct, field

from infra import permissions

#: The first byte of an account's public key in this spelling: it begins with A.
_ACCOUNT = b"\0"
#: A consumer asks for little; what it is sent is larger.
_PAYLOAD = 64 * 1024
_SUBSCRIPTIONS = 200


class Malformed(Exception):
    """The server's question is not one that we know."""


class _Server(Struct):
    id: str


class _Said(Struct):
    """What a client said when it connected."""

    user: str = ""
    password: str = field(name="pass", default="")
    auth_token: str = ""


class Asked(Struct):
    """A connection that wants to come in."""

    server_id: _Server
    user_nkey: str
    connect_opts: _Said

    @property
    def token(self) -> str:
        """A token, or a password: both are the same credential."""
        return self.connect_opts.auth_token or self.connect_opts.password


class _Question(Struct):
    nats: Asked


class Issuer:
    """Signs who may come in. `secret` is any text that nobody guesses; the server knows the `public` key of it."""

    def __init__(self, secret: str) -> None:
        seed = hashlib.sha256(b"undrift nats issuer\0" + secret.encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = _ACCOUNT + self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        check = binascii.crc_hqx(raw, 0).to_bytes(2, "little")
        self.public = base64.b32encode(raw + check).decode().rstrip("=")

    def admit(self, asked: Asked, id: str, until: float | None) -> bytes:
        """The answer that lets a connection in as this credential, until this time (seconds since 1970)."""
        may = permissions.consumer(id)
        user: dict[str, Any] = {
            "sub": asked.user_nkey,
            "name": id,
            "aud": permissions.OUTSIDE,
            "nats": {
                "type": "user",
                "version": 2,
                "pub": {"allow": list(may.publish)},
                "sub": {"allow": list(may.subscribe)},
                "subs": _SUBSCRIPTIONS,
                "payload": _PAYLOAD,
                "data": -1,
            },
        }
        if until is not None:
            user["exp"] = int(until)
        return self._answer(asked, {"jwt": self._signed(user)})

    def refuse(self, asked: Asked, reason: str) -> bytes:
        return self._answer(asked, {"error": reason})

    def _answer(self, asked: Asked, said: Mapping[str, str]) -> bytes:
        about = {"type": "authorization_response", "version": 2, **said}
        return self._signed({"sub": asked.user_nkey, "aud": asked.server_id.id, "nats": about}).encode()

    def _signed(self, claims: Mapping[str, Any]) -> str:
        said = {**claims, "iss": self.public, "iat": int(time.time())}
        said["jti"] = base64.b32encode(hashlib.sha256(msgspec.json.encode(said)).digest()).decode().rstrip("=")
        parts = ({"typ": "JWT", "alg": "ed25519-nkey"}, said)
        text = ".".join(_encoded(msgspec.json.encode(part)) for part in parts)
        return f"{text}.{_encoded(self._key.sign(text.encode()))}"


def question(data: bytes) -> Asked:
    """What the server asks. Only the server can ask, and what is signed for one question answers no other. Raises
    Malformed."""
    try:
        body = data.split(b".")[1]
        raw = base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
        return msgspec.json.decode(raw, type=_Question).nats
    except (IndexError, ValueError, msgspec.MsgspecError):
        raise Malformed from None


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
