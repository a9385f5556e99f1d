"""One file of a library, by its id: as it is, or as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domain import errors, library
from projections import library_past
from services.gateway import as_of
from services.gateway.as_of import AS_OF
from services.gateway.changes import File, file
from services.gateway.dialects import PINAKES
from services.gateway.routes import Call, Route
from services.gateway.things import FILE


async def show(call: Call) -> Any:
    """Where it stands and what is in it; what was deleted is not there."""
    moment, position = await as_of.wanted(call), await call.caught_up(library.STREAM)
    if moment is not None:
        await as_of.reached(call, moment)
        position = moment.position
    id = call.path(FILE.parameter)
    found = await library_past.file(call.api.process.db, call.tenant, call.principal.owner, position, id)
    if found is None or found.hash is None:
        raise errors.NotFound("There is no such file", kind="file")
    return call.reply(file(found), position)


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        FILE.route,
        show,
        PINAKES,
        "One file of a library",
        query=(AS_OF,),
        answers={200: File},
        errors=(400, 401, 403, 404, 503),
    ),
)
