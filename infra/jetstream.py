"""JetStream by its own requests: nats-py knows neither `first_seq` nor how to publish many in one go."""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from domain import errors
from infra.bus import Bus, Reply
from infra.envelope import Sealed, lines

WRONG_LAST_SEQUENCE = 10071
WRONG_LAST_MESSAGE = 10070
#: Codes that say: somebody else has written to the stream.
SOMEBODY_ELSE = (WRONG_LAST_SEQUENCE, WRONG_LAST_MESSAGE)
_NOT_FOUND = (10037, 10043, 10057, 10059)  # no message, no sequence, not to be deleted, no stream


class Refused(Exception):
    """JetStream does not do that; `code` is its error code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class State(Struct, frozen=True):
    """What a stream holds: `messages` of the sequences `first` .. `last`, without those in `deleted`."""

    first: int
    last: int
    messages: int
    config: Mapping[str, Any]
    deleted: Sequence[int] = ()


class Stored(Struct, frozen=True):
    """A message as the stream keeps it."""

    sequence: int
    headers: Mapping[str, str]
    data: bytes


class Stream:
    """One stream. Every call raises errors.Unavailable without NATS, errors.TimedOut, and Refused."""

    def __init__(self, bus: Bus, name: str, timeout: float = 5.0, replicas: int = 1) -> None:
        self.name = name
        self._bus, self._timeout, self._replicas = bus, timeout, replicas

    async def state(self) -> State | None:
        """None where there is no such stream."""
        info = await self._call(f"STREAM.INFO.{self.name}", {"deleted_details": True})
        if info is None:
            return None
        state = info["state"]
        return State(
            first=state["first_seq"],
            last=state["last_seq"],
            messages=state["messages"],
            config=info["config"],
            deleted=state.get("deleted") or (),
        )

    async def create(self, config: Mapping[str, Any]) -> None:
        await self._call(f"STREAM.CREATE.{self.name}", {"name": self.name, **config})

    async def update(self, config: Mapping[str, Any]) -> None:
        await self._call(f"STREAM.UPDATE.{self.name}", {"name": self.name, **config})

    async def delete(self) -> None:
        """Its consumers go with it. A stream that is not there is deleted already."""
        await self._call(f"STREAM.DELETE.{self.name}", {})

    async def message(self, sequence: int) -> Stored | None:
        return await self._stored({"seq": sequence})

    async def newest(self, subject: str) -> Stored | None:
        """The last message that is still there."""
        return await self._stored({"last_by_subj": subject})

    async def erase(self, sequence: int) -> None:
        """Takes a message away and overwrites its bytes on disk, where a purge leaves them; its sequence stays. What is
        not there is erased already."""
        await self._call(f"STREAM.MSG.DELETE.{self.name}", {"seq": sequence, "no_erase": False})

    async def purge(self, subject: str, before: int) -> None:
        """Takes the messages of a subject away that come before a sequence; sequences stay."""
        await self._call(f"STREAM.PURGE.{self.name}", {"filter": subject, "seq": before})

    async def consume(self, name: str, config: Mapping[str, Any]) -> bool:
        """Makes a consumer; whether there is a stream to consume."""
        body = {"stream_name": self.name, "config": {"name": name, **config}}
        return await self._call(f"CONSUMER.CREATE.{self.name}.{name}", body) is not None

    async def drop(self, name: str) -> None:
        await self._call(f"CONSUMER.DELETE.{self.name}.{name}", {})

    async def publish(self, batch: Sequence[Sealed], expected_last: int) -> int:
        """Stores the messages behind `expected_last`, in order and with nobody's between them; the last sequence.

        Refused with a code of SOMEBODY_ELSE when another was there. After that, TimedOut or Unavailable a beginning
        of the batch may be stored: look.
        """
        commands = (_atomic if self._replicas > 1 else _chain)(batch, expected_last)
        with self._bus.expect() as (inbox, begun), self._bus.expect() as (other, done):
            wire = [command.complete("" if n else inbox) for n, command in enumerate(commands[:-1])]
            await self._bus.send(b"".join([*wire, commands[-1].complete(other)]))
            try:
                async with asyncio.timeout(self._timeout):
                    # what is wrong with the first says more than what follows from it
                    replies = [await future for future in ((begun, done) if wire else (done,))]
            except TimeoutError:
                raise errors.TimedOut("JetStream did not acknowledge in time") from None
        return [_sequence(reply) for reply in replies][-1]

    async def _stored(self, which: Mapping[str, Any]) -> Stored | None:
        answer = await self._call(f"STREAM.MSG.GET.{self.name}", which)
        if answer is None:
            return None
        message = answer["message"]
        headers = lines(b64decode(message.get("hdrs", "")))
        return Stored(message["seq"], headers, b64decode(message.get("data", "")))

    async def _call(self, subject: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer of JetStream's API; None when what it is about is not there."""
        reply = await self._bus.request(f"$JS.API.{subject}", msgspec.json.encode(body), self._timeout)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" not in answer:
            return answer
        if answer["error"].get("err_code") in _NOT_FOUND:
            return None
        raise _refusal(answer)


