"""Every setting, in one class: `undrift.toml` has `[section] key`, the environment `UNDRIFT_SECTION_KEY`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

Positive = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]


class InvalidSetting(Exception):
    """A setting is unknown or of the wrong kind; the message names it and what was expected."""


class Database(Struct, forbid_unknown_fields=True):
    """`url` replaces the embedded server."""

    url: str = ""
    connections: Positive = 8


class Nats(Struct, forbid_unknown_fields=True):
    """`url` replaces the embedded server. `replicas` is 3 on a cluster."""

    url: str = ""
    replicas: Positive = 1
    max_age_s: Annotated[float, Meta(ge=0)] = 7 * 86400.0
    max_bytes: int = -1


class Gateway(Struct, forbid_unknown_fields=True):
    """Where requests come in, and how patient the server is with them."""

    host: str = ""
    port: Port = 8080
    also_listen: list[Port] = field(default_factory=lambda: [3001])
    cors_origins: list[str] = field(default_factory=list)
    cors_ports: list[Port] = field(default_factory=lambda: [5173, 3000, 8080, 3001])
    header_timeout_s: Seconds = 10.0
    body_min_bytes_per_s: Positive = 1024
    body_grace_s: Seconds = 15.0
    max_body_bytes: Positive = 10 * 1024 * 1024
    shutdown_s: Seconds = 3.0
    read_wait_s: Seconds = 2.0
    long_poll_s: Seconds = 30.0
    rate_limit_per_minute: Positive = 100


class Auth(Struct, forbid_unknown_fields=True):
    """`open_loopback` admits families 1 and 2 without a token from this machine (on in the embedded mode)."""

    open_loopback: bool | None = None


class Log(Struct, forbid_unknown_fields=True):
    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    format: Annotated[str, Meta(pattern="^(auto|json|console)$")] = "auto"


class EventStore(Struct, forbid_unknown_fields=True):
    """`queue` bounds the commands that wait for the next group; `seal_every` positions share one seal."""

    queue: Positive = 10_000
    group_events: Annotated[int, Meta(ge=1, le=1000)] = 256
    seal_every: Positive = 1000
    reconnect_s: Seconds = 0.2


class Relay(Struct, forbid_unknown_fields=True):
    batch_messages: Annotated[int, Meta(ge=1, le=1000)] = 1000
    batch_bytes: Positive = 8 * 1024 * 1024
    check_s: Seconds = 10.0
    publish_timeout_s: Seconds = 5.0
    poll_s: Seconds = 1.0


class Tail(Struct, forbid_unknown_fields=True):
    """`grace_s` is how long a hint from Postgres waits for the message itself from JetStream."""

    poll_s: Seconds = 1.0
    client_poll_s: Seconds = 0.25
    grace_s: Annotated[float, Meta(ge=0)] = 0.02
    page: Positive = 1000


class Projector(Struct, forbid_unknown_fields=True):
    page: Positive = 1000
    retry_s: Seconds = 0.5


class Jobs(Struct, forbid_unknown_fields=True):
    """`wait_s` is how long a request of family 3 waits for its job before it is answered 202."""

    wait_s: Seconds = 600.0
    beat_s: Seconds = 1.0
    lease_s: Seconds = 5.0
    poll_s: Seconds = 1.0
    concurrency: Positive = 4
    min_full_interval_s: Annotated[float, Meta(ge=0)] = 0.0
    log_lines: Positive = 1000
    stop_grace_s: Seconds = 5.0


class Scheduler(Struct, forbid_unknown_fields=True):
    tick_s: Seconds = 1.0


class Files(Struct, forbid_unknown_fields=True):
    """`roots` are the only folders that requests may touch."""

    roots: list[str] = field(default_factory=list)
    max_delete_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5
    max_delete_count: Positive | None = None
    marker: str = ""
    trash_days: Annotated[float, Meta(ge=0)] = 30.0


class IntegrationDeclared(Struct, forbid_unknown_fields=True, rename="camel"):
    """An integration declared in the file: `[[integrations]]` with `id`, `name`, `kind`, `sync_interval`, `config`."""

    id: str
    name: str
    kind: str
    sync_interval: Positive | None = None
    config: dict[str, Any] = field(default_factory=dict)


class Settings(Struct, forbid_unknown_fields=True):
    data_dir: str = ""
    database: Database = field(default_factory=Database)
    nats: Nats = field(default_factory=Nats)
    gateway: Gateway = field(default_factory=Gateway)
    auth: Auth = field(default_factory=Auth)
    log: Log = field(default_factory=Log)
    eventstore: EventStore = field(default_factory=EventStore)
    relay: Relay = field(default_factory=Relay)
    tail: Tail = field(default_factory=Tail)
    projector: Projector = field(default_factory=Projector)
    jobs: Jobs = field(default_factory=Jobs)
    scheduler: Scheduler = field(default_factory=Scheduler)
    files: Files = field(default_factory=Files)
    integrations: list[IntegrationDeclared] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return Path(self.data_dir)


def default_data_dir() -> Path:
    """`$UNDRIFT_DATA_DIR`, else `undrift` under the user's data home."""
    if given := os.environ.get("UNDRIFT_DATA_DIR"):
        return Path(given)
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home) / "undrift"


def load(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
) -> Settings:
    """Settings from a file, then the environment, then `overrides` as `("gateway.port", 0)`.

    Raises InvalidSetting, naming the setting and what was expected.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidSetting(f"{path}: {error}") from None
    for name, value in _from_environment(os.environ if environ is None else environ):
        _put(tree, name, value)
    for name, value in overrides:
        _put(tree, name, value)
    tree.setdefault("data_dir", str(default_data_dir()))
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"{path or 'settings'}: {error}") from None
    settings.data_dir = os.path.abspath(os.path.expanduser(settings.data_dir))
    return settings


def environment(settings: Settings) -> dict[str, str]:
    """The scalar settings that differ from the defaults, as environment variables for a child process."""
    plain, defaults = msgspec.to_builtins(settings), msgspec.to_builtins(Settings())
    found = {"UNDRIFT_DATA_DIR": settings.data_dir}
    for section, values in plain.items():
        if isinstance(values, dict):
            for key, value in values.items():
                if value != defaults[section][key] and value is not None:
                    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                    found[f"UNDRIFT_{section}_{key}".upper()] = text
    return found


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    known = {"UNDRIFT_DATA_DIR": ("data_dir", False)}
    for section, kind in get_type_hints(Settings).items():
        if isinstance(kind, type) and issubclass(kind, Struct):
            for key, hint in get_type_hints(kind, include_extras=True).items():
                known[f"UNDRIFT_{section}_{key}".upper()] = (f"{section}.{key}", _is_list(hint))
    found: list[tuple[str, Any]] = []
    for name, text in environ.items():
        if name not in known or text == "":
            continue
        dotted, many = known[name]
        found.append((dotted, [part.strip() for part in text.split(",") if part.strip()] if many else text))
    return found


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list or any(get_origin(part) is list for part in get_args(hint))


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value
