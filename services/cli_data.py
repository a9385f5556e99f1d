"""Commands that work on the data directory itself: its database, its log, its master key."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

import projections
from domain import events
from infra import config, configfile, log, secrets
from infra.db import CONNECTION_LOST, Database
from infra.eventstore import epochs
from infra.eventstore.mapper import Mapper
from infra.eventstore.store import Store
from infra.eventstore.writer import Writer
from services.cli_common import Exit, Instance, Problem, remark

_CAUGHT_UP_S = 5.0
_LOOK_S = 0.02
_POSITION = "select projection, generation, pos from undrift.tracking"


@dataclass(frozen=True)
class Data:
    """An installation as its own machine sees it."""

    settings: config.Settings
    master: bytes
    database: Database
    store: Store

    async def caught_up(self, position: int | None = None) -> None:
        """Waits a while until the read models have come to `position`, or to the end of the log; says so if not."""
        needed = await self.store.head() if position is None else position
        deadline = time.monotonic() + _CAUGHT_UP_S
        while await self._applied() < needed:
            if time.monotonic() > deadline:
                remark("The read models have not caught up yet: is `undrift up` running?")
                return
            await asyncio.sleep(_LOOK_S)

    async def _applied(self) -> int:
        rows = await self.database.fetch(_POSITION)
        found = {(row["projection"], row["generation"]): int(row["pos"]) for row in rows}
        return min(found.get((one.NAME, one.GENERATION), -1) for one in projections.ALL)


@asynccontextmanager
async def opened(instance: Instance) -> AsyncIterator[Data]:
    """The data directory's log, to read and to append to. Raises Problem when that cannot be."""
    if instance.address is not None:
        where = "give --data-dir (not --url, and no UNDRIFT_URL)"
        raise Problem(Exit.USAGE, f"this command works on the data directory itself, on its own machine: {where}")
    settings = _settings(instance)
    master = _master(instance.directory)
    log.setup(config.Log(level="error"))
    database = Database(settings.database.url, 3, name="undrift cli")
    writer = Writer(database, settings.eventstore)
    store = Store(database, Mapper(events.REGISTRY, keyring=secrets.Keyring(database, master)), writer)
    writing = asyncio.create_task(writer.run())
    try:
        await epochs.open_epoch(database, epochs.remembered(instance.directory))
        yield Data(settings, master, database, store)
    except CONNECTION_LOST as error:
        raise Problem(Exit.UNREACHABLE, f"Postgres of {instance.directory} does not answer: {_text(error)}") from None
    except asyncpg.PostgresError as error:
        raise Problem(Exit.UNREACHABLE, f"Postgres of {instance.directory} refuses: {_text(error)}") from None
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await database.close()


def _text(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return (reason or type(error).__name__).partition("\n")[0]


def _settings(instance: Instance) -> config.Settings:
    """Those that `undrift up` wrote for its processes, with the addresses of what runs now."""
    directory = instance.directory
    file = directory / "settings.json"
    overrides = [("data_dir", str(directory))]
    if (directory / "ready.json").exists():
        ready = instance.ready()
        overrides += [("database.url", str(ready["database_url"])), ("nats.url", str(ready["nats_url"]))]
    try:
        chosen = configfile.load(file if file.exists() else None, overrides=overrides)
    except config.InvalidSetting as error:
        raise Problem(Exit.USAGE, str(error)) from None
    if not chosen.database.url:
        instance.ready()
    return chosen


def _master(directory: Path) -> bytes:
    """Never made here: another key would fit nothing in the log."""
    path = directory / "secrets" / "master.key"
    try:
        return bytes.fromhex(path.read_text("ascii").strip())
    except FileNotFoundError:
        raise Problem(Exit.UNREACHABLE, f"{directory} is not a data directory of Undrift: no {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise Problem(Exit.UNREACHABLE, f"{path} cannot be read: {reason}") from None
