"""Servers of a node: what the Panel wants each to be, a fact for each effect, and what became of their processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, assert_never

from msgspec import Meta, Struct
from msgspec.structs import replace

from domain import errors, messages
from domain.server_config import Allocations, Build, Configuration, Egg, Mount, Process, Startup

STREAM = "servers"
LONG_LIVED = True  # the store remembers what it folded of these streams; no state holds anything personal

Power = Literal["offline", "starting", "running", "stopping"]
Action = Literal["start", "stop", "restart", "kill"]
By = Annotated[str, Meta(max_length=64)]


class Added(messages.Event, frozen=True, tag="servers.added"):
    """Its first configuration; secrets stand in it by reference."""

    PUBLIC: ClassVar[bool] = True
    configuration: Configuration


class Renamed(messages.Event, frozen=True, tag="servers.renamed"):
    PUBLIC: ClassVar[bool] = True
    name: str
    description: str


class LimitsChanged(messages.Event, frozen=True, tag="servers.limits_changed"):
    """Felt at once, by a running server too."""

    PUBLIC: ClassVar[bool] = True
    build: Build


class EnvironmentChanged(messages.Event, frozen=True, tag="servers.environment_changed"):
    """Felt at the next start. `environment` is all of it, by reference; `names` are those that differ."""

    PUBLIC: ClassVar[bool] = True
    environment: dict[str, str]
    names: tuple[str, ...]


class StartupChanged(messages.Event, frozen=True, tag="servers.startup_changed"):
    """Felt at the next start."""

    PUBLIC: ClassVar[bool] = True
    startup: Startup


class AllocationsChanged(messages.Event, frozen=True, tag="servers.allocations_changed"):
    """Felt at the next start."""

    PUBLIC: ClassVar[bool] = True
    allocations: Allocations


class MountsChanged(messages.Event, frozen=True, tag="servers.mounts_changed"):
    """Felt at the next start."""

    PUBLIC: ClassVar[bool] = True
    mounts: tuple[Mount, ...]


class FilesRestricted(messages.Event, frozen=True, tag="servers.files_restricted"):
    """Which files nobody may touch; felt at once."""

    PUBLIC: ClassVar[bool] = True
    egg: Egg


class ProcessChanged(messages.Event, frozen=True, tag="servers.process_changed"):
    """How it is known to have started, how it is stopped (felt at once) and which files are written before a start."""

    PUBLIC: ClassVar[bool] = True
    process: Process


class CrashDetectionChanged(messages.Event, frozen=True, tag="servers.crash_detection_changed"):
    PUBLIC: ClassVar[bool] = True
    enabled: bool


class Suspended(messages.Event, frozen=True, tag="servers.suspended"):
    """Everybody is cut off, and it is stopped."""

    PUBLIC: ClassVar[bool] = True


class Unsuspended(messages.Event, frozen=True, tag="servers.unsuspended"):
    PUBLIC: ClassVar[bool] = True


class RolledBack(messages.Event, frozen=True, tag="servers.rolled_back"):
    """The events before it in the same command returned to the configuration as of a position. The next sync brings
    the Panel's again."""

    PUBLIC: ClassVar[bool] = True
    to: int


class Deleted(messages.Event, frozen=True, tag="servers.deleted"):
    PUBLIC: ClassVar[bool] = True


class TokensDenied(messages.Event, frozen=True, tag="servers.tokens_denied"):
    """Tokens of these ids that were made before open no websocket of it any more."""

    jtis: tuple[str, ...]


class UserDeauthorized(messages.Event, frozen=True, tag="servers.user_deauthorized"):
    """Whatever a user of the Panel's has open is closed, and tokens from before are of no use."""

    user: str


class PowerAsked(messages.Event, frozen=True, tag="servers.power_asked"):
    """Somebody wishes it to start, stop, restart, or to be killed; `by` is a user of the Panel's, or `node`."""

    PUBLIC: ClassVar[bool] = True
    action: Action
    by: By


