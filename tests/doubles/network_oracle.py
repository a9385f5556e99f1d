"""What several directories should come to, worked out from what they mean rather than from what they send.

It shares no code with the product: records are compared as they were made up, and votes are counted one by one.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from tests.doubles.directories import Content, User

Records = dict[str, dict[str, Any]]

_ORDINARY = string.digits + string.ascii_lowercase[:22]
_THEIRS = "0123456789abcdefghjkmnpqrstvwxyz"


def user(one: User) -> dict[str, Any]:
    number = int(one.serial.lower().translate(str.maketrans(_THEIRS, _ORDINARY)), 32)
    return {
        "serial_number": number,
        "custom_serial_number": one.serial,
        "first_name": one.first,
        "last_name": one.last,
        "description": one.description,
        "inbox_fee": float(one.fee or 0),
        "class": one.class_.lower(),
        "beacon": one.beacon,
        "denomination": {"byte": 1, "kilo": 2, "mega": 3, "giga": 4}.get(one.class_.lower(), 0),
        "auto_address": (
            one.first + "." + one.last + "@" + one.description + "#" + one.serial + "." + one.class_.capitalize()
        ),
    }


def server(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server_id": one["server_id"],
        "ip_address": one["ip_address"],
        "port": one.get("port", 50000),
        "server_index": one.get("server_index", 0),
        "server_type": one.get("server_type", "QMAIL"),
        "cost_per_mb": float(one.get("cost_per_mb", 1)),
        "cost_per_8_weeks": float(one.get("cost_per_8_weeks", 1)),
        "percent_uptime": one.get("percent_uptime", 100),
        "performance_benchmark_percentile": one.get("performance_benchmark_percentile", 0),
        "region": one.get("region"),
        "description": one.get("description"),
        "date_created": one.get("date_created"),
    }


def meant(content: Content) -> dict[str, Records]:
    """list -> key -> record, of one directory."""
    people: Records = {}
    for one in content.users:
        people[str(user(one)["serial_number"])] = user(one)
    machines = {str(one["server_id"]): server(one) for one in content.qmail}
    raida: Records = {}
    for index, line in enumerate(content.raida):
        host, colon, port = line.partition(":")
        raida[str(index)] = {"raida_index": index, "ip": host, "port": int(port) if colon else 50000 + index}
    return {"users": people, "servers": machines, "raida_servers": raida}


def expected(stories: Sequence[Content | None]) -> dict[str, Records] | None:
    """What is accepted; None where the run must fail. A story is None where the directory gave nothing of use."""
    total = len(stories)
    told = [meant(story) for story in stories if story is not None]
    if 2 * len(told) <= total:
        return None
    result: dict[str, Records] = {}
    for name in ("users", "servers", "raida_servers"):
        result[name] = {}
        for key in {key for each in told for key in each[name]}:
            says = [each[name].get(key) for each in told]
            different: list[Any] = []
            for one in says:
                if one not in different:
                    different.append(one)
            winners = [one for one in different if 2 * says.count(one) > total]
            if not winners:
                return None
            if winners[0] is not None:
                result[name][key] = winners[0]
    return result


def dissenting(stories: Sequence[Content | None], accepted: Mapping[str, Records]) -> set[int]:
    """The numbers of the directories that gave something else."""
    return {number for number, story in enumerate(stories) if story is not None and meant(story) != accepted}
