"""A Plane over a real socket: the REST API v1 of Plane.so as its published client and its own source have it.

    python -m tests.doubles.plane [--port 0] [--workspace acme] [--projects 1] [--items 100] [--per-minute 60]

prints one line of JSON: its address, a key, and the ids of its projects. In tests it runs in a thread, so that the
world behind it can be changed at once: `with Plane() as plane: plane.world.project(...)`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.request import Request, urlopen

from aiohttp import web

from tests.doubles import plane_api
from tests.doubles.plane_world import EVENTS, Key, Record, World

Envelope = dict[str, Any]
KEY = "plane_api_0123456789abcdef0123456789abcdef"


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int = 0


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path?query` matches: the first `after` pass, then `times` do not.
    With `hold` they are answered when it is set."""

    pattern: re.Pattern[str]
    times: int | None = 1
    after: int = 0
    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = "application/json"
    seconds: float = 0.0
    drop: bool = False
    cut: int | None = None
    hold: threading.Event | None = None
    edit: Callable[[Envelope], Envelope] | None = None
    before: Callable[[], object] | None = None

    def strikes(self, line: str) -> bool:
        if self.times == 0 or not self.pattern.search(line):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Plane:
    """The server; `world` is what it knows, `requests` what was asked, `faults` what goes wrong."""

    def __init__(self, world: World | None = None, port: int = 0) -> None:
        self.world = world or World()
        self.owner = self.world.user("Ada")
        self.key: Key = self.world.key(self.owner, KEY)
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.window_s = 60.0
        self.bad_key_status = 403
        self.archived_by_id = True
        self._port = port
        self._history: dict[str, list[float]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="plane double", daemon=True)
        self._ready = threading.Event()

    # Its life.

    def __enter__(self) -> Plane:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(client_max_size=8 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        self._loop.run_until_complete(site.start())
        self._port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    # What goes wrong.

    def fault(self, pattern: str, **what: Any) -> Fault:
        """A new fault; see Fault."""
        made = Fault(re.compile(pattern), **what)
        self.faults.append(made)
        return made

    def storm(self, times: int, retry_after: str = "0", pattern: str = "", after: int = 0) -> Fault:
        """The next requests are too many."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        body = json.dumps(plane_api.THROTTLED).encode()
        return self.fault(pattern, times=times, after=after, status=429, body=body, headers=headers)

    def asked(self, pattern: str) -> list[Seen]:
        """The requests whose `METHOD /path?query` matches."""
        return [one for one in self.requests if re.search(pattern, _line(one))]

    # Serving.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.path, dict(request.query), dict(request.headers))
        body = await request.read()
        with self.world.still():
            self.requests.append(seen)
            faults = [one for one in self.faults if one.strikes(_line(seen))]
        for one in faults:
            if one.before is not None:
                one.before()
            await asyncio.sleep(one.seconds)
            while one.hold is not None and not one.hold.is_set():
                await asyncio.sleep(0.01)
            if one.drop:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
        edits = [one.edit for one in faults if one.edit is not None]
        answer = next((_fault_answer(one) for one in faults if one.status is not None or one.body is not None), None)
        if answer is None:
            with self.world.still():
                answer = self._answer(seen, body, edits)
        seen.status = answer.status
        cut = next((one.cut for one in faults if one.cut is not None), None)
        return await _send(request, answer, cut)

    def _answer(self, seen: Seen, body: bytes, edits: list[Callable[[Envelope], Envelope]]) -> plane_api.Answer:
        if not seen.path.endswith("/"):
            return plane_api.Answer(301, b"", {"Location": f"{seen.path}/"})
        token = seen.headers.get("X-Api-Key") or seen.headers.get("X-API-Key") or seen.headers.get("x-api-key")
        if not token:
            return plane_api.answer(401, {"detail": "Authentication credentials were not provided."})
        key = self.world.keys.get(token)
        if key is None:
            return plane_api.answer(self.bad_key_status, {"detail": "Given API token is not valid"})
        rate = self._throttle(key)
        if isinstance(rate, plane_api.Answer):
            return rate
        api = plane_api.Api(self.world, key, seen.query, body, archived_by_id=self.archived_by_id, edits=edits)
        made = api.serve(seen.method, seen.path)
        made.headers.update(rate)
        return made

    def _throttle(self, key: Key) -> plane_api.Answer | dict[str, str]:
        if key.per_minute is None:
            return {}
        now = time.monotonic()
        history = [at for at in self._history.get(key.token, []) if now - at < self.window_s]
        self._history[key.token] = history
        if len(history) >= key.per_minute:
            wait = max(0, round(history[0] + self.window_s - now + 0.5))
            return plane_api.answer(429, plane_api.THROTTLED, {"Retry-After": str(wait)})
        history.append(now)
        left = key.per_minute - len(history)
        return {"X-RateLimit-Remaining": str(left), "X-RateLimit-Reset": str(int(time.time() + self.window_s))}

    # Webhooks.

    def delivery(self, event: str, action: str, data: Record, secret: str) -> tuple[dict[str, str], bytes]:
        """A webhook as Plane sends it: its headers and its bytes."""
        activity = {"field": None, "new_value": None, "old_value": None, "actor": self.world.users[self.owner]}
        payload = {
            "event": event,
            "action": action,
            "webhook_id": str(uuid.uuid4()),
            "workspace_id": self.world.workspace,
            "data": json.loads(json.dumps(data, default=_text)),
            "activity": {**activity, "old_identifier": None, "new_identifier": None},
        }
        body = json.dumps(payload).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Autopilot",
            "X-Plane-Delivery": str(uuid.uuid4()),
            "X-Plane-Event": event,
            "X-Plane-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        }
        return headers, body

    def webhook(self, kind: str, action: str, record: Record, secret: str) -> tuple[dict[str, str], bytes]:
        """As `delivery`, of a record: expanded as Plane expands it, in UTC, and only its id once it is gone."""
        utc = Key("", self.owner)
        shown = plane_api.Api(self.world, utc, {}, b"")
        data = {"id": record["id"]} if action == "deleted" else shown.expanded(kind, record)
        return self.delivery(EVENTS[kind], action, data, secret)

    def send(self, url: str, kind: str, action: str, record: Record, secret: str) -> int:
        """Posts a webhook; answers the status."""
        headers, body = self.webhook(kind, action, record, secret)
        with urlopen(Request(url, body, headers, method="POST"), timeout=30) as response:
            return int(response.status)


def _line(seen: Seen) -> str:
    query = "&".join(f"{name}={value}" for name, value in seen.query.items())
    return f"{seen.method} {seen.path}?{query}"


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _fault_answer(fault: Fault) -> plane_api.Answer:
    headers = {"Content-Type": fault.media, **fault.headers}
    return plane_api.Answer(fault.status or 200, fault.body or b"", headers)


async def _send(request: web.Request, answer: plane_api.Answer, cut: int | None) -> web.StreamResponse:
    if cut is None:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[:cut])
    assert request.transport is not None
    request.transport.abort()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description="A Plane to test against.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workspace", default="acme")
    parser.add_argument("--projects", type=int, default=1)
    parser.add_argument("--items", type=int, default=100, help="in each project")
    parser.add_argument("--per-minute", type=int, default=None, help="requests that the key may make")
    arguments = parser.parse_args()
    plane = Plane(World(slug=arguments.workspace), arguments.port)
    plane.key.per_minute = arguments.per_minute
    made = [plane.world.project(f"Project {n}", plane.owner) for n in range(arguments.projects)]
    for project in made:
        plane.world.items(project, plane.owner, arguments.items)
    with plane:
        print(json.dumps({"url": plane.url, "apiKey": plane.key.token, "projects": made}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
