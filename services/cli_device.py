"""`undrift device`: keeps a folder of this machine in step with a library, from anywhere."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App

from services.cli_common import Exit, Flag, Problem, console, emit, remark, say

app = App(
    name="device",
    help=(
        "Keep a folder in step with a library.\n\n"
        "The folder is linked once, to a user's library on any instance; what the link needs is kept in its "
        "`.undrift`. Every edit is kept: what two devices changed at once stays in both forms, one beside the other."
    ),
)


#: However still it is, so often the folder is looked through.
_LOOK_S = 60.0


@app.command
def link(
    folder: Path,
    /,
    *,
    url: str,
    user: str,
    name: str | None = None,
    password_stdin: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> Exit:
    """Link a folder to a user's library, as a new device.

    Parameters
    ----------
    folder
        The folder; it is made if need be. What is in it goes into the library with the first sync.
    url
        Address of the instance, like https://sync.example.org.
    user
        Whose library.
    name
        What the device is called; by default this machine's name.
    password_stdin
        Read the password from standard input instead of asking for it.
    json
        Machine-readable output on stdout.
    """
    from services.client import Client
    from services.device import link as links

    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = links.read(folder)
    except links.NotLinked:
        pass
    else:
        raise Problem(Exit.FAILED, f"{folder} is linked to {known.url} already, as {known.name}")
    password = sys.stdin.readline().rstrip("\n") if password_stdin else getpass.getpass(f"Password of {user}: ")
    session = Client(url)
    token = session.post("/api/v1/auth/login", {"username": user, "password": password}).body["token"]
    client = Client(url, token)
    wanted = {"name": name or socket.gethostname(), "device_type": "desktop", "client_version": _version()}
    made = client.post("/api/v1/sync/devices", wanted | {"os_info": os.uname().sysname}).body
    client.post("/api/v1/auth/logout")
    device = made["device"]
    links.make(folder, links.Link(client.url, user, device["id"], device["name"], made["device_token"]))
    if json:
        emit({"url": client.url, "user": user, "device": device["id"], "name": device["name"]})
        return Exit.OK
    say(f"{folder} is linked to the library of {user} at {client.url}, as {device['name']}")
    say(f"Sync it: undrift device sync {folder}")
    return Exit.OK


def _version() -> str:
    from importlib import metadata

    return f"undrift {metadata.version('undrift')}"


@app.command
def sync(
    folder: Path = Path(),
    /,
    *,
    once: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> Exit:
    """Bring a linked folder and its library together, and keep them so until Ctrl-C.

    Parameters
    ----------
    folder
        The linked folder; by default this one.
    once
        End as soon as both are the same.
    json
        Machine-readable output on stdout.
    """
    from services.client import Unreachable
    from services.device import link as links

    folder = folder.absolute()
    try:
        with links.opened(folder, _note, _Steps(json)) as (engine, _, state):
            if once:
                _say(links.once(engine), json)
                return Exit.OK
            with links.Watch(folder, links.read(folder)).running() as watch:
                pause_s = 1.0  # what changed before the watch began is seen by the second look
                _say(links.once(engine), json)
                while True:
                    watch.wait(state.cursor, pause_s)
                    pause_s = _LOOK_S
                    try:
                        if not (summary := links.once(engine)).idle:
                            _say(summary, json)
                    except Unreachable as error:
                        remark(f"{error}; trying again")
    except (links.NotLinked, links.Busy) as error:
        raise Problem(Exit.FAILED, str(error)) from None
    except PermissionError as error:
        raise Problem(Exit.FAILED, f"{error.filename} cannot be read, so nothing was taken for deleted") from None


class _Steps:
    """Each file on a line of its own, for people."""

    def __init__(self, json: bool) -> None:
        self._quiet = json

    def __call__(self, step: str, path: str) -> None:
        if not self._quiet:
            console().print(f"{_ARROWS[step]} {path}", markup=False, highlight=False)


_ARROWS = {"upload": "↑", "download": "↓", "remove": "✗", "conflict": "≠"}
_NOTED: set[str] = set()


def _note(path: str, reason: str) -> None:
    if path not in _NOTED:
        _NOTED.add(path)
        remark(f"{path!r} is left out: {reason}")


def _say(summary: object, json: bool) -> None:
    from services.device.engine import Summary

    assert isinstance(summary, Summary)
    for path, reason in summary.rejected.items():
        _note(path, reason)
    if json:
        emit(
            {
                "uploaded": summary.uploaded,
                "downloaded": summary.downloaded,
                "removed": summary.removed,
                "conflicts": summary.conflicts,
                "rejected": summary.rejected,
            }
        )
        return
    parts = [
        f"{count} {word}"
        for count, word in (
            (summary.uploaded, "uploaded"),
            (summary.downloaded, "downloaded"),
            (summary.removed, "removed"),
            (summary.conflicts, "kept in both forms"),
        )
        if count
    ]
    say(", ".join(parts) if parts else "In step")


@app.command
def status(folder: Path = Path(), /, *, json: Annotated[bool, Flag] = False) -> Exit:
    """Say what a folder is linked to, and what is yet to be synced.

    Parameters
    ----------
    folder
        The linked folder; by default this one.
    json
        Machine-readable output on stdout.
    """
    from services.device import link as links

    folder = folder.absolute()
    try:
        linked = links.read(folder)
        with links.opened(folder, _note, _Steps(True)) as (engine, api, state):
            waiting = engine.pending()
            behind = len(api.changes(state.cursor, 1000).changes)
            conflicts = len(api.conflicts())
    except (links.NotLinked, links.Busy) as error:
        raise Problem(Exit.FAILED, str(error)) from None
    if json:
        emit(
            {
                "url": linked.url,
                "user": linked.user,
                "device": linked.device,
                "name": linked.name,
                "changedHere": len(waiting),
                "changedThere": behind,
                "conflicts": conflicts,
            }
        )
        return Exit.OK
    say(f"{folder} is the device {linked.name} of {linked.user} at {linked.url}")
    say(f"{len(waiting)} changed here, {behind} changed there, {conflicts} conflicts")
    return Exit.OK
