"""What every command shares: the instance it is about, how it answers, and the exit codes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from services.client import Client

if TYPE_CHECKING:
    from rich.console import Console


class Exit(IntEnum):
    """The exit codes that scripts can rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    HELD = 4
    NOT_ALLOWED = 5
    CHANGED = 6
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the instance cannot be reached, 4 a guard holds the plan until "
    "somebody confirms it, 5 not allowed, 6 the world has moved since the plan was made, 130 interrupted."
)

#: How commands declare a switch, and an option that may be given several times.
Flag = Parameter(negative=(), show_default=False)
Many = Parameter(negative=(), show_default=False)


class Problem(Exception):
    """Why a command cannot go on: one sentence for a person, the exit code, and its name for a program."""

    def __init__(self, exit: Exit, message: str, name: str = "") -> None:
        super().__init__(message)
        self.exit, self.message, self.name = exit, message, name or exit.name.lower()


_INSTANCE = Group("Instance", sort_key=100)


@Parameter(name="*", group=_INSTANCE)
@dataclass(frozen=True)
class Instance:
    """Which instance, and for whom the answer is."""

    data_dir: str | None = None
    "Data directory of an instance on this machine; the default is the one of `undrift up`."
    url: str | None = None
    "Address of the instance, also by UNDRIFT_URL."
    token: str | None = None
    "API key; better given by UNDRIFT_TOKEN, where no process list shows it. With a data directory, its admin key."
    json: Annotated[bool, Flag] = False
    "Machine-readable output on stdout."

    @property
    def directory(self) -> Path:
        """The data directory."""
        from infra import configfile

        return Path(os.path.abspath(os.path.expanduser(self.data_dir or configfile.default_data_dir())))

    @property
    def address(self) -> str | None:
        """The address that was given; what is given as an option beats the environment."""
        if self.url is not None and self.data_dir is not None:
            raise Problem(Exit.USAGE, "give --data-dir or --url, not both")
        return self.url or (None if self.data_dir else os.environ.get("UNDRIFT_URL") or None)

    @property
    def flags(self) -> str:
        """The options that name the same instance in a command for a person to type."""
        given = [("--data-dir", self.data_dir), ("--url", self.url)]
        return "".join(f" {name} {shlex.quote(value)}" for name, value in given if value)

    def connect(self) -> Client:
        """A client of the instance. Raises Problem."""
        address = self.address
        token = self.token or (None if self.data_dir else os.environ.get("UNDRIFT_TOKEN") or None)
        if address is not None:
            return Client(address, token)
        ready = self.ready()
        return Client(str(ready["url"]), token or str(ready["admin_token"]))

    def ready(self) -> dict[str, Any]:
        """What ready.json of the data directory says. Raises Problem when nothing runs there."""
        path = self.directory / "ready.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            start = f"undrift up{self.flags}"
            raise Problem(Exit.UNREACHABLE, f"Undrift does not run in {path.parent}; start it: {start}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
            raise Problem(Exit.UNREACHABLE, f"{path} cannot be read: {reason}") from None
        if not isinstance(found, dict):
            raise Problem(Exit.UNREACHABLE, f"{path} is not what `undrift up` writes")
        return found


def console() -> Console:
    """Where answers for a person go."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Where progress and remarks go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for a person on stdout, exactly as it is."""
    sys.stdout.write(printable(text) + "\n")


def remark(text: str) -> None:
    """A line beside the answer, on stderr."""
    sys.stderr.write(printable(text) + "\n")


def emit(value: Any) -> None:
    """The answer for a program: one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def printable(text: str) -> str:
    """One line that moves no cursor: names of files and jobs come from elsewhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
