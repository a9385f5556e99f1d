"""`undrift users`: who has a library."""

from __future__ import annotations

import getpass
import json as json_
import sys
from typing import Annotated, Any

from cyclopts import App

from services.cli_common import Exit, Flag, Instance, Problem, emit, printable, say

app = App(name="users", help="Add, list, change and remove users: each has a library of its own.")
_USERS = "/api/v1/admin/users"


def _password(name: str, stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\n") if stdin else getpass.getpass(f"Password of {name}: ")


def _find(instance: Instance, name: str) -> tuple[Any, dict[str, Any]]:
    connection = instance.connect()
    _, _, raw = connection.raw("GET", _USERS)
    for user in json_.loads(raw):
        if user["username"].casefold() == name.casefold():
            return connection, user
    raise Problem(Exit.FAILED, f"there is no user {name}")


@app.command
def add(
    name: str,
    /,
    *,
    admin: Annotated[bool, Flag] = False,
    password_stdin: Annotated[bool, Flag] = False,
    instance: Instance = Instance(),
) -> Exit:
    """Add a user.

    Parameters
    ----------
    name
        What they log in with.
    admin
        They may administer users.
    password_stdin
        Read the password from standard input instead of asking for it.
    """
    body = {"username": name, "password": _password(name, password_stdin), "role": "admin" if admin else "user"}
    made = instance.connect().post(_USERS, body).body
    if instance.json:
        emit(made)
    else:
        say(f"Added {made['username']} ({made['id']})")
    return Exit.OK


@app.command(name="list")
def list_(*, instance: Instance = Instance()) -> Exit:
    """List users."""
    _, _, raw = instance.connect().raw("GET", _USERS)
    users = json_.loads(raw)
    if instance.json:
        emit({"users": users})
        return Exit.OK
    for user in users:
        state = "" if user["enabled"] else ", disabled"
        say(f"{user['id']}  {printable(user['username'])}  {user['role']}{state}")
    return Exit.OK


@app.command
def passwd(name: str, /, *, password_stdin: Annotated[bool, Flag] = False, instance: Instance = Instance()) -> Exit:
    """Set a user's password; their sessions end.

    Parameters
    ----------
    name
        Whose.
    password_stdin
        Read the password from standard input instead of asking for it.
    """
    connection, user = _find(instance, name)
    return _change(connection, user, {"password": _password(name, password_stdin)}, "The password is set")


@app.command
def disable(name: str, /, *, instance: Instance = Instance()) -> Exit:
    """Let a user, and their devices, open nothing until enabled again.

    Parameters
    ----------
    name
        Whom.
    """
    return _change(*_find(instance, name), {"enabled": False}, f"{name} is disabled")


@app.command
def enable(name: str, /, *, instance: Instance = Instance()) -> Exit:
    """Enable a user again.

    Parameters
    ----------
    name
        Whom.
    """
    return _change(*_find(instance, name), {"enabled": True}, f"{name} is enabled")


def _change(connection: Any, user: dict[str, Any], body: dict[str, Any], sentence: str) -> Exit:
    encoded = json_.dumps(body).encode()
    connection.raw("PUT", f"{_USERS}/{user['id']}", encoded, {"Content-Type": "application/json"})
    say(sentence)
    return Exit.OK


@app.command
def remove(name: str, /, *, instance: Instance = Instance()) -> Exit:
    """Remove a user: nothing of theirs opens anything any more. The library's history stays in the log.

    Parameters
    ----------
    name
        Whom.
    """
    connection, user = _find(instance, name)
    connection.raw("DELETE", f"{_USERS}/{user['id']}")
    say(f"{name} is removed")
    return Exit.OK
