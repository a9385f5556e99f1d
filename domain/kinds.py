"""The kinds of job: what each needs to know, and how an integration's configuration becomes that."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from domain import errors, jobs
from domain.plans import files, network, plane, reverts, servers

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
#: What goes into a header: visible ASCII.
Secret = Annotated[str, Meta(min_length=1, max_length=512, pattern="^[\\x21-\\x7e]+$(?!\\n)")]


class Options(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a request may say about one job; `projects`, `entities` and `exclude` select."""

    force: bool = False
    include_archived: bool = False
    batch_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 50
    projects: tuple[Text, ...] = ()
    entities: tuple[Text, ...] = ()
    exclude: tuple[Text, ...] = ()


class FilesConfig(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of an integration of kind `files`; paths are absolute and lie under a root."""

    source_directory: Text
    target_directory: Text
    delete_missing_in_target: bool = False
    verify_integrity: bool = True
    exclude_patterns: tuple[Text, ...] = ()


class NetworkConfig(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of an integration of kind `network`: as `domain.plans.network.Spec`."""

    directories: tuple[Text, ...]
    timeout: Annotated[float, Meta(gt=0, le=300)] = 30.0
    patience: Annotated[float, Meta(ge=0, le=300)] = 2.0
    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    max_change_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2
    ping: bool = True
    ping_timeout: Annotated[float, Meta(gt=0, le=10)] = 2.0


class PlaneConfig(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of an integration of kind `plane`: the address of the instance, the workspace's slug and an
    API key. `projects` (ids or identifiers) limits it to these. With `webhookSecret` its webhooks are received.
    `overlap`, `patience` and `timeout` in seconds: as `domain.plans.plane.Spec`."""

    workspace: Annotated[str, Meta(min_length=1, max_length=255, pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]*$(?!\\n)")]
    api_key: Secret
    base_url: Text = "https://api.plane.so"
    webhook_secret: Secret | None = None
    projects: tuple[Text, ...] = ()
    overlap: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    patience: Annotated[float, Meta(ge=0, le=3_600)] = 120.0
    timeout: Annotated[float, Meta(gt=0, le=300)] = 60.0


class ServersConfig(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of the integration `servers`: as `domain.plans.servers.Spec`."""

    max_change_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2


class NoConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Of kinds that are no integration's."""


class Kind(Struct, frozen=True):
    """`spec` and `result` are what the job's events hold; `config` is an integration's; `make` turns one into the
    other, or raises errors.Invalid; `target` names what must not be worked on twice at once, `paths` the folders a
    configuration touches, `secrets` the fields of a configuration that are kept sealed and never shown. `collects` says
    that what its jobs bring are the items of a collection. An attempt of an integration's job may take `timeout_s`,
    where nothing else is said; 0 for as long as it likes. `lane` is `now` where a client may join any of them."""

    spec: type[Any]
    result: type[Any]
    config: type[Any]
    make: Callable[[Any, jobs.Type, Options], Any]
    target: Callable[[Any], str | None]
    paths: Callable[[Any], tuple[str, ...]] = lambda _: ()
    secrets: tuple[str, ...] = ()
    collects: bool = False
    timeout_s: int = 0
    lane: jobs.Lane = "later"


_MODES: dict[jobs.Type, files.Mode] = {
    "full_sync": "full",
    "incremental_sync": "incremental",
    "selective_sync": "selective",
}


def _files(config: FilesConfig, type: jobs.Type, options: Options) -> files.Spec:
    if type == "selective_sync" and not options.entities:
        raise errors.Invalid("A selective sync of files needs options.entities: the sub-paths to sync")
    spec = files.Spec(
        source_directory=config.source_directory,
        target_directory=config.target_directory,
        delete_missing_in_target=config.delete_missing_in_target,
        verify_integrity=config.verify_integrity,
        exclude_patterns=(*config.exclude_patterns, *options.exclude),
        mode=_MODES[type],
        entities=options.entities,
        force=options.force,
    )
    spec.scope()
    return spec


def _network(config: NetworkConfig, type: jobs.Type, options: Options) -> network.Spec:
    """Every run sees everything, whatever its type."""
    return network.Spec(
        directories=network.directories(config.directories),
        timeout=config.timeout,
        patience=config.patience,
        max_rows=config.max_rows,
        max_change_fraction=config.max_change_fraction,
        ping=config.ping,
        ping_timeout=config.ping_timeout,
        force=options.force,
    )


def _plane(config: PlaneConfig, type: jobs.Type, options: Options) -> plane.Spec:
    chosen = bool(options.projects or options.entities or options.exclude)
    if chosen != (type == "selective_sync"):
        raise errors.Invalid("options.projects, entities or exclude go with a selective sync, and it needs one of them")
    known = {name for name in options.exclude if name in plane.NAMES}
    return plane.Spec(
        base_url=plane.base(config.base_url),
        workspace=config.workspace,
        api_key=config.api_key,
        mode=_MODES[type],
        within=config.projects,
        projects=options.projects,
        entities=plane.entities(options.entities),
        exclude=(*plane.entities(sorted(known)), *(name for name in options.exclude if name not in known)),
        include_archived=options.include_archived,
        per_page=min(options.batch_size, plane.PER_PAGE),
        overlap=config.overlap,
        patience=config.patience,
        timeout=config.timeout,
    )


def _revert(config: NoConfig, type: jobs.Type, options: Options) -> reverts.Spec:
    raise errors.Invalid("A revert is of a job: POST /api/sync/jobs/{id}/revert")


def _servers(config: ServersConfig, type: jobs.Type, options: Options) -> servers.Spec:
    """Every run sees everything, whatever its type."""
    return servers.Spec(max_change_fraction=config.max_change_fraction, force=options.force)


def target(path: str) -> str:
    """The name of a folder that one job at a time may write: however it is spelled, and short."""
    return hashlib.sha256(posixpath.normpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]


KINDS: Mapping[str, Kind] = {
    "files": Kind(
        files.Spec,
        files.Result,
        FilesConfig,
        _files,
        target=lambda spec: target(spec.target_directory),
        paths=lambda config: (config.source_directory, config.target_directory),
    ),
    "network": Kind(
        network.Spec,
        network.Result,
        NetworkConfig,
        _network,
        target=lambda _: None,
        collects=True,
        timeout_s=600,
        lane="now",
    ),
    "plane": Kind(
        plane.Spec,
        plane.Result,
        PlaneConfig,
        _plane,
        target=lambda _: None,
        secrets=("apiKey", "webhookSecret"),
        collects=True,
        timeout_s=43_200,
    ),
    "servers": Kind(
        servers.Spec,
        servers.Result,
        ServersConfig,
        _servers,
        target=lambda spec: None if spec.server is None else f"server/{spec.server}",
        timeout_s=600,
        lane="now",
    ),
    "revert": Kind(reverts.Spec, reverts.Result, NoConfig, _revert, target=lambda _: None),
}


def kind(name: str) -> Kind:
    """Raises errors.Invalid for an unknown kind."""
    if name not in KINDS:
        raise errors.Invalid(f"Unknown kind; there are {', '.join(sorted(KINDS))}")
    return KINDS[name]


def configuration(name: str, config: Any) -> Any:
    """A kind's configuration as its struct. Raises errors.Invalid, also where no job could be made of it."""
    found = kind(name)
    try:
        checked = msgspec.convert(config, found.config)
    except msgspec.ValidationError as error:
        raise errors.Invalid(f"config: {error}") from None
    found.make(checked, "full_sync", Options())
    return checked


def spec(name: str, config: Raw | str, type: jobs.Type, options: Options) -> Any:
    """The specification of a job of an integration. Raises errors.Invalid."""
    found = kind(name)
    return found.make(msgspec.json.decode(config, type=found.config), type, options)
