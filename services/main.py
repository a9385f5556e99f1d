"""Roles into processes: builds what every role needs once, runs the roles, ends them on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import structlog
import uvloop

from domain import events
from infra import blobs_remote, config, configfile, secrets, traces
from infra import log as logging
from infra.blobs import Blobs, Contents
from infra.bus import Bus
from infra.db import CONNECTION_LOST, Database, NotDurable, assert_durable
from infra.eventstore import epochs
from infra.eventstore.mapper import Mapper
from infra.eventstore.migrate import Drift, migrate
from infra.eventstore.store import Store
from infra.eventstore.writer import Writer
from infra.leases import Leases
from infra.tail import Tail
from services import erasing, integrations, supervised
from services.node_token import NodeToken

log = structlog.get_logger("process")


@dataclass
class Process:
    """What the roles of one process share. `governor` is the connection that may write the stream and make its
    consumers, in processes that have to; elsewhere, and without a password for it, it is the `bus`. `news` says that
    the log may be another history, `renewed` that it is."""

    name: str
    settings: config.Settings
    master: bytes
    db: Database
    store: Store
    writer: Writer
    tail: Tail
    bus: Bus
    governor: Bus
    leases: Leases
    blobs: Blobs
    epoch: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    announced: dict[str, object] = field(default_factory=dict)
    writing: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    renewed: bool = False

    @functools.cached_property
    def contents(self) -> Contents:
        """Where the bytes of libraries are, apart from those that workers keep: they may be far away."""
        return blobs_remote.contents(self.settings.blobs.url, self.settings.directory / "blobs" / "library")

    @functools.cached_property
    def node_token(self) -> NodeToken:
        return NodeToken(self.settings.panel, self.store, self.db, self.master)


Role = Callable[[Process], Awaitable[None]]

_BACKGROUND = 5
#: The user who may write the stream.
_GOVERNOR = "relay"
#: How often a process that waits for Postgres says so.
_SAYS_S = 10.0
#: How often a process looks whether its log is still the same history, if nobody tells it.
_LOOKS_S, _AGAIN_S = 5.0, 0.5
#: The exit code of a process that wants to be started again (EX_TEMPFAIL).
_AGAIN = 75
#: Objects made before the collector looks through the young ones; most of ours die without it.
_YOUNG = 20_000


@asynccontextmanager
async def process(
    name: str, settings: config.Settings, *, clients: bool = False, feed: bool = False
) -> AsyncIterator[Process]:
    """Builds a process and takes it down again. `clients` is for those that hold client connections: their tail
    polls more often. `feed` is for those that apply every event: their tail is fed by JetStream.

    Raises NotDurable or migrate.Drift where running would not be safe, Unreachable without Postgres.
    """
    master = secrets.load_master(settings.directory)
    db, epoch = await _reached(name, settings)
    writer = Writer(db, settings.eventstore)
    keyring = secrets.Keyring(db, master)
    store = Store(db, Mapper(events.REGISTRY, keyring=keyring), writer)
    bus = governor = Bus(settings.nats.url, settings.nats, name=name, user=name)
    if feed and _GOVERNOR in settings.nats.passwords:
        governor = Bus(settings.nats.url, settings.nats, name=f"{name} {_GOVERNOR}", user=_GOVERNOR)
    buses = {bus, governor}
    poll_s = settings.tail.client_poll_s if clients else settings.tail.poll_s
    mac = secrets.derive(master, "relay mac")
    tail = Tail(store, bus, settings.tail, mac, epoch, feed=feed, poll_s=poll_s, governor=governor)
    tail.hints.hear(secrets.ERASED, keyring.forget)
    owner = f"{name}@{socket.gethostname()}/{os.getpid()}/{os.urandom(4).hex()}"
    leases = Leases(db, owner, settings.jobs.lease_s)
    built = Process(
        name=name,
        settings=settings,
        master=master,
        db=db,
        store=store,
        writer=writer,
        tail=tail,
        bus=bus,
        governor=governor,
        leases=leases,
        blobs=Blobs(settings.directory / "blobs"),
        epoch=epoch,
    )
    tail.hints.hear(epochs.CHANNEL, lambda _: built.news.set())
    writing = built.writing = asyncio.create_task(writer.run())
    try:
        erased = await erasing.honour(store, settings.directory)
        if clients and erased:  # what the read models still have of them is served to nobody
            await erasing.folded(store, erased, settings.up.start_s)
        for each in buses:
            await each.connect()
        await tail.start()
        if settings.panel.url:
            await built.node_token.load()
        yield built
    finally:
        built.stopping.set()
        await tail.close()
        for each in buses:
            await each.close()
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await db.close()


class Unreachable(Exception):
    """Postgres did not answer in time, or does not let us in."""


async def _reached(name: str, settings: config.Settings) -> tuple[Database, int]:
    """The database as soon as it answers, in the present schema, and the epoch of its log.

    Raises Unreachable after `up.start_s`, when a supervisor would lose its patience as well.
    """
    begun, told = time.monotonic(), -_SAYS_S
    while True:
        db = Database(settings.database.url, settings.database.connections, name=f"undrift {name}")
        try:
            await migrate(settings.database.url)
            if settings.database.durable:
                await assert_durable(db)
            epoch = await epochs.open_epoch(db, epochs.remembered(settings.directory))
            epochs.remember(settings.directory, epoch)
            return db, epoch
        except CONNECTION_LOST as error:
            await db.close()
            reason, waited_s = type(error).__name__, time.monotonic() - begun
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise Unreachable(f"Postgres refuses: {error}") from None
        if waited_s > settings.up.start_s:
            raise Unreachable(f"Postgres did not answer within {settings.up.start_s:g} s ({reason})")
        if waited_s - told >= _SAYS_S:
            log.warning("waiting for Postgres", process=name, reason=reason, seconds=round(waited_s, 1))
            told = waited_s
        await asyncio.sleep(0.2)


async def serve(name: str, roles: Mapping[str, Role], settings: config.Settings, **options: bool) -> bool:
    """Runs the roles until SIGTERM or SIGINT, or until another epoch begins: then it is to be started again, and the
    answer is True. A role that ends by itself ends the process with its error."""
    stop, begun = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(_serve(name, roles, settings, options, stop, begun))

    def end() -> None:
        stop.set()
        if not begun.is_set():  # it may wait for Postgres: nothing runs yet that would look
            serving.cancel()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, end)
    try:
        return await serving
    except asyncio.CancelledError:
        if begun.is_set() or not stop.is_set():
            raise
        return False


async def _serve(
    name: str,
    roles: Mapping[str, Role],
    settings: config.Settings,
    options: Mapping[str, bool],
    stop: asyncio.Event,
    begun: asyncio.Event,
) -> bool:
    async with process(name, settings, **options) as built, asyncio.TaskGroup() as group:
        begun.set()
        running = [group.create_task(_named(role, built), name=key) for key, role in roles.items()]
        running.append(group.create_task(supervised.announce(built.announced, built.ready)))
        running.append(group.create_task(_spare_collections(built)))
        running.append(group.create_task(_named(_writes, built), name="writer"))
        running.append(group.create_task(_watch_epoch(built, stop), name="epoch"))
        if settings.panel.url:
            running.append(group.create_task(built.node_token.follow(built.tail), name="node token"))
        if not options.get("clients"):
            built.ready.set()  # who has clients says so itself, once it serves them
        log.info("started", process=name, roles=list(roles), epoch=built.epoch)
        await stop.wait()
        built.stopping.set()
        log.info("stopping", process=name)
        for task in running:
            task.cancel()
    return built.renewed


async def _watch_epoch(built: Process, stop: asyncio.Event) -> None:
    """Ends the process in order when its log has become another history, while it ran: what it has in memory is of the
    one before. Whoever keeps it running starts it again."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOKS_S):
                await built.news.wait()
        built.news.clear()
        try:
            epoch = await epochs.present(built.db)
            if epoch is None:  # restored, or copied, into the server behind the same address
                epoch = await epochs.open_epoch(built.db, epochs.remembered(built.settings.directory))
        except (*CONNECTION_LOST, asyncpg.PostgresError):
            await asyncio.sleep(_AGAIN_S)  # it may be being restored at this moment
            built.news.set()
            continue
        if epoch != built.epoch:
            log.warning("another epoch has begun: this process starts again", epoch=epoch, before=built.epoch)
            epochs.remember(built.settings.directory, epoch)
            built.renewed = True
            stop.set()
            return