class _Command(Struct, frozen=True):
    """A publish of the wire protocol, but for its inbox."""

    subject: str
    headers: bytes
    data: bytes

    def complete(self, inbox: str = "") -> bytes:
        total = len(self.headers) + len(self.data)
        line = f"HPUB {self.subject} {inbox} {len(self.headers)} {total}\r\n".encode()
        return b"".join((line, self.headers, self.data, b"\r\n"))


def _command(message: Sealed, extra: str) -> _Command:
    headers = b"".join((b"NATS/1.0\r\n", message.headers, extra.encode(), b"\r\n"))
    return _Command(message.subject, headers, message.data)


def _chain(batch: Sequence[Sealed], expected_last: int) -> list[_Command]:
    """Each names the sequence and the message that must stand before it, so nothing is stored behind a message that was
    refused or is not ours. On a single server an atomic batch costs ten times this (3 to 12 ms for 8 messages)."""
    mark, before, commands = secrets.token_hex(6), "", []
    for sequence, message in enumerate(batch, start=expected_last):
        extra = f"Nats-Msg-Id: {mark}-{sequence}\r\nNats-Expected-Last-Sequence: {sequence}\r\n{before}"
        before = f"Nats-Expected-Last-Msg-Id: {mark}-{sequence}\r\n"
        commands.append(_command(message, extra))
    return commands


def _atomic(batch: Sequence[Sealed], expected_last: int) -> list[_Command]:
    """As one batch of the server's. In a cluster it costs no more than the messages alone, and a chain that breaks
    there can leave the stream without a leader that answers (nats-server 2.15.1)."""
    mark = f"Nats-Batch-Id: {secrets.token_hex(12)}\r\nNats-Batch-Sequence: "
    extras = [f"{mark}{number}\r\n" for number in range(1, len(batch) + 1)]
    extras[0] += f"Nats-Expected-Last-Sequence: {expected_last}\r\n"
    extras[-1] += "Nats-Batch-Commit: 1\r\n"
    return [_command(message, extra) for message, extra in zip(batch, extras, strict=True)]


def _sequence(reply: Reply) -> int:
    """Of an acknowledgement; the first message of an atomic batch gets an empty one."""
    if reply.headers.get("Status") == "503":
        raise Refused(_NOT_FOUND[1], "there is no stream")
    answer = msgspec.json.decode(reply.data) if reply.data else {"seq": 0}
    if "error" in answer:
        raise _refusal(answer)
    return int(answer["seq"])


def _refusal(answer: Mapping[str, Any]) -> Refused:
    error = answer["error"]
    return Refused(error.get("err_code", 0), error.get("description", ""))
