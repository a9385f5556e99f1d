"""The routes of webhooks."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway import webhooks, webhooks_deliveries, webhooks_replay
from services.gateway import webhooks_shapes as shapes
from services.gateway.dialects import EONACAT
from services.gateway.routes import Handler, Parameter, Route

_BASE = "/api/v1/webhooks"
_ONE = _BASE + "/{webhook_id:str}"
_READ = (400, 401, 403, 429, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)


def _read(
    path: str, handler: Handler, answer: type, summary: str, query: Sequence[Parameter] = (), *more: int
) -> Route:
    return Route(
        "GET",
        path,
        handler,
        EONACAT,
        summary,
        needs="webhooks:read",
        query=query,
        answers={200: answer},
        errors=(*_READ, *more),
    )


def _write(
    method: str,
    path: str,
    handler: Handler,
    answer: type,
    summary: str,
    body: type | None = None,
    *,
    required: bool = True,
) -> Route:
    return Route(
        method,
        path,
        handler,
        EONACAT,
        summary,
        needs="webhooks:write",
        body=body,
        body_required=required,
        answers={200: answer},
        errors=_WRITE,
    )


ROUTES: Sequence[Route] = (
    _write("POST", f"{_BASE}/subscribe", webhooks.subscribe, shapes.Subscribed, "Subscribe a URL", shapes.Subscribe),
    _read(_BASE, webhooks.list_, shapes.Webhooks, "List webhooks"),
    _read(f"{_BASE}/catalogue", webhooks.names, shapes.Catalogue, "The names of events"),
    _read(_ONE, webhooks.show, shapes.Webhook, "One webhook"),
    _write("PUT", _ONE, webhooks.change, shapes.Webhook, "Change a webhook", shapes.Change),
    _write("PATCH", _ONE, webhooks.change, shapes.Webhook, "Change a webhook", shapes.Change),
    _write("DELETE", _ONE, webhooks.delete, shapes.Deleted, "Forget a webhook, and what it was still to be sent"),
    _write(
        "POST",
        f"{_ONE}/rotate",
        webhooks.rotate,
        shapes.Rotated,
        "A new secret; the one before stays good for a while",
        shapes.Rotate,
        required=False,
    ),
    _write("POST", f"{_ONE}/test", webhooks.test, shapes.Tested, "Send a test"),
    _write("POST", f"{_ONE}/enable", webhooks.enable, shapes.Webhook, "Send again to a webhook that was disabled"),
    _read(
        f"{_ONE}/deliveries",
        webhooks_deliveries.list_,
        shapes.Deliveries,
        "What became of its messages, the newest first",
        webhooks_deliveries.LIST_QUERY,
    ),
    _write(
        "POST",
        _ONE + "/deliveries/{seq:str}/redeliver",
        webhooks_deliveries.redeliver,
        shapes.Redelivered,
        "Send a message once more",
    ),
    _write(
        "POST",
        f"{_ONE}/replay",
        webhooks_replay.replay,
        shapes.Replayed,
        "Send events out of the log; `dryRun` only counts them",
        shapes.Replay,
    ),
    _read(
        f"{_ONE}/events",
        webhooks_deliveries.events,
        shapes.Page,
        "Its messages by number, without gaps: for those that did not arrive",
        webhooks_deliveries.EVENTS_QUERY,
        410,
    ),
)
