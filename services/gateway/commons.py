"""What the connections of a server have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from infra import config
from services.gateway import auth
from services.gateway.headers import Pair
from services.gateway.outlet import Outlet
from services.gateway.sockets_client import MAX_BYTES

Told = Callable[[str, Any], Iterable[Pair]]


class Shared:
    """Their settings, and how many there are."""

    def __init__(self, app: Any, settings: config.Gateway, told: Told | None = None) -> None:
        """`told` are headers of answers that the application never sees, by path and peer."""
        self.settings, self.told = settings, told
        self.state = ServerState()
        self.config = uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_BYTES,
            ws_per_message_deflate=False,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            workers=1,
        )
        self.config.load()
        self._per_address: dict[str, int] = {}
        self.outlets: set[Outlet] = set()

    def welcome(self, address: str) -> bool:
        """Counts a connection, and says whether there is room for it."""
        held = self._per_address[address] = self._per_address.get(address, 0) + 1
        if len(self.state.connections) + len(self.outlets) > self.settings.connections:
            return False
        return held <= self.settings.connections_per_address or auth.is_loopback({"client": (address, 0)})

    def leave(self, address: str) -> None:
        held = self._per_address.get(address, 0) - 1
        if held > 0:
            self._per_address[address] = held
        else:
            self._per_address.pop(address, None)

    def released(self, address: str, outlet: Outlet) -> None:
        self.outlets.discard(outlet)
        self.leave(address)
