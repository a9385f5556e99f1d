"""A kind whose remote is an HTTP server that fails as a test wants it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from domain import errors, jobs, kinds
from services.worker import child, collecting, sources
from services.worker.remote import Http

KIND = "flaky"


class Spec(Struct, frozen=True):
    url: str


class Result(Struct, frozen=True):
    pages: int


class Page(Struct):
    ids: list[str]
    last: bool


class Flaky:
    """Pages `<url>/0`, `<url>/1`, … up to the one that says it is the last."""

    def __init__(self, context: collecting.Context) -> None:
        self._url: str = context.spec.url
        self._pages = 0

    def observe(self, cursor: Any | None) -> Iterator[collecting.Page]:
        number, last = 0 if cursor is None else int(cursor["page"]), False
        with Http(total_s=30) as http:
            while not last:
                page = self._get(http, number)
                number, last = number + 1, page.last
                self._pages += 1
                items = [collecting.Item("things", id, {"id": id}, None) for id in page.ids]
                yield collecting.Page(items=items, cursor={"page": number}, stage="fetching", percent=10 * number)

    def _get(self, http: Http, number: int) -> Page:
        found = http.get(f"{self._url}/{number}")
        if found.status == 429:
            raise errors.RemoteBusy(retry_after=float(found.headers["retry-after"]))
        if found.status >= 500:
            raise errors.RemoteUnavailable(f"The remote answers {found.status}")
        if found.status >= 400:
            raise errors.RemoteRefused("The remote does not know this key; enter another one")
        return msgspec.json.decode(found.body, type=Page)

    def outcome(self) -> collecting.Outcome:
        return collecting.Outcome(None, True, Result(self._pages))


def _make(config: Spec, type: jobs.Type, options: kinds.Options) -> Spec:
    return config


KINDS: Mapping[str, kinds.Kind] = {
    **kinds.KINDS,
    KIND: kinds.Kind(Spec, Result, Spec, _make, target=lambda _: None),
}
SOURCES: Mapping[str, Callable[[collecting.Context], collecting.Source]] = {KIND: Flaky}


class Remote:
    """Three pages of two items each. `refuses` are the statuses of the next answers, `always` that of every one;
    `holds` keeps answers back until it is cleared. `hits` are the pages that were asked for."""

    def __init__(self) -> None:
        self.url = ""
        self.hits: list[int] = []
        self.refuses: list[int] = []
        self.only_page: int | None = None
        self.always: int | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.busy, self.most = 0, 0

    async def answer(self, request: web.Request) -> web.Response:
        number = int(request.match_info["page"])
        self.hits.append(number)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await self.free.wait()
            await asyncio.sleep(0.02)
        finally:
            self.busy -= 1
        if status := self._status(number):
            return web.Response(status=status, headers={"Retry-After": "2"})
        return web.json_response({"ids": [f"{number}-a", f"{number}-b"], "last": number == 2})

    def _status(self, number: int) -> int | None:
        if self.only_page not in (None, number):
            return None
        return self.refuses.pop(0) if self.refuses else self.always


@asynccontextmanager
async def serving() -> AsyncIterator[Remote]:
    remote = Remote()
    app = web.Application()
    app.router.add_get(r"/{page:\d+}", remote.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    remote.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield remote
    finally:
        remote.free.set()
        await runner.cleanup()


def main() -> None:
    """A worker's child that knows this kind."""
    kinds.KINDS = KINDS
    sources.SOURCES = SOURCES
    child.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
