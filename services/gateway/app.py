"""The gateway's application: the visible list of routes, and what stands around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Litestar
from litestar._asgi.routing_trie.types import RouteTrieNode

from infra import lean
from services.gateway import (
    accounts,
    asyncapi,
    changes,
    checks,
    collections,
    conflicts,
    consumers,
    credentials,
    devices,
    dialects,
    download,
    eonacat_monitoring,
    feeds,
    feeds_position,
    files,
    health,
    history,
    hooks,
    integrations_routes,
    jobs_routes,
    library,
    limits,
    media,
    network,
    node_update,
    openapi,
    power,
    revert,
    servers,
    sessions,
    tus,
    uploads,
    webhooks_routes,
    why,
)
from services.gateway.auth import Authenticator, Principal
from services.gateway.condition import Conditions
from services.gateway.consistency import Reads
from services.gateway.cors import Cors
from services.gateway.dialects import OURS
from services.gateway.dispatch import Dispatch
from services.gateway.edge import Edge
from services.gateway.limits_shared import Shared
from services.gateway.live import Feeds
from services.gateway.routes import Api, Call, Route, endpoints, handlers
from services.gateway.sockets import Hub
from services.gateway.waits import Waits
from services.main import Process


def routes(metrics: health.Metrics) -> Sequence[Route]:
    """Every route of the gateway."""
    listed = (
        *jobs_routes.ROUTES,
        *revert.ROUTES,
        *integrations_routes.ROUTES,
        *checks.ROUTES,
        *hooks.ROUTES,
        *collections.ROUTES,
        *files.ROUTES,
        *sessions.ROUTES,
        *accounts.ROUTES,
        *devices.ROUTES,
        *library.ROUTES,
        *changes.ROUTES,
        *conflicts.ROUTES,
        *uploads.ROUTES,
        *tus.ROUTES,
        *download.ROUTES,
        *network.routes(),
        *servers.ROUTES,
        *power.ROUTES,
        *node_update.ROUTES,
        *feeds.ROUTES,
        *consumers.ROUTES,
        *webhooks_routes.ROUTES,
        *feeds_position.ROUTES,
        *media.ROUTES,
        *history.ROUTES,
        *why.ROUTES,
        *eonacat_monitoring.ROUTES,
        *health.routes(metrics),
    )
    made = msgspec.Raw(msgspec.json.encode(openapi.document(listed, health.VERSION)))  # a tenth of what it is as maps

    async def document(call: Call) -> Any:
        return openapi.schema(made)

    async def events(call: Call) -> Any:
        url = call.api.process.settings.nats.public_url
        return openapi.schema(msgspec.Raw(asyncapi.encoded(health.VERSION, url)))

    async def page(call: Call) -> Any:
        return openapi.page()

    async def script(call: Call) -> Any:
        return openapi.script()

    return (
        *listed,
        Route("GET", "/schema", page, OURS, "The documentation", open=True, answers={200: str}),
        Route("GET", "/schema/openapi.json", document, OURS, "The OpenAPI document", open=True, answers={200: dict}),
        Route("GET", "/schema/asyncapi.json", events, OURS, "The AsyncAPI document", open=True, answers={200: dict}),
        Route("GET", "/schema/rapidoc-min.js", script, OURS, "The page's program", open=True, answers={200: str}),
    )


class Gateway:
    """One gateway: `app` is its ASGI application; `run` keeps what it follows up to date."""

    def __init__(self, process: Process, ports: Sequence[int]) -> None:
        settings = process.settings
        self.process = process
        cors = Cors(settings.gateway, ports, settings.panel.url)
        shared = Shared(process.db, process.master, settings.limits.patience_s)
        self.limits = limits.Limits(settings.limits, shared=shared)
        metrics = health.Metrics()
        self.reads = Reads(process.db, settings.gateway, settings.tail.client_poll_s)
        self.waits = Waits(process.store, process.tail)
        self.authenticator = Authenticator(
            self._look_up,
            cors,
            self.limits,
            open_loopback=bool(settings.auth.open_loopback),
            panel=settings.panel,
        )
        self.live = Feeds(process, self.reads, self.authenticator.is_revoked)
        api = Api(
            process,
            self.authenticator,
            self.reads,
            self.waits,
            self.live,
            Conditions(process),
            metrics.observe,
        )
        served = endpoints(api, routes(metrics))
        with lean.without("pydantic", "attr", "attrs"):  # it has plugins for them
            litestar = Litestar(
                route_handlers=handlers(served),
                exception_handlers={Exception: dialects.handle},
                openapi_config=None,
                logging_config=None,
            )
        _file_parameters(litestar.asgi_router.root_route_map_node)
        meter = self.authenticator.meter
        self.sockets = Hub(process.store, process.tail, process.bus, settings.panel, cors.allows, time.time)
        process.node_token.changed.append(self.sockets.renewed)
        self.app = Edge(Dispatch(served, litestar), cors, meter, sockets=self.sockets, widely=self.limits.widely)

    async def _look_up(self, token_sha256: str) -> Principal | None:
        return await credentials.look_up(self.process.db, token_sha256)

    async def watch_credentials(self) -> None:
        """Serves until cancelled."""
        await credentials.watch(self.process.tail, self.authenticator, self.live.streams)


class _EveryMethod(dict[Any, Any]):
    def __missing__(self, method: str) -> Any:
        return self["asgi"]


def _file_parameters(node: RouteTrieNode) -> None:
    """Litestar 2.25 files the path parameters of an ASGI route under `asgi` and looks for them under the method,
    whatever a client calls it."""
    if node.is_asgi:
        node.path_parameters = _EveryMethod(node.path_parameters)
    for below in node.children.values():
        _file_parameters(below)
