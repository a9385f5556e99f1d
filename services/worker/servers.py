"""Servers as the Panel wants them: one that somebody asked for, or all that it lists.

The Panel is asked here, and what it says is in the log together with the job's end: an error, or a deadline that has
passed, means that nothing was changed or will be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import structlog

from domain import errors, jobs, messages, server_config, servers, tenants
from domain.plans import servers as plan
from domain.server_config import Configuration
from infra.eventstore.store import Decided, Loaded
from infra.vault import Vault
from projections import servers as servers_read
from services.worker import child
from services.worker.appending import Appending, off_the_loop

if TYPE_CHECKING:
    from infra.panel import Panel

log = structlog.get_logger("worker")

#: Of a deadline, what is left for the append.
_MARGIN_S = 1.0
_LARGE = 256 * 1024
_BATCH = 50

Say = Callable[[child.Said], Awaitable[None]]


class Syncing:
    """One run, in the worker's own process. Raises errors.NotFound where the Panel does not know the server,
    errors.RemoteRefused and errors.RemoteUnavailable where it is of no use, errors.Held for a listing that is not
    believed."""

    def __init__(self, appending: Appending, spec: plan.Spec, panel: Panel | None, queued: jobs.Queued) -> None:
        self._log, self._spec, self._panel, self._queued = appending, spec, panel, queued
        self._store, self._tenant = appending.process.store, appending.tenant
        self._vault = Vault(appending.process.db, appending.process.master)
        self._wanted: Configuration | None = None

    async def run(self, say: Say, stopped: Callable[[], bool]) -> child.Done:
        if self._panel is None:
            raise errors.SyncFailed("No Panel is configured (UNDRIFT_PANEL_URL)")
        if self._tenant != tenants.FIRST:
            raise errors.SyncFailed("The servers of this node belong to the first tenant")
        await self._log.look()
        if self._spec.server is not None:
            return await self._one(self._panel, self._spec.server)
        return await self._all(self._panel, say, stopped)

    async def complete(self, command: jobs.Complete) -> None:
        """The job's end, and with it what the server is to be from now on."""
        wanted = self._wanted

        async def decide() -> tuple[Sequence[Decided], child.Applied]:
            if wanted is None:
                return [], _NOTHING
            before = await self._store.load(servers, self._stream(wanted.uuid))
            events = servers.decide(servers.Sync(wanted), before.state)
            return [Decided(servers, wanted.uuid, before, events)], _NOTHING

        async def end(_: child.Applied) -> Sequence[Decided]:
            return [self._log.decided(command)]

        await self._log.append(decide, end)

    def _stream(self, uuid: str) -> str:
        return messages.stream(servers.STREAM, self._tenant, uuid)

    # One of them.

    async def _one(self, panel: Panel, uuid: str) -> child.Done:
        raw = await panel.server(uuid, self._left_s())
        found = await off_the_loop(len(raw) // _LARGE * _LARGE, plan.server, raw, uuid)
        before: servers.Server = (await self._store.load(servers, self._stream(uuid))).state
        known = before.configuration if not before.deleted else None
        self._wanted = await self._sealed(found, known)
        differences = len(plan.differences(known, self._wanted))
        counters = jobs.Counters(
            processed=1, created=int(known is None), updated=int(known is not None and differences > 0)
        )
        return _done(counters, differences)

    def _left_s(self) -> float | None:
        if self._queued.deadline is None:
            return None
        left_s = (self._queued.deadline - datetime.now(UTC)).total_seconds() - _MARGIN_S
        return min(max(left_s, 0.0), self._log.process.settings.panel.budget_s)

    async def _sealed(self, found: Configuration, known: Configuration | None) -> Configuration:
        """With references; only secrets that are new are kept."""
        secrets = server_config.secrets(found)
        owner = f"servers/{found.uuid}"
        references = {
            name: self._vault.reference(self._tenant, value, f"{owner}/{name}") for name, value in secrets.items()
        }
        kept = set() if known is None else set(server_config.secrets(known).values())
        fresh = {name: value for name, value in secrets.items() if references[name] not in kept}
        await self._vault.seal_all(self._tenant, {f"{owner}/{name}": value for name, value in fresh.items()})
        return server_config.with_secrets(found, references)

    # All of them.

    async def _all(self, panel: Panel, say: Say, stopped: Callable[[], bool]) -> child.Done:
        await say(child.Report("listing", 0, jobs.Counters()))
        before = await self._before()
        listed = await self._listed(panel, say)
        self._check(before, listed)
        wanted = [(uuid, one) for uuid, one in listed.items() if one is not None]
        gone = [(uuid, None) for uuid in before if uuid not in listed]
        counters = jobs.Counters(errors=len(listed) - len(wanted))
        every: list[tuple[str, Configuration | None]] = [*wanted, *gone]
        for start in range(0, len(every), _BATCH):
            if stopped():
                return _done(counters, 0, stopped=True)
            some = every[start : start + _BATCH]
            counters = await self._carry_out(some, before, counters, (start + len(some)) * 100 // len(every), say)
        return _done(counters, counters.created + counters.updated + counters.deleted)

    async def _before(self) -> dict[str, Loaded]:
        """What is known, from before the Panel is asked: whatever is said of a server meanwhile is newer."""
        await self._log.caught_up()
        rows = await servers_read.list_(self._log.process.db, self._tenant)
        found = await self._store.load_all(servers, [self._stream(row.uuid) for row in rows])
        return {name.rpartition("/")[2]: one for name, one in found.items() if not one.state.deleted}

    async def _listed(self, panel: Panel, say: Say) -> dict[str, Configuration | None]:
        """None stands for one that cannot be read: it is there, and stays as it is."""
        listed: dict[str, Configuration | None] = {}
        async for page in panel.servers():
            for one in page:
                try:
                    listed[one.uuid] = plan.listed(one)
                except errors.RemoteRefused as error:
                    listed[one.uuid] = None
                    await say(child.Line("warn", f"{one.uuid[:64]}: {error.message}"))
        return listed

    def _check(self, before: Mapping[str, Loaded], listed: Mapping[str, Configuration | None]) -> None:
        known = {uuid: plan.Sighting(one.state.configuration.suspended) for uuid, one in before.items()}
        seen = {uuid: known.get(uuid, plan.Sighting(False)) for uuid in listed}
        seen |= {uuid: plan.Sighting(one.suspended) for uuid, one in listed.items() if one is not None}
        found = plan.suspicious(known, seen, self._spec.max_change_fraction)
        shown = sorted((uuid, one.suspended) for uuid, one in seen.items())
        hash = hashlib.sha256(msgspec.json.encode((sorted(known), shown))).hexdigest()
        if found is not None and not self._spec.force and self._log.state.confirm != hash:
            reason = f"{found['count']} of {found['known']} servers would be {found['what']} at once"
            raise errors.Held(reason, plan=hash, **found)

    async def _carry_out(
        self,
        some: Sequence[tuple[str, Configuration | None]],
        before: Mapping[str, Loaded],
        counters: jobs.Counters,
        percent: int,
        say: Say,
    ) -> jobs.Counters:
        """What the listing says of some servers, but of none about which something was said since."""
        sealed = {
            uuid: await self._sealed(one, before[uuid].state.configuration if uuid in before else None)
            for uuid, one in some
            if one is not None
        }
        done = counters

        async def decide() -> tuple[Sequence[Decided], child.Applied]:
            nonlocal done
            now = await self._store.latest([self._stream(uuid) for uuid, _ in some])
            decided = []
            for uuid, one in some:
                known, last = before.get(uuid, Loaded(servers.initial)), now.get(self._stream(uuid))
                if (0 if last is None else last.version) != known.version:
                    continue
                command: servers.Command = servers.Delete() if one is None else servers.Sync(sealed[uuid])
                decided.append(Decided(servers, uuid, known, servers.decide(command, known.state)))
            done = _counted(counters, len(some), decided)
            return [one for one in decided if one.events], _NOTHING

        async def end(_: child.Applied) -> Sequence[Decided]:
            return [self._log.decided(jobs.Progress("applying", percent, done))]

        await self._log.append(decide, end)
        await say(child.Report("applying", percent, done))
        return done


_NOTHING = child.Applied(0, 0, 0)


def _counted(counters: jobs.Counters, seen: int, decided: Sequence[Decided]) -> jobs.Counters:
    firsts = [type(one.events[0]) for one in decided if one.events]
    created, deleted = firsts.count(servers.Added), firsts.count(servers.Deleted)
    return msgspec.structs.replace(
        counters,
        processed=counters.processed + seen,
        created=counters.created + created,
        updated=counters.updated + len(firsts) - created - deleted,
        deleted=counters.deleted + deleted,
    )


def _done(counters: jobs.Counters, differences: int, *, stopped: bool = False) -> child.Done:
    result = plan.Result(differences=differences)
    return child.Done(msgspec.json.encode(result), counters, stopped)
