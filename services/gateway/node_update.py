"""What the Panel says of this node itself: its token is renewed, live and everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from domain import nodes
from infra.eventstore.store import Wish
from services.gateway.dialects import WINGS, Reply
from services.gateway.routes import Call, Route

_INVALID = b'{"error":"The data provided in the request could not be validated."}'
#: Both stand in a header, with a dot between them; and with the token websockets' tokens are signed.
ID, TOKEN = r"^[A-Za-z0-9_-]{1,64}$", r"^[A-Za-z0-9_-]{32,255}$"


class Node(Struct):
    """The node's configuration, of which only this is heeded. A `remote` that is not the Panel of ours is refused."""

    token_id: Annotated[str, Meta(pattern=ID)] | UnsetType = UNSET
    token: Annotated[str, Meta(pattern=TOKEN)] | UnsetType = UNSET
    remote: str | UnsetType = UNSET


class Updated(Struct):
    """Whether anything of it was for us."""

    applied: bool


async def update(call: Call) -> Any:
    """From the answer on this gateway knows no other token, and within a second no process does."""
    said = await call.body(dict[str, Any])
    process = call.api.process
    try:
        body = msgspec.convert(said, Node)
    except msgspec.ValidationError:
        return Reply(422, _INVALID)
    if body.remote is not UNSET and _site(body.remote) != _site(process.settings.panel.url):
        return Reply(422, _INVALID)
    token_id, token = body.token_id or None, body.token or None
    if token_id is None and token is None:
        return call.reply(Updated(False), await process.store.head())
    done = await call.earlier(nodes)
    if done is None:
        done = await call.execute([Wish(nodes, nodes.THIS, await process.node_token.renewal(token_id, token))])
        await process.node_token.load()
    return call.reply(Updated(True), done.position)


def _site(url: str) -> tuple[str, str, int | None, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return parts.scheme, parts.hostname or "", port, parts.path.rstrip("/")


ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/update",
        update,
        WINGS,
        "Take over what the Panel says of this node: the token that both know it by",
        body=Node,
        answers={200: Updated},
        errors=(400, 401, 403, 413, 415, 422, 503),
    ),
)
