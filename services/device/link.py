"""A folder that is linked to a library: where that is, as which device, and one syncing process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from services.client import Client, Refused, Unreachable
from services.device.api import HttpApi
from services.device.engine import Engine, Summary
from services.device.state import SqliteState
from services.device.tree import OWN, Folder

_CONFIG = "device.json"
_LONG_POLL_S = 25


class NotLinked(Exception):
    """The folder is linked to no library."""


class Busy(Exception):
    """Another process syncs this folder."""


class Link(Struct):
    """`.undrift/device.json`, readable by its owner only."""

    url: str
    user: str
    device: str
    name: str
    token: str


def read(folder: Path) -> Link:
    """Raises NotLinked."""
    try:
        return Link(**json.loads((folder / OWN / _CONFIG).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise NotLinked(f"{folder} is not linked; run `undrift device link {folder}`") from None


def make(folder: Path, link: Link) -> None:
    own = folder / OWN
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = own / f".{_CONFIG}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({name: getattr(link, name) for name in link.__struct_fields__}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(own / _CONFIG)


@contextmanager
def opened(
    folder: Path, note: Callable[[str, str], None], on_step: Callable[[str, str], None]
) -> Iterator[tuple[Engine, HttpApi, SqliteState]]:
    """The engine of a linked folder. Raises NotLinked, Busy, client.WrongAddress."""
    link = read(folder)
    with (folder / OWN / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process syncs {folder}") from None
        state = SqliteState(folder / OWN / "state.db")
        client = Client(link.url, link.token)
        try:
            tree = Folder(folder, state, link.name, note)
            api = HttpApi(client, tree)
            yield Engine(api, tree, state, on_step=on_step), api, state
        finally:
            client.close()
            state.close()


class Watch:
    """Wakes when something changes here or there."""

    def __init__(self, folder: Path, link: Link) -> None:
        self._folder, self._link = folder, link
        self._woken, self._stop = threading.Event(), threading.Event()
        self._cursor: str | None = None

    @contextmanager
    def running(self) -> Iterator[Watch]:
        threads = [threading.Thread(target=work, daemon=True) for work in (self._here, self._there)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()

    def wait(self, cursor: str | None, most_s: float) -> None:
        """Until a change, or so many seconds."""
        self._cursor = cursor
        self._woken.wait(most_s)
        self._woken.clear()

    def _here(self) -> None:
        from watchfiles import watch

        def ours(_: Any, path: str) -> bool:
            return OWN not in Path(path).relative_to(self._folder).parts[:1]

        for _ in watch(self._folder, watch_filter=ours, stop_event=self._stop, debounce=300):
            self._woken.set()

    def _there(self) -> None:
        client = Client(self._link.url, self._link.token)
        while not self._stop.is_set():
            query = f"limit=1&wait={_LONG_POLL_S}" + (f"&cursor={self._cursor}" if self._cursor else "")
            try:
                if client.get(f"/api/v1/sync/changes?{query}", timeout_s=_LONG_POLL_S + 30).body["changes"]:
                    self._woken.set()
                    self._stop.wait(1)
            except (Unreachable, Refused):
                self._stop.wait(5)


def once(engine: Engine, most: int = 20) -> Summary:
    """Rounds until one finds nothing to do; what all of them did."""
    total = Summary()
    for _ in range(most):
        summary = engine.round()
        total.reported += summary.reported
        total.uploaded += summary.uploaded
        total.downloaded += summary.downloaded
        total.removed += summary.removed
        total.conflicts += summary.conflicts
        total.rejected = summary.rejected
        if summary.idle:
            break
    return total
