"""Random commands about people: their accounts, devices, libraries with conflicts, and uploads."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from domain import accounts, devices, library, messages, uploads
from domain.library import Content, Place

CONTEXTS = (accounts, devices, library, uploads)
WEIGHTS = {"library": 7, "devices": 1, "accounts": 1, "uploads": 1}
_USERS = ("ann", "bob", "cem")
_TIMES = (None, datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC))
_FOLDERS = ("", "ä/", "ä/b c/")

Load = Callable[[Any, str, str], Any]


def owner(context: Any, id: str) -> str:
    """Whose an event is: the ids of what is somebody's begin with whose it is."""
    return id.partition(".")[0] if context in CONTEXTS else "_"


def place(path: str) -> Place:
    """Names for a path that say as much as it does."""
    folders = path.split("/")[:-1]
    below = ["/".join(folders[:depth]) for depth in range(len(folders), 0, -1)]
    return Place(f"at {path.casefold()}", tuple(f"at {one}" for one in below))


class People:
    """`load` answers the state of a stream: (context, tenant, id)."""

    def __init__(self, pick: random.Random, load: Load) -> None:
        self._pick, self._load = pick, load

    def any(self, kind: str, tenant: str) -> tuple[Any, str, str, messages.Command]:
        user = self._pick.choice(_USERS)
        match kind:
            case "library":
                id = f"{user}.file-{self._pick.randrange(6)}"
                return library, tenant, id, self._file(user, self._load(library, tenant, id))
            case "devices":
                id = f"{user}.device-{self._pick.randrange(3)}"
                return devices, tenant, id, self._device(id, self._load(devices, tenant, id))
            case "accounts":
                return accounts, tenant, user, self._account(user)
            case _:
                id = f"{user}.upload-{self._pick.randrange(20)}"
                return uploads, tenant, id, self._upload()

    def _path(self) -> str:
        return f"{self._pick.choice(_FOLDERS)}näme {self._pick.randrange(4)}"

    def _content(self) -> Content:
        letter = self._pick.choice("abc")
        return Content(letter * 64, ord(letter), self._pick.choice(_TIMES))

    def _said_by(self, user: str) -> str | None:
        return self._pick.choice((None, f"{user}.device-{self._pick.randrange(3)}"))

    def _file(self, user: str, state: library.File) -> messages.Command:
        pick = self._pick
        if state.alive and pick.random() < 0.3:
            return self._conflict(user, state)
        change = self._change(user, state)
        if state.conflicts and pick.random() < 0.5:
            conflict = pick.choice(list(state.conflicts))
            if pick.random() < 0.6:
                choice = pick.choice(library.RESOLUTIONS[:4])
                then = change if pick.random() < 0.5 else None
                awaits = pick.choice((None, "d" * 64))
                return library.Resolve(conflict, choice, self._said_by(user), awaits, pick.choice((None, "x")), then)
            return library.Reopen(conflict, None)
        return change

    def _change(self, user: str, state: library.File) -> library.Change:
        pick, number, device = self._pick, state.number, self._said_by(user)
        path, content = self._path(), self._content()
        if not state.alive:
            return pick.choice((library.Create(path, place(path), content, device, number), library.Announce(number)))
        return pick.choice(
            (
                library.Modify(content, number, device),
                library.Modify(content, number, device),
                library.Touch(number, datetime(2026, 1, 1 + pick.randrange(9), tzinfo=UTC), device),
                library.Announce(number),
                library.Move(path, place(path), number, device, pick.choice((None, content))),
                library.Delete(number, device),
            )
        )

    def _conflict(self, user: str, state: library.File) -> messages.Command:
        pick, content = self._pick, self._content()
        found = library.ConflictFound(
            conflict=f"{user}-{pick.randrange(2**32):08x}",
            rule=pick.choice(("edit_edit", "edit_delete", "delete_edit")),
            path=state.path,
            place=state.place,
            device=f"{user}.device-{pick.randrange(3)}",
            local_change="modified",
            local_hash=pick.choice((None, content.hash)),
            local_size=content.size,
            local_mtime=content.mtime,
            base_hash=pick.choice((None, "e" * 64)),
            server_hash=state.hash,
            server_device=state.device,
            server_number=state.number,
        )
        return library.FindConflict(found)

    def _device(self, id: str, state: devices.Device) -> messages.Command:
        pick = self._pick
        token = f"{pick.randrange(2**32):064x}"
        return pick.choice(
            (
                devices.Register(f"{id} né", "mobile", "1.0", pick.choice((None, "ös")), token),
                devices.Change(name=pick.choice(("näme", None)), enabled=pick.choice((True, False, None))),
                devices.RegenerateToken(token, state.tokens + 1),
                devices.SayStale(pick.randrange(9), 10),
                devices.Delete() if pick.random() < 0.3 else devices.Change(name="ö"),
            )
        )

    def _account(self, user: str) -> messages.Command:
        pick = self._pick
        create = accounts.Create(f"{user}-né", f"key of {user}", pick.choice(("admin", "user")))
        return pick.choice(
            (
                create,
                create,
                accounts.ChangeRole(pick.choice(("admin", "user"))),
                accounts.ChangePassword(),
                accounts.EndSession(pick.choice((None, "session"))),
                accounts.Disable(),
                accounts.Enable(),
                accounts.Delete() if pick.random() < 0.2 else accounts.Enable(),
                accounts.Erase(again=True) if pick.random() < 0.1 else accounts.Enable(),
            )
        )

    def _upload(self) -> messages.Command:
        pick = self._pick
        opened = uploads.Opened(path=self._path(), hash="a" * 64, size=9, chunk_size=65536, device=None)
        return pick.choice(
            (
                uploads.Open(opened),
                uploads.Open(opened),
                uploads.Complete("b" * 64, 7, pick.choice((None, "conflict"))),
                uploads.Fail("no"),
                uploads.Cancel(),
                uploads.Expire(),
            )
        )
