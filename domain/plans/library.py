"""What becomes of a change that a device reports: a pure judgement of the path, what is there, and what it knew."""

from __future__ import annotations

import posixpath
import unicodedata
from typing import Literal

from msgspec import Struct

Change = Literal["created", "modified", "deleted", "moved", "metadata_updated"]
Rule = Literal["edit_edit", "create_create", "edit_delete", "delete_edit", "move_edit", "move_delete", "move_target"]

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255


class Reported(Struct, frozen=True):
    """One item of a report, its paths checked. `hash` is the identity of the bytes (BLAKE3, hexadecimal) as far as
    it is known, `size` in bytes."""

    path: str
    change: Change
    old_path: str | None = None
    hash: str | None = None
    size: int | None = None
    mtime: str | None = None


class Known(Struct, frozen=True):
    """A version of a file at a path; `hash` None says that it was deleted there, or moved away."""

    file: str
    hash: str | None
    device: str | None = None


class Accepted(Struct, frozen=True):
    """Nothing is to be done: the server is as the device says."""


class Apply(Struct, frozen=True):
    """The library follows the device. `file` is the file concerned, None for a new one; `act` is what happens."""

    act: Literal["create", "modify", "move", "delete", "touch"]
    file: str | None = None


class Conflict(Struct, frozen=True):
    """Both sides changed; nothing is applied. `file` is the file it is a fact about, None where the server has none
    at that path any more that this device could have known."""

    rule: Rule
    file: str | None


class Rejected(Struct, frozen=True):
    reason: str


Verdict = Accepted | Apply | Conflict | Rejected


def judge(item: Reported, there: Known | None, knew: Known | None, target: Known | None = None) -> Verdict:
    """What becomes of an item.

    `there` is the file that stands at its path now (at `old_path`, for a move), `knew` what the device last knew to
    be there; `target` is what stands where a move goes.
    """
    if item.change == "moved":
        return _moved(item, there, knew, target)
    if item.change == "deleted":
        return _deleted(there, knew)
    if item.hash is None:
        return Rejected("content_hash is required")
    if there is not None and there.hash == item.hash:
        return Apply("touch", there.file) if item.change == "metadata_updated" else Accepted()
    if _unmoved(there, knew):
        return Apply("create") if there is None else Apply("modify", there.file)
    if there is None:
        assert knew is not None
        return Conflict("edit_delete", knew.file)
    created = knew is None or knew.hash is None
    return Conflict("create_create" if created else "edit_edit", there.file)


def _deleted(there: Known | None, knew: Known | None) -> Verdict:
    if there is None:
        return Accepted()
    return Apply("delete", there.file) if _unmoved(there, knew) else Conflict("delete_edit", there.file)


def _moved(item: Reported, there: Known | None, knew: Known | None, target: Known | None) -> Verdict:
    if item.old_path is None:
        return Rejected("old_path is required")
    if target is not None and knew is not None and target.file == knew.file and target.hash in (item.hash, knew.hash):
        return Accepted()  # it has been moved there before
    if there is None:
        return Rejected("nothing is known at old_path") if knew is None else Conflict("move_delete", knew.file)
    if not _unmoved(there, knew):
        return Conflict("move_edit", there.file)
    if target is not None and target.file != there.file:
        return Conflict("move_target", target.file)
    return Apply("move", there.file)


def _unmoved(there: Known | None, knew: Known | None) -> bool:
    """Whether the server is as the device knew it."""
    now = None if there is None else there.hash
    return now == (None if knew is None else knew.hash)


# Paths.


class BadPath(ValueError):
    """A path that a library does not keep; the text is the reason, for a person."""


def check_path(path: str) -> str:
    """A path of a library as it is kept: relative, `/` between names, NFC. Raises BadPath."""
    if not path:
        raise BadPath("the path is empty")
    if "\\" in path:
        raise BadPath("the path has a backslash; names are separated by /")
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise BadPath("the path is not valid Unicode") from None
    if len(raw) > MAX_PATH_BYTES:
        raise BadPath(f"the path is longer than {MAX_PATH_BYTES} bytes")
    if not (path.isascii() and path.isprintable()):  # as most are
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
            raise BadPath("the path has control characters")
        if not unicodedata.is_normalized("NFC", path):
            raise BadPath("the path is not in Unicode's form NFC")
    for name in path.split("/"):
        _check_name(name)
    return path


def _check_name(name: str) -> None:
    if name in ("", ".", ".."):
        raise BadPath("the path is absolute, or has empty names, . or ..")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise BadPath(f"a name is longer than {MAX_NAME_BYTES} bytes")
    if name[-1] in ". ":
        raise BadPath("a name ends with a space or a dot, which some systems drop")
    if name.partition(".")[0].casefold() in _RESERVED:
        raise BadPath("a name is reserved on some systems")


_RESERVED = frozenset({"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)})


def folded(path: str) -> str:
    """What two paths share that name the same place on some device: NFC of the case-folded path."""
    return unicodedata.normalize("NFC", path.casefold())


def ancestors(path: str) -> tuple[str, ...]:
    """The folders that a file stands in, the outermost first: `a`, `a/b` for `a/b/c`."""
    names = path.split("/")[:-1]
    return tuple("/".join(names[: n + 1]) for n in range(len(names)))


def conflict_name(path: str, device: str, day: str, number: int = 0) -> str:
    """Where the other side of a conflict is kept: `notes (conflict Laptop 2026-11-21).txt`, a number with a twin.

    The device's name is cut down to what a path may hold, and all of it to the longest name.
    """
    folder, name = posixpath.split(path)
    stem, suffix = posixpath.splitext(name)
    whose = "".join(letter for letter in unicodedata.normalize("NFC", device) if _plain(letter)).strip(" .")
    mark = f" (conflict {whose or 'device'} {day}{f' {number + 1}' if number else ''})"
    room = MAX_NAME_BYTES - len((mark + suffix).encode())
    stem = stem.encode()[: max(room, 1)].decode(errors="ignore").rstrip(" ")
    return posixpath.join(folder, stem + mark + suffix)


def _plain(letter: str) -> bool:
    return letter.isprintable() and letter not in '<>:"|?*/\\'
