"""From a path straight to its endpoint; what is not found so is Litestar's to judge."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from litestar._asgi.utils import is_valid_host

_known_host = lru_cache(maxsize=1024)(is_valid_host)


class Dispatch:
    """Calls the application of a path as it is written. Anything unusual about a request - another spelling of a path,
    an odd host, a parameter that holds a path - takes the way through `rest`, which serves the same routes."""

    def __init__(self, endpoints: Mapping[str, Any], rest: Any) -> None:
        self._rest = rest
        self._plain: dict[str, Any] = {}
        self._shapes: dict[int, list[tuple[tuple[str, ...], Any]]] = {}
        for path, endpoint in endpoints.items():
            if "{" not in path:
                self._plain[path] = endpoint
            elif all(part.endswith(":str}") for part in path.split("/") if part[:1] == "{"):
                parts = tuple(path.split("/"))
                self._shapes.setdefault(len(parts), []).append((parts, endpoint))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = self._find(scope) if scope["type"] == "http" else None
        await (endpoint or self._rest)(scope, receive, send)

    def _find(self, scope: Any) -> Any:
        path: str = scope["path"]
        if path in self._plain:
            parameters: dict[str, str] = {}
            endpoint = self._plain[path]
        else:
            endpoint, parameters = self._match(path.split("/"))
        if endpoint is None or not _usual_host(scope["headers"]):
            return None
        scope["path_params"] = parameters
        return endpoint

    def _match(self, parts: list[str]) -> tuple[Any, dict[str, str]]:
        """Of the shapes that fit, the one that spells most out from the left, as in Litestar's tree."""
        best: tuple[tuple[bool, ...], Any, dict[str, str]] | None = None
        for shape, endpoint in self._shapes.get(len(parts), ()):
            parameters = {}
            for wanted, given in zip(shape, parts, strict=True):
                if wanted[:1] == "{":
                    if not given:
                        break
                    parameters[wanted[1:].partition(":")[0]] = given
                elif wanted != given:
                    break
            else:
                literal = tuple(wanted[:1] != "{" for wanted in shape)
                if best is None or literal > best[0]:
                    best = (literal, endpoint, parameters)
        return (None, {}) if best is None else best[1:]


def _usual_host(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"host":
            return _known_host(value)
    return True
