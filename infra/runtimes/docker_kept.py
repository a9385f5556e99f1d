"""What must outlive this process about containers: who we are to the engine, and which lines and ends were given."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from infra import processes
from infra.runtimes.docker_console import Place


class Note(Struct, frozen=True):
    """Of one container: up to where its console was given, and whether its end was."""

    container: str
    place: Place = Place()
    ended: bool = False


class Kept:
    """A folder with a file for each server. What cannot be written is given again some day, which is no harm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def installation(self) -> str:
        """Tells containers of ours from those of another installation at the same engine."""
        return await asyncio.to_thread(processes.secret, self._folder / "installation")

    async def read(self, uuid: str) -> Note | None:
        try:
            raw = await asyncio.to_thread(self._path(uuid).read_bytes)
            return msgspec.json.decode(raw, type=Note)
        except (OSError, msgspec.MsgspecError):
            return None

    async def write(self, uuid: str, note: Note) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._write, self._path(uuid), msgspec.json.encode(note))

    async def forget(self, uuid: str) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(os.unlink, self._path(uuid))

    def _path(self, uuid: str) -> Path:
        return self._folder / f"{quote(uuid, safe='')}.json"

    def _write(self, path: Path, data: bytes) -> None:
        processes.private_directory(self._folder)
        aside = path.with_suffix(".new")
        aside.write_bytes(data)
        os.replace(aside, path)