class PowerChanged(messages.Event, frozen=True, tag="servers.power_changed"):
    """What its process does now. `pid` and `started` (clock ticks since boot) say which process it is; an
    `exit_code` comes with offline, negative for a signal. `again` says that only its node has gone: it is to be
    started once the node is back."""

    PUBLIC: ClassVar[bool] = True
    power: Power
    pid: int | None = None
    started: int | None = None
    exit_code: int | None = None
    again: bool = False


class StartFailed(messages.Event, frozen=True, tag="servers.start_failed"):
    """It was asked to start, and could not."""

    PUBLIC: ClassVar[bool] = True
    reason: str


class Crashed(messages.Event, frozen=True, tag="servers.crashed"):
    """It ended although nobody asked it to; without an `exit_code` nobody knows how. `again` says whether it is
    started once more."""

    PUBLIC: ClassVar[bool] = True
    exit_code: int | None
    again: bool


Event = (
    Added
    | Renamed
    | LimitsChanged
    | EnvironmentChanged
    | StartupChanged
    | AllocationsChanged
    | MountsChanged
    | FilesRestricted
    | ProcessChanged
    | CrashDetectionChanged
    | Suspended
    | Unsuspended
    | RolledBack
    | Deleted
    | TokensDenied
    | UserDeauthorized
    | PowerAsked
    | PowerChanged
    | StartFailed
    | Crashed
)


class Server(Struct, frozen=True):
    configuration: Configuration | None = None
    deleted: bool = False
    power: Power = "offline"
    pid: int | None = None
    started: int | None = None
    asked: Action | None = None  # and not carried out yet

    @property
    def suspended(self) -> bool:
        return self.configuration is not None and self.configuration.suspended


initial = Server()


def evolve(state: Server, event: Event) -> Server:
    if isinstance(event, Added):
        return Server(configuration=event.configuration)
    asked = _asked(state, event)
    if isinstance(event, Deleted):
        return replace(state, deleted=True, asked=asked)
    if isinstance(event, PowerChanged):
        return replace(state, power=event.power, pid=event.pid, started=event.started, asked=asked)
    if state.configuration is None:
        return state
    return replace(state, configuration=_configured(state.configuration, event), asked=asked)


def _asked(state: Server, event: Event) -> Action | None:
    """What is still to be carried out after an event: whoever was killed in the midst of it finds it here."""
    match event:
        case PowerAsked():
            return event.action
        case PowerChanged():
            return _left(state, event)
        case Crashed():
            return "start" if event.again else None
        case StartFailed() | Suspended() | Deleted():
            return None
        case _:
            return state.asked


def _left(state: Server, seen: PowerChanged) -> Action | None:
    asked = state.asked
    match seen.power:
        case "starting":
            return None if asked in ("start", "restart") else asked
        case "running":
            return None if asked == "start" else asked
        case "stopping":
            return asked
        case "offline":  # what ended by itself is not what anybody wanted before
            if seen.again and asked not in ("stop", "kill"):
                return "start"
            return asked if state.power == "stopping" and asked in ("start", "restart") else None
        case _:
            assert_never(seen.power)


def _configured(one: Configuration, event: Event) -> Configuration:
    match event:
        case Renamed():
            return replace(one, name=event.name, description=event.description)
        case LimitsChanged():
            return replace(one, build=event.build)
        case EnvironmentChanged():
            return replace(one, environment=event.environment)
        case StartupChanged():
            return replace(one, startup=event.startup)
        case AllocationsChanged():
            return replace(one, allocations=event.allocations)
        case MountsChanged():
            return replace(one, mounts=event.mounts)
        case FilesRestricted():
            return replace(one, egg=event.egg)
        case ProcessChanged():
            return replace(one, process=event.process)
        case CrashDetectionChanged():
            return replace(one, crash_detection=event.enabled)
        case Suspended() | Unsuspended():
            return replace(one, suspended=isinstance(event, Suspended))
        case _:
            return one


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Sync(messages.Command, frozen=True):
    """What the Panel says now, whole: it replaces what was."""

    configuration: Configuration


