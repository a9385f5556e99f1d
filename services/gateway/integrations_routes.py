"""The routes of integrations, in one visible list."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway import integrations as commands
from services.gateway import integrations_reads as reads
from services.gateway import sessions_attach
from services.gateway.as_of import AS_OF
from services.gateway.dialects import JOBS
from services.gateway.integrations import Change, Create, Deleted, Initialized, Start, Started, Stopped
from services.gateway.integrations_shapes import Integration, Listing, Statuses
from services.gateway.routes import Route

_READ = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)
_ONE = "/api/sync/integrations/{integration_id:str}"

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/sync/initialize",
        commands.initialize,
        JOBS,
        "Load the declared integrations and say whether the scheduler runs",
        needs="jobs:write",
        answers={200: Initialized},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "GET",
        "/api/sync/integrations/status",
        reads.statuses,
        JOBS,
        "How every integration is doing",
        needs="jobs:read",
        answers={200: Statuses},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "GET",
        "/api/sync/integrations",
        reads.list_,
        JOBS,
        "List integrations",
        needs="jobs:read",
        answers={200: Listing},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "POST",
        "/api/sync/integrations",
        commands.create,
        JOBS,
        "Create an integration",
        needs="jobs:write",
        body=Create,
        answers={200: Integration},
        errors=_WRITE,
    ),
    Route(
        "GET",
        _ONE,
        reads.show,
        JOBS,
        "One integration",
        needs="jobs:read",
        query=(AS_OF,),
        answers={200: Integration},
        errors=_READ,
    ),
    Route(
        "PUT",
        _ONE,
        commands.change,
        JOBS,
        "Change an integration",
        needs="jobs:write",
        body=Change,
        answers={200: Integration},
        errors=_WRITE,
    ),
    Route(
        "DELETE",
        _ONE,
        commands.delete,
        JOBS,
        "Delete an integration; its jobs are stopped and stay listed",
        needs="jobs:write",
        answers={200: Deleted},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/start",
        commands.start,
        JOBS,
        "Turn the schedule on, and sync at once unless told otherwise",
        needs="jobs:write",
        query=(sessions_attach.HEADER,),
        body=Start,
        body_required=False,
        answers={200: Started},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/stop",
        commands.stop,
        JOBS,
        "Turn the schedule off and stop what runs",
        needs="jobs:write",
        answers={200: Stopped},
        errors=_WRITE,
    ),
)
