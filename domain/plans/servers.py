"""What the Panel says of a server, read strictly and in one form; and what two configurations differ in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from domain import errors
from domain import server_config as config

#: When a difference is felt.
Effect = Literal["at_once", "next_start"]

T = TypeVar("T")
Text = Annotated[str, Meta(max_length=64 * 1024)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
_MOST_MB = 1 << 30
Megabytes = Annotated[int, Meta(ge=0, le=_MOST_MB)]
Scalar = str | bool | int | float | None
#: PHP writes an empty map as `[]`.
Map = dict[str, T] | list[Any]

_THREADS = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")
_VARIABLE = re.compile(r"[^=\0]{1,255}")


class Spec(Struct, frozen=True, omit_defaults=True):
    """A sync of one `server`, or of all that the Panel lists: then a listing that would suspend or lose more than
    `max_change_fraction` of them is held, unless `force` says that it is meant."""

    server: str | None = None
    max_change_fraction: float = 0.2
    force: bool = False


class Difference(Struct, frozen=True):
    """`field` as the Panel names it, such as `build.memory_limit`. Of a secret `before` and `after` say only whether
    there was one."""

    field: str
    effect: Effect
    before: Any
    after: Any


class Result(Struct, frozen=True):
    """Of a sync: of one server in how many fields it differs from before, of all how many servers do."""

    differences: int = 0


# What the Panel writes.


class _Meta(Struct):
    name: Text = ""
    description: Text | None = ""


class _Build(Struct):
    memory_limit: Megabytes
    swap: Annotated[int, Meta(ge=-1, le=_MOST_MB)] = 0
    io_weight: Annotated[int, Meta(ge=0, le=1000)] | None = 500
    cpu_limit: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    threads: Annotated[str, Meta(max_length=1024)] | None = None
    disk_space: Annotated[int, Meta(ge=-_MOST_MB, le=_MOST_MB)] = 0
    oom_disabled: bool | None = None


class _Container(Struct):
    image: Text
    oom_disabled: bool = True
    requires_rebuild: bool = False


class _Address(Struct):
    ip: Name
    port: Port


class _Allocations(Struct):
    force_outgoing_ip: bool = False
    default: _Address | None = None
    mappings: Map[list[Port]] | None = None


class _Mount(Struct):
    source: Text
    target: Text
    read_only: bool = False


class _Egg(Struct):
    id: Text = ""
    file_denylist: list[Text] | None = None


class _Settings(Struct):
    uuid: Name
    build: _Build
    container: _Container
    meta: _Meta | list[Any] | None = None
    suspended: bool = False
    environment: Map[Scalar] | None = None
    invocation: Text = ""
    skip_egg_scripts: bool = False
    allocations: _Allocations | None = None
    mounts: list[_Mount] | None = None
    egg: _Egg | None = None
    labels: Map[Text] | None = None
    crash_detection_enabled: bool = True


class _Startup(Struct):
    done: list[Text] | Text | None = None
    user_interaction: list[Text] | None = None
    strip_ansi: bool = False


class _Stop(Struct):
    type: Literal["command", "signal", "stop"] = "stop"
    value: Text | None = None


class _Replace(Struct, omit_defaults=True):
    match: Text
    replace_with: Any = None
    value: Any = None
    if_value: Text | None = None


class _File(Struct):
    parser: Literal["file", "yaml", "yml", "properties", "ini", "json", "xml"]
    file: Text
    replace: list[_Replace] | None = None


class _Process(Struct):
    startup: _Startup | list[Any] | None = None
    stop: _Stop | list[Any] | None = None
    configs: list[_File] | None = None


class _Server(Struct):
    settings: _Settings
    process_configuration: _Process


_server = msgspec.json.Decoder(_Server)


class Listed(Struct):
    """One server of the Panel's listing, its parts yet to be read: a broken one hides no other."""

    uuid: str
    settings: msgspec.Raw
    process_configuration: msgspec.Raw


class PageMeta(Struct):
    current_page: int
    last_page: int
    total: int = 0


class ListPage(Struct):
    data: list[Listed]
    meta: PageMeta


def server(raw: bytes, uuid: str) -> config.Configuration:
    """The Panel's answer about a server, with its secrets. Raises errors.RemoteRefused for one that is of no use: not
    what the Panel's interface says, absurd, or about another server."""
    try:
        found = _server.decode(raw)
        return _configuration(found, uuid)
    except (msgspec.MsgspecError, UnicodeDecodeError, errors.Invalid) as error:
        reason = error.message if isinstance(error, errors.Invalid) else _where(error)
        raise errors.RemoteRefused(f"The Panel's configuration of the server is of no use: {reason}") from None


def listed(one: Listed) -> config.Configuration:
    """As `server`, of an entry of the listing."""
    raw = b'{"settings":%b,"process_configuration":%b}' % (bytes(one.settings), bytes(one.process_configuration))
    return server(raw, one.uuid)


def _where(error: Exception) -> str:
    """What was wrong and where, without any value: those may be secrets."""
    text = str(error)
    return re.sub(r"`environment`.*", "`environment`", text) if "environment" in text else text


def _configuration(found: _Server, uuid: str) -> config.Configuration:
    settings, process = found.settings, found.process_configuration
    if settings.uuid != uuid:
        raise errors.Invalid("it is about another server")
    meta = settings.meta if isinstance(settings.meta, _Meta) else _Meta()
    egg = settings.egg or _Egg()
    return config.Configuration(
        uuid=settings.uuid,
        name=meta.name,
        description=meta.description or "",
        suspended=settings.suspended,
        environment={_checked(name): _text(value) for name, value in _map("environment", settings.environment).items()},
        startup=config.Startup(
            invocation=settings.invocation,
            image=settings.container.image,
            skip_egg_scripts=settings.skip_egg_scripts,
            requires_rebuild=settings.container.requires_rebuild,
            labels=dict(_map("labels", settings.labels)),
        ),
        build=_build(settings),
        allocations=_allocations(settings.allocations or _Allocations()),
        mounts=tuple(config.Mount(one.source, one.target, one.read_only) for one in settings.mounts or ()),
        egg=config.Egg(egg.id, tuple(egg.file_denylist or ())),
        process=_process(process),
        crash_detection=settings.crash_detection_enabled,
    )