class RollBack(messages.Command, frozen=True):
    """To the configuration that it had at a position."""

    configuration: Configuration
    to: int


class Delete(messages.Command, frozen=True):
    pass


class Ask(messages.Command, frozen=True):
    action: Action
    by: str


class DenyTokens(messages.Command, frozen=True):
    jtis: tuple[str, ...]


class Deauthorize(messages.Command, frozen=True):
    user: str


class Observe(messages.Command, frozen=True):
    """What its runtime sees."""

    power: Power
    pid: int | None = None
    started: int | None = None
    exit_code: int | None = None
    again: bool = False


class FailStart(messages.Command, frozen=True):
    reason: str


class NoteCrash(messages.Command, frozen=True):
    """It has ended, and nobody asked it to."""

    exit_code: int | None
    again: bool


Command = Sync | RollBack | Delete | DenyTokens | Deauthorize | Ask | Observe | FailStart | NoteCrash


def decide(command: Command, state: Server) -> Sequence[Event]:
    """Raises errors.NotFound, errors.InvalidState when it is suspended and asked to start."""
    if isinstance(command, Sync):
        if state.configuration is None or state.deleted:
            return [Added(configuration=command.configuration)]
        return changes(state.configuration, command.configuration)
    if state.configuration is None or state.deleted:
        raise errors.NotFound("There is no such server", kind="server")
    match command:
        case RollBack():
            changed = changes(state.configuration, command.configuration)
            return [*changed, RolledBack(to=command.to)] if changed else []
        case Delete():
            return [Deleted()]
        case DenyTokens():
            return [TokensDenied(jtis=command.jtis)] if command.jtis else []
        case Deauthorize():
            return [UserDeauthorized(user=command.user)]
        case Ask():
            if state.suspended and command.action in ("start", "restart"):
                raise errors.InvalidState("The server is suspended")
            return [PowerAsked(action=command.action, by=command.by)]
        case Observe():
            seen = PowerChanged(
                power=command.power,
                pid=command.pid,
                started=command.started,
                exit_code=command.exit_code,
                again=command.again,
            )
            same = (state.power, state.pid, state.started) == (seen.power, seen.pid, seen.started)
            return [] if same else [seen]
        case FailStart():
            return [*_ended(state, None), StartFailed(reason=command.reason)]
        case NoteCrash():
            again = command.again and not state.suspended
            return [*_ended(state, command.exit_code), Crashed(exit_code=command.exit_code, again=again)]
        case _:
            assert_never(command)


def _ended(state: Server, exit_code: int | None) -> Sequence[Event]:
    return [] if state.power == "offline" else [PowerChanged(power="offline", exit_code=exit_code)]


def changes(before: Configuration, after: Configuration) -> Sequence[Event]:
    """One event for each effect; none where nothing differs. A suspension comes last, so that whoever is cut off by it
    finds everything else in place."""
    found: list[Event] = []
    if (before.name, before.description) != (after.name, after.description):
        found.append(Renamed(name=after.name, description=after.description))
    if before.build != after.build:
        found.append(LimitsChanged(build=after.build))
    if before.environment != after.environment:
        names = {name for name, _ in before.environment.items() ^ after.environment.items()}
        found.append(EnvironmentChanged(environment=after.environment, names=tuple(sorted(names))))
    if before.startup != after.startup:
        found.append(StartupChanged(startup=after.startup))
    if before.allocations != after.allocations:
        found.append(AllocationsChanged(allocations=after.allocations))
    if before.mounts != after.mounts:
        found.append(MountsChanged(mounts=after.mounts))
    if before.egg != after.egg:
        found.append(FilesRestricted(egg=after.egg))
    if before.process != after.process:
        found.append(ProcessChanged(process=after.process))
    if before.crash_detection != after.crash_detection:
        found.append(CrashDetectionChanged(enabled=after.crash_detection))
    if before.suspended != after.suspended:
        found.append(Suspended() if after.suspended else Unsuspended())
    return found
