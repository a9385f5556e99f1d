"""What a server is configured to be, in one form whatever the Panel's own was; secrets stand in it by reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

#: Below it, and before the name of a variable, a secret is named to whoever keeps it.
_VARIABLE = "environment/"
_FILES = "process/files"

StopType = Literal["command", "signal", "stop"]


class Build(Struct, frozen=True):
    """Megabytes; `swap` -1 is unlimited, `cpu_limit` in percent of one core, 0 unlimited; `disk_space` 0 unlimited;
    `threads` are the cores it may use, such as `0-1,3`, or None."""

    memory_limit: int
    swap: int
    io_weight: int
    cpu_limit: int
    threads: str | None
    disk_space: int
    oom_disabled: bool


class Startup(Struct, frozen=True):
    """What runs: the command with its placeholders, in which image."""

    invocation: str
    image: str
    skip_egg_scripts: bool = False
    requires_rebuild: bool = False
    labels: dict[str, str] = {}


class Address(Struct, frozen=True):
    ip: str
    port: int


class Allocations(Struct, frozen=True):
    """`mappings`: address -> ports."""

    force_outgoing_ip: bool
    default: Address | None
    mappings: dict[str, tuple[int, ...]]


class Mount(Struct, frozen=True):
    source: str
    target: str
    read_only: bool


class Egg(Struct, frozen=True):
    """`file_denylist` are patterns of files that nobody may touch."""

    id: str
    file_denylist: tuple[str, ...]


class Stop(Struct, frozen=True):
    """How it is asked to end: by a line on its input, a signal, or as its runtime does."""

    type: StopType
    value: str | None


class Process(Struct, frozen=True):
    """`done` are the words (or `regex:` patterns) by which it is known to have started. `files`, JSON, are the
    settings written into files before a start; they may hold secrets."""

    done: tuple[str, ...]
    user_interaction: tuple[str, ...]
    strip_ansi: bool
    stop: Stop
    files: str


class Configuration(Struct, frozen=True):
    """The whole. In the log, values of `environment` and `process.files` are references."""

    uuid: str
    name: str
    description: str
    suspended: bool
    environment: dict[str, str]
    startup: Startup
    build: Build
    allocations: Allocations
    mounts: tuple[Mount, ...]
    egg: Egg
    process: Process
    crash_detection: bool


def secrets(configuration: Configuration) -> dict[str, str]:
    """What must not stand in the log: name -> value."""
    found = {_VARIABLE + name: value for name, value in configuration.environment.items()}
    found[_FILES] = configuration.process.files
    return found


def with_secrets(configuration: Configuration, values: Mapping[str, str]) -> Configuration:
    """The same with other values: references in place of secrets, or secrets in place of references."""
    environment = {name: values[_VARIABLE + name] for name in configuration.environment}
    process = replace(configuration.process, files=values[_FILES])
    return replace(configuration, environment=environment, process=process)


# What follows from it; the factors are those of the real Wings.

_MEBI = 1024 * 1024
_MEGA = 1_000_000


class Limits(Struct, frozen=True):
    """Of a running server, as containers and cgroups take them: bytes; -1 unlimited; `cpu_quota` in each
    `cpu_period` microseconds, 0 unlimited."""

    memory: int
    memory_reservation: int
    memory_swap: int
    cpu_quota: int
    cpu_period: int
    cpu_shares: int
    cpuset: str
    io_weight: int
    disk: int


def limits(build: Build) -> Limits:
    """The hard limit of memory leaves room for what a server needs beside its own."""
    memory = build.memory_limit
    factor = 1.15 if memory <= 2048 else 1.10 if memory <= 4096 else 1.05
    hard = round(memory * factor * _MEGA)
    return Limits(
        memory=hard,
        memory_reservation=memory * _MEGA,
        memory_swap=-1 if build.swap < 0 else build.swap * _MEGA + hard,
        cpu_quota=build.cpu_limit * 1000,
        cpu_period=100_000,
        cpu_shares=1024,
        cpuset=build.threads or "",
        io_weight=build.io_weight,
        disk=max(build.disk_space, 0) * _MEBI,
    )


def variables(configuration: Configuration, timezone: str) -> dict[str, str]:
    """The environment of its next start, in order, from a configuration with its secrets."""
    default = configuration.allocations.default
    made = {
        "TZ": timezone,
        "STARTUP": configuration.startup.invocation,
        "SERVER_MEMORY": str(configuration.build.memory_limit),
        "SERVER_IP": "" if default is None else default.ip,
        "SERVER_PORT": "" if default is None else str(default.port),
    }
    for name, value in configuration.environment.items():
        made.setdefault(name.upper(), value)
    return made


def shown(configuration: Configuration) -> dict[str, Any]:
    """As `GET /api/servers/{server}` shows it, from a configuration with its secrets."""
    return {
        "uuid": configuration.uuid,
        "meta": {"name": configuration.name, "description": configuration.description},
        "suspended": configuration.suspended,
        "invocation": configuration.startup.invocation,
        "skip_egg_scripts": configuration.startup.skip_egg_scripts,
        "environment": configuration.environment,
        "labels": configuration.startup.labels,
        "allocations": configuration.allocations,
        "build": configuration.build,
        "crash_detection_enabled": configuration.crash_detection,
        "mounts": configuration.mounts,
        "egg": configuration.egg,
        "container": {"image": configuration.startup.image},
    }
