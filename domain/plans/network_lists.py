"""The three lists of a directory as they come: text of a stranger, into records with every value in its bounds."""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from domain import errors
from domain.plans.network import UNUSABLE, List, Listing

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: class of a user -> its denomination; any other is 0
DENOMINATIONS: Mapping[str, int] = {"bit": 0, "byte": 1, "kilo": 2, "mega": 3, "giga": 4}
RAIDA = 25
#: A network has a handful of servers; each is looked at in every run.
MAX_SERVERS = 1000
PORT = 50_000

_DIGITS = {digit: value for value, digit in enumerate(ALPHABET)}
_HEADER = "CustomSerialNumber"
_COLUMNS = 7
_NAME, _TEXT, _ID = 255, 1000, 64
_MOST = 1e12
_BIGINT = 2**63 - 1
_HOST = re.compile(r"(?=.{1,253}\Z)(?!.*(?:\.\.|\.-|-\.))[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_LINE = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_KEY = re.compile(r"[!-~]{1,64}")
_SHOWN = 3
_encode = msgspec.json.Encoder(order="sorted").encode


class _Unusable(Exception):
    """This record cannot be used, but its neighbours can."""


def parse(name: List, body: bytes, max_rows: int) -> Listing:
    """A list as it came. Of a key said twice the last counts. Raises errors.Invalid, which says why, for what is no
    such list at all: not UTF-8, not of its format, more than `max_rows` rows, more than half of them of no use."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"not UTF-8 at byte {error.start}") from None
    limit = {"users": max_rows, "servers": min(max_rows, MAX_SERVERS), "raida_servers": RAIDA}[name]
    return _collect(_READERS[name](text), limit)


Row = tuple[str | None, Callable[[], dict[str, Any]]]


def _collect(rows: Iterator[Row], limit: int) -> Listing:
    records: dict[str, bytes] = {}
    troubles: list[str] = []
    seen = skipped = bad = 0
    for key, read in rows:
        seen += 1
        if seen > limit:
            raise errors.Invalid(f"more than {limit} rows")
        try:
            value = _encode(read())
        except _Unusable as error:
            value = UNUSABLE
            bad += 1
            if len(troubles) < _SHOWN:
                troubles.append(f"row {seen}: {error}")
        if key is None:
            skipped += 1
        else:
            records.pop(key, None)  # the last one also has the last place
            records[key] = value
    if bad > seen / 2:
        raise errors.Invalid(f"{bad} of {seen} rows are of no use ({'; '.join(troubles)})")
    return Listing(records, skipped, tuple(troubles))


# Users: CSV.


def serial_number(text: str) -> int | None:
    """Base 32, upper or lower case; what is no digit is skipped. None where there is no digit."""
    digits = [_DIGITS[digit] for digit in text.upper() if digit in _DIGITS]
    number = 0
    for digit in digits:
        number = number * 32 + digit
    return number if digits else None


def _users(text: str) -> Iterator[Row]:
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            if row and row[0].strip() != _HEADER:
                yield _user_key(row), partial(_user, row)
    except csv.Error as error:
        raise errors.Invalid(f"not CSV at line {rows.line_num}: {error}") from None


def _user_key(row: list[str]) -> str | None:
    if len(row) < _COLUMNS or len(row[0]) > _ID or (number := serial_number(row[0])) is None or number > _BIGINT:
        return None
    return str(number)


def _user(row: list[str]) -> dict[str, Any]:
    if len(row) < _COLUMNS:
        raise _Unusable(f"{len(row)} columns, not {_COLUMNS}")
    if (key := _user_key(row)) is None:
        raise _Unusable("no serial number")
    custom, first, last, description, fee, class_, beacon = (column.strip() for column in row[:_COLUMNS])
    class_ = _text(class_, _ID, "Class").lower()
    return {
        "serial_number": int(key),
        "custom_serial_number": _text(custom, _ID, "CustomSerialNumber"),
        "first_name": _text(first, _NAME, "FirstName"),
        "last_name": _text(last, _NAME, "LastName"),
        "description": _text(description, _TEXT, "Description"),
        "inbox_fee": _amount(_float(fee) if fee else 0.0, "InboxFee"),
        "class": class_,
        "beacon": _text(beacon, _NAME, "Beacon"),
        "denomination": DENOMINATIONS.get(class_, 0),
        "auto_address": f"{first}.{last}@{description}#{custom}.{class_.capitalize()}",
    }


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _Unusable("InboxFee is no number") from None


# QMail servers: JSON.


def _servers(text: str) -> Iterator[Row]:
    if not text.strip():
        return
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise errors.Invalid("not JSON") from None
    if isinstance(found, dict):
        found = found.get("servers")
    if not isinstance(found, list):
        raise errors.Invalid('neither an array nor {"servers": [...]}')
    for one in found:
        yield _server_key(one), partial(_server, one)


def _server_key(one: Any) -> str | None:
    key = one.get("server_id") if isinstance(one, dict) else None
    return key if isinstance(key, str) and _KEY.fullmatch(key) else None


def _server(one: Any) -> dict[str, Any]:
    if (key := _server_key(one)) is None:
        raise _Unusable("no server_id")
    address = one.get("ip_address")
    if not isinstance(address, str) or not is_address(address):
        raise _Unusable("no ip_address")
    return {
        "server_id": key,
        "ip_address": address,
        "port": _whole(one, "port", PORT, 1, 65_535),
        "server_index": _whole(one, "server_index", 0, 0, 2**31 - 1),
        "server_type": _said(one, "server_type", _ID) or "QMAIL",
        "cost_per_mb": _amount(_number(one, "cost_per_mb", 1.0), "cost_per_mb"),
        "cost_per_8_weeks": _amount(_number(one, "cost_per_8_weeks", 1.0), "cost_per_8_weeks"),
        "percent_uptime": _percent(one, "percent_uptime", 100),
        "performance_benchmark_percentile": _percent(one, "performance_benchmark_percentile", 0),
        "region": _said(one, "region", _NAME),
        "description": _said(one, "description", _TEXT),
        "date_created": _said(one, "date_created", _ID),
    }


# RAIDA servers: text.


def _raida_servers(text: str) -> Iterator[Row]:
    lines = (line.strip() for line in text.splitlines())
    for index, line in enumerate(line for line in lines if line):
        yield str(index), partial(_raida_server, index, line)


def _raida_server(index: int, line: str) -> dict[str, Any]:
    found = _LINE.fullmatch(line)
    # Without a match it may be a bare address of IPv6, which has colons of its own.
    host, port = (found["v6"] or found["host"], found["port"]) if found else (line, None)
    if not is_address(host):
        raise _Unusable("no address")
    number = PORT + index if port is None else int(port)
    if not 1 <= number <= 65_535:
        raise _Unusable("no port")
    return {"raida_index": index, "ip": host, "port": number}


# Values.


def is_address(text: str) -> bool:
    """Whether it is an IP address or the name of a host."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True


def _text(text: str, most: int, what: str) -> str:
    if len(text) > most:
        raise _Unusable(f"{what} has more than {most} characters")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise _Unusable(f"{what} holds a control character")
    return text


def _said(one: dict[str, Any], name: str, most: int) -> str | None:
    value = one.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _Unusable(f"{name} is no text")
    return _text(value, most, name)


def _number(one: dict[str, Any], name: str, default: float) -> float:
    value = one.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unusable(f"{name} is no number")
    return value


def _amount(value: float, what: str) -> float:
    if not 0 <= value <= _MOST:  # neither is what is not a number
        raise _Unusable(f"{what} is not 0 to {_MOST:.0f}")
    return abs(float(value))


def _whole(one: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = _number(one, name, default)
    if not low <= value <= high or value != int(value):  # the bounds also keep out what is not finite
        raise _Unusable(f"{name} is no whole number of {low} to {high}")
    return int(value)


def _percent(one: dict[str, Any], name: str, default: int) -> float:
    value = _number(one, name, default)
    if not 0 <= value <= 100:
        raise _Unusable(f"{name} is not 0 to 100")
    return int(value) if value == int(value) else value


_READERS: Mapping[List, Callable[[str], Iterator[Row]]] = {
    "users": _users,
    "servers": _servers,
    "raida_servers": _raida_servers,
}
