"""Requests become values here, or the client's error: JSON bodies, query strings, paths."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Meta

from domain import errors
from services.gateway import headers as headers_

T = TypeVar("T")

LIMIT = 1024 * 1024
MAX_DEPTH = 64
MAX_QUERY = 1000
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
Int = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]
"""An integer of a request body or query; the bounds show in the schema too."""

_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}
_OFF_LOOP = 256 * 1024  # decoding more than this takes long enough to hold up the event loop
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ECHO = re.compile(r"Invalid (?:enum )?value\b")
_INTEGER = re.compile(r"-?[0-9]+")
_LONGEST_INTEGER = 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MEDIA = re.compile(
    rb"\s*application/(?:json|[a-z0-9.!#$&^_-]+\+json|x-www-form-urlencoded)\s*"
    rb'(?:;\s*charset\s*=\s*"?(?:utf-8|utf8|us-ascii)"?\s*)?;?\s*',
    re.IGNORECASE,
)


class Disconnected(Exception):
    """The client has gone before its request was complete; nobody is there to be answered."""


async def raw_json(scope: Any, receive: Any, *, limit: int = LIMIT) -> bytes:
    """The bytes of a body that claims to be JSON, at most `limit` of them; empty where there is none."""
    found = headers_.of(scope)
    encoding = found.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise errors.UnsupportedMedia("Encoded request bodies are not accepted")
    length = found.get(b"content-length")
    if length is not None and int(length) > limit:
        raise errors.TooLarge(f"A request body has at most {limit} bytes here")
    message = await receive()
    raw: bytes = message.get("body", b"")
    if message["type"] != "http.request" or message.get("more_body"):
        raw = await _rest(message, receive, limit)
    if len(raw) > limit:
        raise errors.TooLarge(f"A request body has at most {limit} bytes here")
    media = found.get(b"content-type")
    if raw and media is not None and media != b"application/json" and not _MEDIA.fullmatch(media):
        raise errors.UnsupportedMedia("The body of this request is application/json")
    return raw


async def ignored(scope: Any, receive: Any, *, limit: int = LIMIT) -> bytes:
    """A body that nobody looks at, whatever it claims to be: at most `limit` bytes of it."""
    length = headers_.of(scope).get(b"content-length")
    if length is not None and int(length) > limit:
        raise errors.TooLarge(f"A request body has at most {limit} bytes here")
    message = await receive()
    raw: bytes = message.get("body", b"")
    if message["type"] != "http.request" or message.get("more_body"):
        raw = await _rest(message, receive, limit)
    if len(raw) > limit:
        raise errors.TooLarge(f"A request body has at most {limit} bytes here")
    return raw


async def parse(raw: bytes, type: type[T]) -> T:
    """As `decode`, off the event loop where that takes long."""
    return decode(raw, type) if len(raw) < _OFF_LOOP else await asyncio.to_thread(decode, raw, type)


def decode(raw: bytes, type: type[T]) -> T:
    """A JSON document as `type`; of keys said twice the last counts.

    Raises Invalid, which says where; the value found there is not repeated.
    """
    check(raw)
    try:
        value: T = _decoder(type).decode(raw)
    except msgspec.DecodeError as error:
        raise errors.Invalid(unechoed(str(error))) from None
    except (ValueError, RecursionError, OverflowError):
        raise errors.Invalid("The body is not valid JSON") from None
    return value


def check(raw: bytes) -> None:
    """Raises Invalid for what msgspec, Postgres or a later reader would choke on: bytes that are not UTF-8,
    NUL characters, nesting deeper than 64, integers beyond 64 bits."""
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise errors.Invalid("The body is not valid UTF-8") from None
    if b"\\u0000" in raw and _NUL_ESCAPE.search(raw):
        raise errors.Invalid("The body holds a NUL character")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _too_deep(raw):
        raise errors.Invalid(f"The body is nested deeper than {MAX_DEPTH}")
    if b"0000000000000000000" in raw.translate(_DIGITS):
        _check_integers(raw)


def query(scope: Any) -> dict[str, str]:
    """The query parameters; of names said twice the last counts. Raises Invalid."""
    raw: bytes = scope["query_string"]
    if not raw:
        return {}
    check_target(scope)
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=MAX_QUERY, errors="strict"))
    except ValueError:
        raise errors.Invalid("The query is not valid") from None


def integer(parameters: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query, clamped to `low` and `high`. Raises Invalid."""
    text = parameters.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        raise errors.Invalid(f"Expected `int` - at query `{name}`")
    if len(text) > _LONGEST_INTEGER:  # no conversion of thousands of digits
        return low if text.startswith("-") else high
    return max(low, min(high, int(text)))


def check_target(scope: Any) -> None:
    """Raises Invalid when path or query hold control characters or are not UTF-8 once decoded."""
    path: bytes = scope.get("raw_path") or b""
    if b"%" in path or not path.isascii():
        _check_text(unquote_to_bytes(path), "path")
    raw: bytes = scope["query_string"]
    if raw and (b"%" in raw or not raw.isascii()):
        _check_text(unquote_to_bytes(raw), "query")


def unechoed(message: str) -> str:
    """msgspec's message without the value it found: that could be a secret in the wrong place."""
    if match := _ECHO.match(message):
        _, at, path = message.rpartition(" - at ")
        return match[0] + at + path if at else match[0]
    return message


def _check_text(raw: bytes, what: str) -> None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise errors.Invalid(f"The {what} is not valid UTF-8") from None
    if _CONTROL.search(text):
        raise errors.Invalid(f"The {what} holds a control character")


async def _rest(message: Any, receive: Any, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise errors.TooLarge(f"A request body has at most {limit} bytes here")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    if (decoder := _DECODERS.get(type)) is None:
        decoder = _DECODERS[type] = msgspec.json.Decoder(type)
    return decoder


def _too_deep(raw: bytes) -> bool:
    # Without recursion and in C: strings go, then everything but brackets, then one level after the other.
    bare = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = bare.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _check_integers(raw: bytes) -> None:
    try:
        stack: list[Any] = [msgspec.json.decode(raw)]
    except (ValueError, RecursionError):
        raise errors.Invalid("The body is not valid JSON, or holds an integer beyond 64 bits") from None
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
            raise errors.Invalid("The body holds an integer beyond 64 bits")