def _map(name: str, value: Map[T] | None) -> Mapping[str, T]:
    if isinstance(value, dict):
        return value
    if value:
        raise errors.Invalid(f"{name} is a list")
    return {}


def _checked(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise errors.Invalid("environment has a variable of no valid name")
    return name


def _text(value: Scalar) -> str:
    """A variable as a process gets it; a whole number without a fraction."""
    match value:
        case None:
            text = ""
        case bool():
            text = "true" if value else "false"
        case float() if value.is_integer():
            text = str(int(value))
        case _:
            text = str(value)
    if "\0" in text or len(text) > 128 * 1024:
        raise errors.Invalid("environment has a value that no process could be given")
    return text


def _build(settings: _Settings) -> config.Build:
    build = settings.build
    if build.threads is not None and build.threads != "" and not _THREADS.fullmatch(build.threads):
        raise errors.Invalid("build.threads are no cores")
    return config.Build(
        memory_limit=build.memory_limit,
        swap=build.swap,
        io_weight=500 if build.io_weight is None else build.io_weight,
        cpu_limit=build.cpu_limit,
        threads=build.threads or None,
        disk_space=max(build.disk_space, 0),
        oom_disabled=settings.container.oom_disabled if build.oom_disabled is None else build.oom_disabled,
    )


def _allocations(found: _Allocations) -> config.Allocations:
    default = found.default
    return config.Allocations(
        force_outgoing_ip=found.force_outgoing_ip,
        default=None if default is None else config.Address(default.ip, default.port),
        mappings={ip: tuple(ports) for ip, ports in _map("allocations.mappings", found.mappings).items()},
    )


def _process(found: _Process) -> config.Process:
    startup = found.startup if isinstance(found.startup, _Startup) else _Startup()
    stop = found.stop if isinstance(found.stop, _Stop) else _Stop()
    done = [startup.done] if isinstance(startup.done, str) else startup.done or []
    return config.Process(
        done=tuple(done),
        user_interaction=tuple(startup.user_interaction or ()),
        strip_ansi=startup.strip_ansi,
        stop=config.Stop(stop.type, stop.value),
        files=msgspec.json.encode(found.configs or []).decode(),
    )


# What two of them differ in.

_LATER = frozenset({"build.oom_disabled", "process_configuration.startup", "process_configuration.configs"})
_LATER_GROUPS = ("environment.", "container.", "allocations.", "mounts", "labels", "invocation", "skip_egg_scripts")
_SOME = "set"


def differences(before: config.Configuration | None, after: config.Configuration) -> tuple[Difference, ...]:
    """Field by field, by name; both with references in place of secrets."""
    old = {} if before is None else dict(_fields(before))
    new = dict(_fields(after))
    return tuple(
        Difference(name, effect(name), *(_seen(name, one) for one in (old.get(name), new.get(name))))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def effect(field: str) -> Effect:
    """When a change of the field is felt by a server that runs."""
    return "next_start" if field in _LATER or field.startswith(_LATER_GROUPS) else "at_once"


def _seen(name: str, value: Any) -> Any:
    secret = name.startswith("environment.") or name == "process_configuration.configs"
    return _SOME if secret and value is not None else value


def _fields(one: config.Configuration) -> Iterator[tuple[str, Any]]:
    yield "meta.name", one.name
    yield "meta.description", one.description
    yield "suspended", one.suspended
    for name, reference in one.environment.items():
        yield f"environment.{name}", reference
    yield "invocation", one.startup.invocation
    yield "skip_egg_scripts", one.startup.skip_egg_scripts
    yield "container.image", one.startup.image
    yield "container.requires_rebuild", one.startup.requires_rebuild
    yield "labels", one.startup.labels
    for name in config.Build.__struct_fields__:
        yield f"build.{name}", getattr(one.build, name)
    for name in config.Allocations.__struct_fields__:
        yield f"allocations.{name}", msgspec.to_builtins(getattr(one.allocations, name))
    yield "mounts", msgspec.to_builtins(one.mounts)
    yield "egg.id", one.egg.id
    yield "egg.file_denylist", msgspec.to_builtins(one.egg.file_denylist)
    yield "crash_detection_enabled", one.crash_detection
    yield "process_configuration.startup", (one.process.done, one.process.user_interaction, one.process.strip_ansi)
    yield "process_configuration.stop", msgspec.to_builtins(one.process.stop)
    yield "process_configuration.configs", one.process.files


# A listing of them all.


class Sighting(Struct, frozen=True):
    """What is known of a server: whether it is suspended."""

    suspended: bool


def suspicious(
    known: Mapping[str, Sighting], seen: Mapping[str, Sighting], max_fraction: float, least: int = 3
) -> dict[str, Any] | None:
    """What speaks against taking a listing at its word: more than `max_fraction` of the servers that are known would be
    newly suspended, or are not in it. Fewer than `least` of them are believed."""
    suspended = sum(1 for uuid, one in known.items() if not one.suspended and uuid in seen and seen[uuid].suspended)
    missing = len(known.keys() - seen.keys())
    for what, count in (("suspended", suspended), ("missing", missing)):
        if count >= least and count > max_fraction * len(known):
            return {"what": what, "count": count, "known": len(known)}
    return None
