"""Somebody who is logged in to a server, without a network between."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from domain import servers
from infra import config
from infra.panel import Login
from infra.volumes import Volumes
from services.sftp.files import Files
from services.sftp.opened import How
from services.sftp.rooms import Room, Session
from tests.domain.test_servers_plan import read

READ, WRITE = How(True, False), How(False, True, creates=True, truncates=True)


@dataclass
class Someone:
    room: Room
    session: Session
    files: Files
    folder: Path
    outside: Path
    noted: list[tuple[str, tuple[str | tuple[str, str], ...]]]

    def put(self, path: bytes, data: bytes, how: How = WRITE, offset: int = 0) -> None:
        file = self.files.open(path, how, None)
        try:
            self.files.write(file, offset, data)
        finally:
            self.files.close(file)

    def get(self, path: bytes) -> bytes:
        file = self.files.open(path, READ, None)
        try:
            return self.files.read(file, 0, 1 << 20)
        finally:
            self.files.close(file)

    def names(self, path: bytes) -> set[bytes]:
        listing, found = self.files.list(path), set()
        while page := self.files.page(listing):
            found |= {name.filename for name in page if isinstance(name.filename, bytes)}
        self.files.close(listing)
        return found


def someone(
    base: Path, *permissions: str, denied: tuple[str, ...] = (), disk: int = 0, ended: Callable[[], None] = lambda: None
) -> Someone:
    """`disk` in MiB. The server has a folder with a file, and beside it lies what is none of theirs."""
    uuid_ = str(uuid.uuid4())
    volumes = Volumes(config.Settings(data_dir=str(base / "data")))
    room = Room(uuid_, volumes)
    room.state = servers.Server(configuration=read(egg__file_denylist=list(denied), build__disk_space=disk))
    noted: list[tuple[str, tuple[str | tuple[str, str], ...]]] = []
    login = Login(server=uuid_, user="ann", permissions=list(permissions or ("*",)))
    session = Session(login, "127.0.0.1", room, ended, lambda _, event, *files: noted.append((event, files)))
    folder, outside = volumes.make(uuid_), base / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("secret")
    (folder / "file").write_text("file")
    return Someone(room, session, Files(session), folder, outside, noted)
