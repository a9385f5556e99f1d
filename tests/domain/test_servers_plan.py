"""What the Panel says, read; what follows from it; and what two configurations differ in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from domain import errors, server_config
from domain.plans import servers

UUID = "8d3f9a2e-5c7b-4f1e-9d2a-6e8f1c3b5a7d"


def answer(**changed: Any) -> dict[str, Any]:
    """As the Panel writes it; `build__swap=-1` changes one value of the settings, `process__stop=None` of the rest."""
    made: dict[str, Any] = {
        "settings": {
            "uuid": UUID,
            "meta": {"name": "My Server", "description": "text"},
            "suspended": False,
            "environment": {"SERVER_JARFILE": "server.jar", "port": 25565, "ONLINE": True, "EMPTY": None},
            "invocation": "java -jar {{SERVER_JARFILE}}",
            "skip_egg_scripts": False,
            "build": {
                "memory_limit": 1024,
                "swap": 0,
                "io_weight": 500,
                "cpu_limit": 100,
                "threads": None,
                "disk_space": 10240,
                "oom_disabled": True,
            },
            "container": {"image": "ghcr.io/yolks:java_17", "oom_disabled": True, "requires_rebuild": False},
            "allocations": {
                "force_outgoing_ip": False,
                "default": {"ip": "10.0.0.1", "port": 25565},
                "mappings": {"10.0.0.1": [25565, 25566]},
            },
            "mounts": [{"source": "/mnt/a", "target": "/data", "read_only": True}],
            "egg": {"id": "egg", "file_denylist": ["*.jar"]},
        },
        "process_configuration": {
            "startup": {"done": [")! For help, type "], "user_interaction": [], "strip_ansi": False},
            "stop": {"type": "command", "value": "stop"},
            "configs": [
                {
                    "parser": "properties",
                    "file": "server.properties",
                    "replace": [{"match": "rcon.password", "replace_with": "hunter2"}],
                }
            ],
        },
    }
    for path, value in changed.items():
        *parents, last = ("settings." + path.replace("__", ".")).replace("settings.process.", "process.").split(".")
        place = made
        for parent in parents:
            place = place["process_configuration" if parent == "process" else parent]
        place[last] = value
    return made


def read(**changed: Any) -> server_config.Configuration:
    return servers.server(json.dumps(answer(**changed)).encode(), UUID)


def test_an_answer_becomes_a_configuration() -> None:
    found = read()
    assert (found.uuid, found.name, found.suspended) == (UUID, "My Server", False)
    assert found.environment == {"SERVER_JARFILE": "server.jar", "port": "25565", "ONLINE": "true", "EMPTY": ""}
    assert found.allocations.mappings == {"10.0.0.1": (25565, 25566)}
    assert found.process.stop == server_config.Stop("command", "stop")
    assert found.crash_detection


def test_phps_empty_maps_and_what_may_be_missing() -> None:
    found = read(environment=[], allocations__mappings=[], egg__file_denylist=None, labels=[], mounts=None)
    assert found.environment == {}
    assert found.allocations.mappings == {}
    assert found.egg.file_denylist == ()
    assert found.startup.labels == {}
    assert found.mounts == ()


def test_legacy_spellings() -> None:
    found = read(process__startup={"done": "ready"}, process__configs=None, crash_detection_enabled=False)
    assert found.process.done == ("ready",)
    assert found.process.files == "[]"
    assert not found.crash_detection


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("uuid", "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"),
        ("build__memory_limit", -1),
        ("build__memory_limit", 10**15),
        ("build__memory_limit", "1024"),
        ("build__swap", -2),
        ("build__cpu_limit", -100),
        ("build__io_weight", 5000),
        ("build__threads", "0-"),
        ("build__threads", "all"),
        ("build__disk_space", 10**12),
        ("environment", ["A=B"]),
        ("environment", {"A=B": "c"}),
        ("environment", {"A": "c\0d"}),
        ("environment", {"A": ["c"]}),
        ("allocations__default", {"ip": "10.0.0.1", "port": 0}),
        ("allocations__mappings", {"10.0.0.1": [70000]}),
        ("process__stop", {"type": "shout", "value": None}),
        ("process__configs", [{"parser": "toml", "file": "x"}]),
        ("container", None),
        ("suspended", "yes"),
    ],
)
def test_what_is_of_no_use_is_refused(path: str, value: Any) -> None:
    with pytest.raises(errors.RemoteRefused):
        read(**{path: value})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        json.dumps({**answer(), "process_configuration": None}).encode(),
        json.dumps({"settings": answer()["settings"]}).encode(),
        b'{"settings":' + b"[" * 100_000,
    ],
)
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.RemoteRefused):
        servers.server(raw, UUID)


def test_a_refusal_shows_no_value_of_the_environment() -> None:
    with pytest.raises(errors.RemoteRefused) as raised:
        read(environment={"PASSWORD": {"inner": "hunter2"}})
    assert "hunter2" not in raised.value.message
    assert "PASSWORD" not in raised.value.message


def test_secrets_leave_and_come_back() -> None:
    found = read()
    named = server_config.secrets(found)
    assert any("hunter2" in value for value in named.values())
    kept = server_config.with_secrets(found, {name: f"sealed:{n}" for n, name in enumerate(named)})
    assert "hunter2" not in repr(kept)
    assert "server.jar" not in repr(kept.environment)
    assert server_config.with_secrets(kept, named) == found


# What differs.


def test_each_difference_says_when_it_is_felt() -> None:
    before = read()
    after = read(build__memory_limit=2048, invocation="sh", suspended=True, process__stop={"type": "stop"})
    found = {one.field: one.effect for one in servers.differences(before, after)}
    assert found == {
        "build.memory_limit": "at_once",
        "invocation": "next_start",
        "suspended": "at_once",
        "process_configuration.stop": "at_once",
    }


def test_of_a_secret_only_that_it_differs_is_shown() -> None:
    before, after = read(), read(environment={"SERVER_JARFILE": "other.jar", "NEW": "x"})
    found = servers.differences(before, after)
    assert {one.field for one in found} == {
        f"environment.{n}" for n in ("SERVER_JARFILE", "NEW", "port", "ONLINE", "EMPTY")
    }
    shown = {one.field: (one.before, one.after) for one in found}
    assert shown["environment.SERVER_JARFILE"] == ("set", "set")
    assert shown["environment.NEW"] == (None, "set")
    assert shown["environment.port"] == ("set", None)


def test_equal_configurations_do_not_differ_and_a_new_one_differs_in_everything() -> None:
    assert servers.differences(read(), read()) == ()
    assert {"uuid", "suspended"} & {one.field for one in servers.differences(None, read())} == {"suspended"}


# What follows.


@pytest.mark.parametrize(
    ("megabytes", "hard"), [(1024, 1_177_600_000), (2048, 2_355_200_000), (4096, 4_505_600_000), (8192, 8_601_600_000)]
)
def test_memory_has_room_for_overhead(megabytes: int, hard: int) -> None:
    limits = server_config.limits(replace(read().build, memory_limit=megabytes, swap=100))
    assert (limits.memory, limits.memory_reservation) == (hard, megabytes * 1_000_000)
    assert limits.memory_swap == hard + 100_000_000


def test_other_limits() -> None:
    limits = server_config.limits(read(build__swap=-1, build__threads="0-1,3", build__cpu_limit=250).build)
    assert (limits.memory_swap, limits.cpuset, limits.cpu_quota, limits.cpu_period) == (-1, "0-1,3", 250_000, 100_000)
    assert limits.disk == 10_240 * 1024 * 1024
    assert server_config.limits(read(build__disk_space=-1, build__cpu_limit=0).build).disk == 0


def test_variables_come_in_order_and_what_is_set_stays() -> None:
    found = server_config.variables(read(environment={"startup": "no", "b": "1", "B": "2"}), "UTC")
    assert list(found) == ["TZ", "STARTUP", "SERVER_MEMORY", "SERVER_IP", "SERVER_PORT", "B"]
    assert (found["STARTUP"], found["B"], found["SERVER_PORT"]) == ("java -jar {{SERVER_JARFILE}}", "1", "25565")


# A listing of all.


def _known(count: int) -> dict[str, servers.Sighting]:
    return {str(number): servers.Sighting(False) for number in range(count)}


def test_a_listing_that_suspends_or_drops_many_is_suspicious() -> None:
    known = _known(10)
    few = {**known, "1": servers.Sighting(True), "2": servers.Sighting(True)}
    assert servers.suspicious(known, few, 0.2) is None
    many = {**few, "3": servers.Sighting(True)}
    assert servers.suspicious(known, many, 0.2) == {"what": "suspended", "count": 3, "known": 10}
    gone = {name: one for name, one in known.items() if name > "2"}
    assert servers.suspicious(known, gone, 0.2) == {"what": "missing", "count": 3, "known": 10}
    assert servers.suspicious({}, many, 0.2) is None
