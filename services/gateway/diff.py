"""Two runs side by side: what one did and the other did not, or did differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from domain import errors, jobs
from domain.plans import diffs, files
from projections import jobs as jobs_read
from projections import outcomes
from services.asks import Ask
from services.gateway import bodies
from services.gateway.collections import Cursors
from services.gateway.dialects import JOBS
from services.gateway.jobs_reads import found
from services.gateway.jobs_shapes import Job, job
from services.gateway.routes import Call, Parameter, Route

LIMIT = 100
LIMIT_MAX = 1000
_PATIENCE_S = 60.0


class Difference(Struct):
    """One item (`<entity>/<id>`) or path, and what each run did to it; a run that did nothing to it is missing."""

    name: str
    job: diffs.Done | UnsetType = UNSET
    other: diffs.Done | UnsetType = UNSET


class Diff(Struct, rename="camel"):
    """`same` and `different` count what both touched, `onlyJob` and `onlyOther` what only one did. `differences` are
    all but the same; `nextCursor` is the `cursor` of the following page, null on the last."""

    job: Job
    other: Job
    same: int
    different: int
    only_job: int
    only_other: int
    differences: list[Difference]
    next_cursor: str | None


async def diff(call: Call) -> Any:
    """What the first run of the path did, beside the second. Of folder syncs it is what their plans say, so both have
    to have completed; of others what is in the log. Both have to be of one kind."""
    query = call.query()
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    (left, _), (right, position) = await found(call), await found(call, "other_id")
    cursors = Cursors(call.api.process.master, "diff", call.tenant, left.id, right.id)
    after = cursors.read(query["cursor"]) if query.get("cursor") else None
    for row in (left, right):
        if row.status in jobs.OPEN or row.status == "paused":
            raise errors.InvalidState(f"{row.id} is {row.status}; runs are compared when they have ended")
    if left.kind != right.kind:
        raise errors.Invalid(f"Runs of one kind are compared, and these are {left.kind} and {right.kind}")
    page, cursor = await (_folders if left.kind == "files" else _collections)(call, (left, right), limit, after)
    counts = page.counts
    made = Diff(
        job=job(left),
        other=job(right),
        same=counts.same,
        different=counts.different,
        only_job=counts.only_left,
        only_other=counts.only_right,
        differences=[_difference(pair) for pair in page.pairs],
        next_cursor=None if cursor is None else cursors.write(*cursor),
    )
    return call.reply(made, position)


def _difference(pair: diffs.Pair) -> Difference:
    made = Difference(pair.name)
    if pair.left is not None:
        made.job = pair.left
    if pair.right is not None:
        made.other = pair.right
    return made


Rows = tuple[jobs_read.Row, jobs_read.Row]
Found = tuple[diffs.Page, tuple[str, str] | None]


async def _folders(call: Call, rows: Rows, limit: int, after: tuple[str, str] | None) -> Found:
    """By a worker, which has the plans and the time."""
    left, right = (_plan(row) for row in rows)
    spec = diffs.Spec(left, right, None if after is None else after[1], limit)
    ask = Ask(spec=Raw(msgspec.json.encode(spec)), roots=(), tenant=call.tenant)
    answer = await call.api.process.bus.ask("files.diff", msgspec.json.encode(ask), _PATIENCE_S)
    page = msgspec.json.decode(answer, type=diffs.Page)
    return page, None if page.after is None else ("", page.after)


def _plan(row: jobs_read.Row) -> str:
    if row.result is None:
        raise errors.InvalidState(f"{row.id} has not completed, so the plan that it carried out is not kept")
    return msgspec.json.decode(row.result, type=files.Result).plan_hash


async def _collections(call: Call, rows: Rows, limit: int, after: tuple[str, str] | None) -> Found:
    database, both = call.api.process.db, (rows[0].id, rows[1].id)
    collection = await outcomes.collection(database, call.tenant, both)
    if collection is None:
        return diffs.Page(diffs.Counts(0, 0, 0, 0), [], None), None
    counts = await outcomes.counts(database, call.tenant, both, collection)
    found = await outcomes.page(database, call.tenant, both, collection, limit + 1, after or ("", ""))
    cursor = found[limit - 1][0] if len(found) > limit else None
    return diffs.Page(counts, [pair for _, pair in found[:limit]], None), cursor


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}/diff/{other_id:str}",
        diff,
        JOBS,
        "Compare what two runs did",
        query=(
            Parameter("cursor", {"type": "string"}, "the `nextCursor` of the page before"),
            Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
        ),
        answers={200: Diff},
        errors=(400, 401, 403, 404, 409, 503),
    ),
)
