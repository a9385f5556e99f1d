"""Downloads from directory servers that may be down, slow, endless or hostile, all at once and within one patience."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from domain.plans import network
from infra import lean
from services.worker.collecting import Stopped

if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = lean.later("aiohttp")

_HEADERS = {"User-Agent": "QMail-Client/1.0", "Accept": "*/*", "Accept-Encoding": "identity"}
_CHUNK = 64 * 1024
_IN_MEMORY = 1024 * 1024
_POLL_S = 0.1
_PINGS = 100
_PINGS_S = 5.0


class Body(NamedTuple):
    """`digest` tells bodies apart; the bytes may be on disk."""

    digest: bytes
    file: Any

    def read(self) -> bytes:
        self.file.seek(0)
        content: bytes = self.file.read()
        return content


Fetched = dict[tuple[network.List, str], Body | network.Trouble]
"""(list, directory) -> what came of it."""


def limits(max_rows: int) -> dict[network.List, int]:
    """How many bytes of each list are read at most."""
    return {"users": 256 * max_rows + _CHUNK, "servers": 4 * 1024 * 1024, "raida_servers": _CHUNK}


def fetch(spec: network.Spec, work: Path, stopped: Callable[[], bool], deadline: float | None) -> Fetched:
    """All lists of all directories. Raises Stopped when a stop is asked for; `deadline` is on the monotonic clock."""
    return asyncio.run(_fetch(spec, work, stopped, deadline))


async def _fetch(spec: network.Spec, work: Path, stopped: Callable[[], bool], deadline: float | None) -> Fetched:
    left = math.inf if deadline is None else deadline - time.monotonic()
    seconds = max(min(spec.timeout, left - min(left / 5, 2.0)), 0.001)  # so that there is time to say what came of it
    most = limits(spec.max_rows)
    found: Fetched = {}

    async def one(session: aiohttp.ClientSession, name: network.List, directory: str) -> None:
        found[name, directory] = await _download(session, directory + network.PATHS[name], most[name], work, seconds)

    try:
        async with _session(seconds) as session:
            tasks = [one(session, name, directory) for name in network.PATHS for directory in spec.directories]
            await _until(tasks, stopped, lambda: _settled(found, len(spec.directories)), spec.patience)
    except BaseException:
        for body in found.values():
            if isinstance(body, Body):
                body.file.close()
        raise
    late = network.Trouble("no answer while the others agreed already", reached=False)
    return {(name, where): found.get((name, where), late) for name in network.PATHS for where in spec.directories}


def _settled(found: Fetched, configured: int) -> bool:
    """Whether a majority gave each list in the same bytes: then nobody who is late can change anything."""
    same = Counter((name, body.digest) for (name, _), body in found.items() if isinstance(body, Body))
    return len({name for (name, _), count in same.items() if count >= network.majority(configured)}) == len(
        network.PATHS
    )


async def _until(
    work: Iterable[Coroutine[Any, Any, None]],
    stopped: Callable[[], bool],
    settled: Callable[[], bool],
    patience: float,
) -> None:
    """Until all is done, or for `patience` seconds after it is settled."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(each) for each in work]
    pending, end = set(tasks), math.inf
    try:
        while pending and loop.time() < end:
            timeout = max(min(_POLL_S, end - loop.time()), 0)
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if stopped():
                raise Stopped
            if end == math.inf and settled():
                end = loop.time() + patience
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _session(seconds: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Without proxies, cookies, compression or connections that are used again."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        trust_env=False,
        auto_decompress=False,
    ) as session:
        yield session


async def _download(
    session: aiohttp.ClientSession, url: str, most: int, work: Path, seconds: float
) -> Body | network.Trouble:
    try:
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                return network.Trouble(_status(answer.status), reached=answer.status < 500)
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                return network.Trouble("its answer is encoded, which was not asked for", reached=True)
            return await _read(answer, most, work)
    except TimeoutError:
        return network.Trouble(f"no answer within {seconds:.3g} s", reached=False)
    except aiohttp.ClientPayloadError:
        return network.Trouble("its answer is cut short", reached=True)
    except aiohttp.ClientSSLError:
        return network.Trouble("its certificate is not to be trusted", reached=True)
    except aiohttp.ClientOSError as error:
        return network.Trouble(f"no connection ({error.strerror or type(error).__name__})", reached=False)
    except (aiohttp.ClientError, ValueError, OSError) as error:
        return network.Trouble(f"its answer is not HTTP ({type(error).__name__})", reached=True)


def _status(status: int) -> str:
    more = ", which is not followed" if 300 <= status < 400 else ""
    return f"it answers {status}{more}"


async def _read(answer: aiohttp.ClientResponse, most: int, work: Path) -> Body | network.Trouble:
    digest, size = hashlib.sha256(), 0
    with ExitStack() as stack:
        file = stack.enter_context(SpooledTemporaryFile(_IN_MEMORY, dir=str(work)))
        async for chunk in answer.content.iter_chunked(_CHUNK):
            size += len(chunk)
            if size > most:
                return network.Trouble(f"its answer has more than {most} bytes", reached=True)
            digest.update(chunk)
            file.write(chunk)
        stack.pop_all()  # it lives as long as the run
    return Body(digest.digest(), file)


# How far away the servers are.


def ping(
    servers: Sequence[tuple[str, str, int]], seconds: float, stopped: Callable[[], bool]
) -> tuple[network.Sighting, ...]:
    """Connects to (id, host, port) of each; who was not reached when all patience is spent was not looked at."""
    return asyncio.run(_ping(servers, seconds, stopped))


async def _ping(
    servers: Sequence[tuple[str, str, int]], seconds: float, stopped: Callable[[], bool]
) -> tuple[network.Sighting, ...]:
    found: dict[str, network.Sighting] = {}
    room = asyncio.Semaphore(_PINGS)
    end = asyncio.get_running_loop().time() + max(_PINGS_S, seconds)

    async def one(id: str, host: str, port: int) -> None:
        async with room:
            found[id] = network.Sighting(id, await _connect(host, port, seconds), checked=True)

    await _until(
        [one(*server) for server in servers],
        stopped,
        lambda: asyncio.get_running_loop().time() >= end,
        0,
    )
    return tuple(found.get(id, network.Sighting(id)) for id, _, _ in servers)


async def _connect(host: str, port: int, seconds: float) -> int | None:
    """How many ms a TCP connection took, at least 1; None where there is none."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(seconds):
            transport, _ = await loop.create_connection(asyncio.Protocol, host, port)
    except (OSError, TimeoutError, UnicodeError):
        return None
    transport.abort()
    return max(math.ceil((loop.time() - started) * 1000), 1)