async def _spare_collections(built: Process) -> None:
    """What is there once a process is ready stays: the collector need not look through it again and again, which
    takes milliseconds in which nobody is answered."""
    await built.ready.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 50)


async def _named(role: Role, built: Process) -> None:
    await role(built)
    if not built.stopping.is_set():
        raise RuntimeError("a role ended by itself")


async def _writes(built: Process) -> None:
    """Ends with the writer: a process that cannot write must not stay."""
    assert built.writing is not None
    await asyncio.wait([built.writing])
    built.writing.result()


def background() -> None:
    """Under full load this process yields the processor to those that clients wait for: what it has to do is in the
    log, and is done a little later."""
    os.nice(_BACKGROUND)


def main(name: str, roles: Callable[[argparse.Namespace], Mapping[str, Role]], **options: bool) -> int:
    """The command line of one process: `python -m services.<name> [--config FILE]`."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=f"Undrift's {name} process.")
    parser.add_argument("--config", help="settings file; UNDRIFT_<SECTION>_<KEY> in the environment wins over it")
    if name == "worker":
        parser.add_argument("--lane", choices=("now", "later", "all"), default="all", help="which jobs it takes")
    arguments = parser.parse_args()
    try:
        settings = configfile.load(arguments.config)
        if not settings.database.url:
            raise config.InvalidSetting("database.url (UNDRIFT_DATABASE_URL) is needed; `undrift up` brings its own")
        integrations.check(settings)
        configfile.check_proxies(settings)
        blobs_remote.check(settings.blobs.url)
        logging.setup(settings.log)
        traces.setup(settings.traces, name)
        again = uvloop.run(serve(name, roles(arguments), settings, **options))
    except (config.InvalidSetting, NotDurable, Drift, Unreachable) as error:
        print(f"undrift {name}: {error}", file=sys.stderr)  # noqa: T201
        return 1 if isinstance(error, Unreachable) else 2
    finally:
        traces.close()
    return _AGAIN if again else 0
