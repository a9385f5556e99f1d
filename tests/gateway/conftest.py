"""A real server on a free port, in front of whatever application a test brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from infra import config
from services.gateway import server

Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(app, header_timeout_s=0.1, ...)` answers the URL; everything ends with the test."""
    async with AsyncExitStack() as stack:

        async def start(app: Any, stopping: asyncio.Event | None = None, **settings: Any) -> str:
            patient = config.Gateway(port=0, also_listen=[], **{"shutdown_s": 0.5, **settings})
            sockets = server.bind(patient)
            await stack.enter_async_context(server.serving(app, sockets, patient, stopping or asyncio.Event()))
            return server.url(sockets)

        yield start
