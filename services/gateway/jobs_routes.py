"""The routes of sync jobs, in one visible list."""

from __future__ import annotations

from collections.abc import Sequence

from domain import jobs
from services.gateway import diff, sessions_attach
from services.gateway import jobs as commands
from services.gateway import jobs_reads as reads
from services.gateway.as_of import AS_OF
from services.gateway.dialects import JOBS
from services.gateway.jobs_shapes import Detail, Listing, Logs
from services.gateway.routes import Parameter, Route
from services.gateway.streams import Sent

_STATUS = Parameter("status", {"type": "string", "enum": [*jobs.STATUSES, "pending"]}, "`pending` means `queued`")
_INTEGRATION = Parameter("integrationId", {"type": "string", "pattern": r"^[^\u0000-\u001f\u007f]*$"})
_LIMIT = Parameter("limit", {"type": "integer", "default": reads.LIMIT}, f"clamped to 1..{reads.LIMIT_MAX}")
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/sync/jobs",
        reads.list_,
        JOBS,
        "List jobs, the newest first",
        query=(_STATUS, _INTEGRATION, _LIMIT),
        answers={200: Listing},
        errors=(400, 401, 503),
    ),
    Route(
        "POST",
        "/api/sync/jobs",
        commands.create,
        JOBS,
        "Queue a job of an integration",
        needs="jobs:write",
        body=commands.Create,
        query=(sessions_attach.HEADER,),
        answers={200: commands.Created},
        errors=_WRITE,
    ),
    Route(
        "POST",
        "/api/sync/jobs/stop-all",
        commands.stop_all,
        JOBS,
        "Stop what is queued or running",
        needs="jobs:write",
        body=commands.StopAll,
        body_required=False,
        answers={200: commands.StoppedAll},
        errors=_WRITE,
    ),
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}",
        reads.show,
        JOBS,
        "One job with its progress and newest log lines",
        query=(AS_OF,),
        answers={200: Detail},
        errors=(400, 401, 403, 404, 503),
    ),
    Route(
        "DELETE",
        "/api/sync/jobs/{job_id:str}",
        commands.delete,
        JOBS,
        "Delete a job that has ended",
        needs="jobs:write",
        body=commands.Delete,
        body_required=False,
        answers={200: commands.Deleted},
        errors=_WRITE,
    ),
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}/logs",
        reads.logs,
        JOBS,
        "All log lines of a job, also of a deleted one",
        needs="jobs:read",
        query=(
            Parameter("after", {"type": "integer", "default": 0}),
            Parameter("limit", {"type": "integer", "default": 1000}, "clamped to 1..1000"),
        ),
        answers={200: Logs},
        errors=(400, 401, 403, 404, 503),
    ),
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}/events",
        reads.events,
        JOBS,
        "Follow a job: its changes, log lines and progress as they come",
        query=(
            Parameter("Last-Event-ID", {"type": "string"}, "the id of the last event that was seen", where="header"),
            Parameter("lastEventId", {"type": "string"}, "the same, where no header can be set"),
        ),
        answers={200: Sent, 204: None},
        errors=(400, 401, 403, 404, 410, 503),
        media="text/event-stream",
    ),
    Route(
        "POST",
        "/api/sync/jobs/{job_id:str}/resume",
        commands.resume,
        JOBS,
        "Resume a paused or failed job; `confirm` is the hash of a plan that a guard holds",
        needs="jobs:write",
        body=commands.Resume,
        body_required=False,
        answers={200: commands.Changed},
        errors=_WRITE,
    ),
    Route(
        "POST",
        "/api/sync/jobs/{job_id:str}/stop",
        commands.stop,
        JOBS,
        "Stop a job; `graceful` lets the operation under way finish",
        needs="jobs:write",
        body=commands.Stop,
        body_required=False,
        answers={200: commands.Changed},
        errors=_WRITE,
    ),
    Route(
        "PUT",
        "/api/sync/jobs/{job_id:str}/interval",
        commands.interval,
        JOBS,
        "Change the schedule of a job's integration, in seconds",
        needs="jobs:write",
        body=commands.Interval,
        answers={200: commands.IntervalChanged},
        errors=_WRITE,
    ),
    *diff.ROUTES,
)
