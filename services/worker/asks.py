"""Asks: work that only looks, answered over NATS and never recorded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from domain import errors
from infra.asks import Handler
from infra.vault import Vault
from services import vaulted
from services.asks import Ask
from services.main import Process
from services.worker import child, engines
from services.worker.children import Children, Died

CONCURRENCY = 2


@asynccontextmanager
async def answering(process: Process, children: Children) -> AsyncIterator[None]:
    """Answers every kind of ask while the block runs."""
    slots = asyncio.Semaphore(CONCURRENCY)
    desks = []
    try:
        for kind in engines.ASKS:
            desks.append(await process.bus.answer(kind, _handler(process, children, kind), slots))
        yield
    finally:
        for desk in desks:
            await desk.close()


def _handler(process: Process, children: Children, kind: str) -> Handler:
    async def handle(payload: bytes, seconds: float) -> bytes:
        ask = msgspec.json.decode(payload, type=Ask)
        task = engines.ASKS[kind](process.settings, ask, uuid.uuid4().hex)
        if found := await vaulted.clear(Vault(process.db, process.master), ask.tenant, ask.spec):
            task = replace(task, collect=child.Collect(kind=kind, collection="", known="", secrets=found))
        try:
            return await _answer(children, task)
        finally:
            await engines.discard(Path(task.work))

    return handle


async def _answer(children: Children, task: child.Task) -> bytes:
    async with children.one() as one:
        await one.tell(task)
        try:
            said = await one.hear()
            while not isinstance(said, child.Done | child.Failed):
                said = await one.hear()
        except Died:
            raise errors.Unavailable("The work ended its process") from None
        one.clean = True
    if isinstance(said, child.Failed):
        raise errors.catalogue().get(said.code, errors.SyncFailed)(said.message, **said.details)
    return said.result
