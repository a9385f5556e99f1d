"""Consumers from outside: lets those in that show a credential, stands between them and JetStream, and ends what was
revoked."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterable

import msgspec
import structlog
from nats.aio.msg import Msg

from domain import consumers, messages
from infra import callout, outside, permissions, subjects
from infra.bus import Bus
from projections import consumers as consumers_read
from services import consumers_rules as rules
from services import tokens
from services.consumers_gate import TRANSIENT, Gate, Known
from services.main import Process

log = structlog.get_logger("consumers")

#: For so long a credential that was looked up is believed; what is revoked is forgotten at once.
_FRESH_S = 5.0
#: What stands in line for longer, as behind a flood, is given up with the connection it stands in; it is asked again.
_BEHIND_S = 1.0
#: Connections that are looked at at a time; the others wait.
_AT_ONCE = 32


class Consumers:
    """Any number may run: they share the questions, and what is ended twice is ended."""

    def __init__(self, process: Process, bus: Bus, ours: Bus) -> None:
        """What consumers say comes over `bus`; what the server asks and is asked goes over `ours`, where no flood is
        before it."""
        settings = process.settings.nats
        self._process, self._bus, self._ours, self._settings = process, bus, ours, settings
        self._issuer = callout.Issuer(settings.issuer)
        self._known: dict[str, tuple[Known, str, float]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Ids that were revoked while we were here, and until when those stay out that asked for too much.
        self._revoked: set[str] = set()
        self._flooding: dict[str, float] = {}
        self._look = asyncio.Event()
        self._gate = Gate(bus, ours, self._valid, settings.consumer_rate, self._flooded)

    async def run(self) -> None:
        """Serves until cancelled."""
        for bus in (self._bus, self._ours):
            await bus.connect()
        await self._ours.subscribe(permissions.AUTHORISE, self._asked, queue=permissions.GATE)
        await self._bus.subscribe(f"{permissions.SAID}.>", self._gate.hear, queue=permissions.GATE)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._process.tail.follow(self._hear, frozenset({consumers.STREAM})))
                group.create_task(self._sweep())
        finally:
            self._gate.close()
            for task in self._tasks:
                task.cancel()
            for bus in (self._bus, self._ours):
                await bus.close()

    # Who comes in.

    async def _asked(self, message: Msg) -> None:
        task = asyncio.create_task(self._decide(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decide(self, message: Msg) -> None:
        try:
            asked = callout.question(message.data)
        except callout.Malformed:
            log.error("the server asks what we do not understand")
            return
        try:
            async with self._slots:
                known = await self._shown(asked)
                if known is None:
                    answer = self._issuer.refuse(asked, "unknown, revoked or over")
                else:
                    answer = self._issuer.admit(asked, known.id, known.until)
            await self._ours.publish(message.reply, answer)
        except TRANSIENT as error:
            log.warning("a consumer could not be let in", reason=type(error).__name__)
            return
        if known is None:
            log.info("a consumer was refused")
        else:
            log.info("a consumer came in", credential=known.id, tenant=known.tenant)

    async def _shown(self, asked: callout.Asked) -> Known | None:
        """The credential whose id and token a connection shows."""
        id, token = asked.connect_opts.user, asked.token
        if not rules.ID.fullmatch(id) or not token or id in self._out():
            return None
        known, digest = await self._look_up(id)
        return known if hmac.compare_digest(digest, tokens.digest(token)) else None

    async def _valid(self, id: str) -> Known | None:
        return (await self._look_up(id))[0] if rules.ID.fullmatch(id) else None

    async def _look_up(self, id: str) -> tuple[Known | None, str]:
        """A credential and the digest of its token, or nothing."""
        found = self._known.get(id)
        if found is not None and found[2] > time.monotonic():
            known, digest, _ = found
            return (None, "") if known.until is not None and known.until <= time.time() else (known, digest)
        self._known.pop(id, None)
        if id in self._revoked:
            return None, ""
        row = await consumers_read.live(self._process.db, id)
        if row is None:
            return None, ""
        until = None if row.expires_at is None else row.expires_at.timestamp()
        known = Known(row.id, row.tenant, subjects.events_of(row.tenant, row.topics), until)
        self._known[id] = (known, row.token_sha256, time.monotonic() + _FRESH_S)
        return known, row.token_sha256

    # Who has to go.

    def _flooded(self, id: str) -> None:
        if id not in self._flooding:
            log.warning("a consumer asks for too much", credential=id, rate=self._settings.consumer_rate)
        self._flooding[id] = time.monotonic() + self._settings.consumer_check_s
        self._look.set()

    def _out(self) -> set[str]:
        """Those that asked for too much a moment ago."""
        return {id for id, until in self._flooding.items() if until > time.monotonic()}

    def _hear(self, recorded: messages.Recorded) -> None:
        if isinstance(recorded.event, consumers.Revoked):
            self._known.pop(recorded.id, None)
            self._revoked.add(recorded.id)
            self._look.set()

    async def _sweep(self) -> None:
        """Looks who is here, as soon as somebody may have to go and every now and then."""
        while True:
            self._look.clear()
            try:
                if await self._ours.ready(self._settings.consumer_check_s):
                    await self.end(self._out())
            except TRANSIENT as error:
                log.warning("consumers could not be looked at", reason=type(error).__name__)
            self._flooding = {id: self._flooding[id] for id in self._out()}
            try:
                async with asyncio.timeout(self._settings.consumer_check_s):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def end(self, also: Iterable[str] = ()) -> int:
        """Ends the connections of credentials that are no more, and those of `also`; answers how many. The consumers
        that such credentials had go as well."""
        opened, names = await outside.connected(self._ours), await self._gate.names()
        ids = {one.id for one in opened} | {id for name in names if (id := rules.owner(name)) is not None}
        gone = await self._gone(ids) if ids else set()
        wrong = [one for one in opened if one.id in gone or one.id in also]
        for one in wrong:
            self._known.pop(one.id, None)
            await outside.end(self._ours, one)
            log.info("a consumer was sent away", credential=one.id)
        for name in names:
            if rules.owner(name) in gone:
                await self._gate.delete(name)
        return len(wrong)

    async def _gone(self, ids: set[str]) -> set[str]:
        """Those of these that are no more: as far as we have heard, and as the read model has it once it has come as
        far as we."""
        gone = ids & self._revoked
        if await self._caught_up():
            gone |= ids - await consumers_read.living(self._process.db, sorted(ids))
        return gone

    async def _caught_up(self) -> bool:
        """Whether the read model has seen, or does in a moment, what we have heard of."""
        wanted = self._process.tail.position
        for _ in range(100):
            found = await self._process.db.fetchval(
                "select pos from undrift.tracking where projection = $1 and generation = $2",
                consumers_read.NAME,
                consumers_read.GENERATION,
            )
            if found is not None and found >= wanted:
                return True
            await asyncio.sleep(0.02)
        return False


async def run(process: Process) -> None:
    """The role; it rests where nothing signs for consumers."""
    settings = process.settings.nats
    if not settings.issuer:
        await asyncio.Event().wait()
    name = f"{process.name} {permissions.GATE}"
    quick = msgspec.structs.replace(settings, ping_s=min(settings.ping_s, _BEHIND_S))
    bus, ours = (Bus(settings.url, one, name=name, user=permissions.GATE) for one in (quick, settings))
    await Consumers(process, bus, ours).run()
