"""`POST /api/sync/integrations/{id}/test`: whether an integration could work, and what is wrong where it could not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import errors, kinds
from projections import integrations as integrations_read
from services.asks import Ask
from services.gateway.dialects import JOBS
from services.gateway.routes import Call, Route

_PATIENCE_S = 60.0


class Check(Struct):
    """`message` says what is wrong, or what was found."""

    name: str
    ok: bool
    message: str


class Found(Struct):
    success: bool
    checks: list[Check]


class Tested(Struct, rename="camel"):
    """`success` when a run could work: every check is good, or of the network's directories enough. What depends on
    one that is not is left out."""

    success: bool
    integration_id: str
    checks: list[Check]


async def test(call: Call) -> Any:
    position = await call.caught_up()
    id = call.path("integration_id")
    row = await integrations_read.get(call.api.process.db, call.tenant, id)
    if row is None:
        raise errors.NotFound("There is no such integration", kind="integration")
    spec = kinds.spec(row.kind, row.config, "full_sync", kinds.Options())
    ask = Ask(spec=Raw(msgspec.json.encode(spec)), roots=call.principal.roots, tenant=call.tenant)
    answer = await call.api.process.bus.ask(f"{row.kind}.test", msgspec.json.encode(ask), _PATIENCE_S)
    found = msgspec.json.decode(answer, type=Found)
    return call.reply(Tested(found.success, id, found.checks), position)


ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/sync/integrations/{integration_id:str}/test",
        test,
        JOBS,
        "Check an integration's address, credentials and permissions; nothing is recorded",
        needs="jobs:write",
        answers={200: Tested},
        errors=(400, 401, 403, 404, 503),
    ),
)
