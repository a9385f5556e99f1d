"""The gate between consumers from outside and JetStream: what they may ask is passed on, the rest is refused.

Whoever asks JetStream chooses where it answers, and how a consumer delivers. So nobody outside asks it: they ask here,
in the name that their credential opens, and are answered in their own inboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg
import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from domain import errors
from infra import permissions
from infra.bus import Bus
from infra.db import CONNECTION_LOST
from infra.jetstream import Refused as JetStreamRefused
from services import consumers_rules as rules

log = structlog.get_logger("consumers")

_API = "$JS.API"
_TIMEOUT_S = 5.0
#: Requests of one credential that wait for JetStream; what comes on top is refused at once.
_WAITING = 64
_PAGES = 100
#: What one of them costs, in acknowledgements.
_REQUEST = 20
#: So many seconds' worth may come at once; what would have to wait for longer than that is a flood.
_BURST_S, _PATIENCE_S = 1.0, 1.0


class Known(Struct, frozen=True):
    """A credential that may be here, and what it reads."""

    id: str
    tenant: str
    subjects: tuple[str, ...]
    until: float | None = None


#: What passes: servers that are away, and a read model that is not made yet.
TRANSIENT = (errors.Unavailable, errors.TimedOut, asyncpg.UndefinedTableError, *CONNECTION_LOST)

Lookup = Callable[[str], Awaitable[Known | None]]


class Gate:
    """`lookup` finds a credential by its id. Each may acknowledge `rate` times a second: what comes on top waits its
    turn, and `flooded` is told, with every message, of one who doesn't wait. They are heard over `bus`; what is asked
    of JetStream goes over `ours`, where it doesn't stand in line behind a flood."""

    def __init__(self, bus: Bus, ours: Bus, lookup: Lookup, rate: int, flooded: Callable[[str], None]) -> None:
        self._bus, self._ours, self._lookup, self._rate, self._flooded = bus, ours, lookup, rate, flooded
        #: When each would be through with what it has said so far, at the rate that it may have.
        self._through: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def hear(self, message: Msg) -> None:
        """One message of a consumer: an acknowledgement, or a request."""
        tokens = message.subject.split(".")[2:]  # behind feeds.in
        if tokens[1] == "ACK":
            await self._acknowledge(message, tokens)
            return
        id = tokens[1]
        late, back = self._late(id, _REQUEST), _inbox(id, message.reply)
        if late is None or back is None:
            return
        if self._waiting[id] >= _WAITING:
            await self._bus.publish(back, rules.refusal(rules.Refused(503, "one thing after the other; try again")))
            return
        self._waiting[id] += 1
        self._begin(self._request(id, tokens[3:], message.data, back, late))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def names(self) -> list[str]:
        """The consumers of all credentials."""
        found: list[str] = []
        for _ in range(_PAGES):
            asked = msgspec.json.encode({"offset": len(found)})
            said = await self._ask(f"CONSUMER.NAMES.{rules.STREAM}", asked)
            page = msgspec.json.decode(said)
            if "error" in page or not page.get("consumers"):
                break
            found += page["consumers"]
            if len(found) >= page["total"]:
                break
        return [name for name in found if rules.owner(name) is not None]

    async def delete(self, name: str) -> None:
        await self._ask(f"CONSUMER.DELETE.{rules.STREAM}.{name}")

    async def _acknowledge(self, message: Msg, tokens: list[str]) -> None:
        """The server has seen that the consumer is one of theirs."""
        id = rules.owner(tokens[3]) if len(tokens) > 3 else None
        if id is None:
            return
        late, back = self._late(id), _inbox(id, message.reply) if message.reply else ""
        if late is None or back is None:
            return
        subject = ".".join(tokens)
        if late <= 0:
            await self._pass(subject, message.data, back)
        else:
            self._begin(self._pass_later(late, subject, message.data, back))

    async def _request(self, id: str, words: list[str], body: bytes, back: str, late: float) -> None:
        try:
            await asyncio.sleep(max(late, 0))
            answer = await self._answer(id, words, body, back)
        except rules.Refused as error:
            answer = rules.refusal(error)
        except (JetStreamRefused, *TRANSIENT) as error:
            log.warning("a consumer could not be answered", credential=id, reason=type(error).__name__)
            answer = rules.refusal(rules.Refused(503, "not now; try again"))
        finally:
            self._waiting[id] -= 1
        if answer is not None:
            with contextlib.suppress(errors.Unavailable):  # it asks again
                await self._bus.publish(back, answer)

    async def _answer(self, id: str, words: list[str], body: bytes, back: str) -> bytes | None:
        known = await self._lookup(id)
        if known is None:
            raise rules.Refused(403, "this credential is not valid any more")
        match words:
            case ["INFO"]:
                return rules.account()
            case ["STREAM", "NAMES"]:
                return rules.names_of_streams()
            case ["STREAM", "INFO", rules.STREAM]:
                found = msgspec.json.decode(await self._ask(f"STREAM.INFO.{rules.STREAM}"))
                return rules.stream(found, known.subjects)
            case ["CONSUMER", "NAMES", rules.STREAM]:
                return rules.names_of_consumers(await self._own(id))
            case ["CONSUMER", "CREATE", rules.STREAM, *rest]:
                return await self._create(known, rest[0] if rest else None, body)
            case ["CONSUMER", "DURABLE", "CREATE", rules.STREAM, name]:
                return await self._create(known, name, body)
            case ["CONSUMER", ("INFO" | "DELETE") as verb, rules.STREAM, name]:
                return await self._ask(f"CONSUMER.{verb}.{rules.STREAM}.{rules.mine(id, name)}")
            case ["CONSUMER", "MSG", "NEXT", rules.STREAM, name]:
                asked = rules.following(body)
                await self._pass(f"{_API}.CONSUMER.MSG.NEXT.{rules.STREAM}.{rules.mine(id, name)}", asked, back)
                return None
        raise rules.Refused(403, "consumers from outside may read, and nothing else")

    async def _create(self, known: Known, name: str | None, body: bytes) -> bytes:
        fresh = f"{known.id}-{secrets.token_hex(6)}"
        chosen, asked = rules.create(known.id, name, known.subjects, body, fresh)
        own = await self._own(known.id)
        if chosen not in own and len(own) >= rules.MOST:
            raise rules.Refused(429, f"a credential has at most {rules.MOST} consumers at a time; delete some")
        return await self._ask(f"CONSUMER.CREATE.{rules.STREAM}.{chosen}", asked)

    async def _own(self, id: str) -> list[str]:
        return [name for name in await self.names() if rules.owner(name) == id]

    async def _ask(self, what: str, body: bytes = b"") -> bytes:
        return (await self._ours.request(f"{_API}.{what}", body, _TIMEOUT_S)).data

    async def _pass(self, subject: str, body: bytes, back: str) -> None:
        """As it is, to be answered there."""
        with contextlib.suppress(errors.Unavailable):  # it asks, or acknowledges, again
            await self._bus.send(f"PUB {subject} {back} {len(body)}\r\n".encode() + body + b"\r\n")

    async def _pass_later(self, seconds: float, subject: str, body: bytes, back: str) -> None:
        await asyncio.sleep(seconds)
        await self._pass(subject, body, back)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _late(self, id: str, cost: int = 1) -> float | None:
        """The seconds until its turn, none or less if it is now; None if it must not wait."""
        now = asyncio.get_running_loop().time()
        through = max(self._through.get(id, now), now) + cost / self._rate
        late = through - now - _BURST_S
        if late > _PATIENCE_S:
            self._flooded(id)
            return None
        self._through[id] = through
        return late


def _inbox(id: str, reply: str) -> str | None:
    """Where we say what the credential hears as `reply`; None where that is no inbox of its own."""
    own = f"{permissions.inbox(id)}."
    tokens = reply.split(".")
    if not reply.startswith(own) or not all(tokens) or "*" in tokens or ">" in tokens:
        return None
    return f"{permissions.TOLD}.{id}.{reply[len(own) :]}"
