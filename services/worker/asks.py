"""Asks: work that only looks, answered over NATS and never recorded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Raw, Struct

from domain import errors
from infra.bus import Handler
from services.main import Process
from services.worker import child, engines
from services.worker.children import Children, Died

CONCURRENCY = 2


class Ask(Struct, frozen=True):
    """What is asked of a worker: a kind's specification, and the roots and tenant of whoever asks."""

    spec: Raw
    roots: tuple[str, ...]
    tenant: str


@asynccontextmanager
async def answering(process: Process, children: Children) -> AsyncIterator[None]:
    """Answers every kind of ask while the block runs."""
    slots = asyncio.Semaphore(CONCURRENCY)
    desks = []
    try:
        for kind, prepare in engines.ASKS.items():
            desks.append(await process.bus.answer(kind, _handler(process, children, prepare), slots))
        yield
    finally:
        for desk in desks:
            await desk.close()


def _handler(process: Process, children: Children, prepare: engines.Prepare) -> Handler:
    async def handle(payload: bytes, seconds: float) -> bytes:
        task = prepare(process, payload, uuid.uuid4().hex)
        async with children.one() as one:
            await one.tell(task)
            try:
                while True:
                    said = await one.hear()
                    if isinstance(said, child.Done | child.Failed):
                        one.clean = True
                        break
            except Died:
                raise errors.Unavailable("The work ended its process") from None
        if isinstance(said, child.Failed):
            raise errors.catalogue().get(said.code, errors.SyncFailed)(said.message, **said.details)
        return await engines.answered(process, task, said)

    return handle
