"""The settings that the Panel has written into a server's files before each of its starts, as the real Wings does.

Files are found beneath the server's folder by its descriptor and never through a symbolic link; one is written whole
under another name and renamed, with its mode and owner. What cannot be done is a warning: a server starts nevertheless.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from domain import errors
from infra import paths
from infra.server_files_rules import Broken, File, read
from infra.server_files_text import edit_file, edit_ini, edit_properties
from infra.server_files_tree import edit_json, edit_yaml
from infra.server_files_xml import edit_xml

#: A larger file is left as it is. YAML is read by Python, a megabyte in some seconds.
LIMIT = 8 * 1024 * 1024
YAML_LIMIT = 1024 * 1024

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BOM = b"\xef\xbb\xbf"
_TEXTS = {
    "file": edit_file,
    "properties": edit_properties,
    "ini": edit_ini,
    "json": edit_json,
    "yaml": edit_yaml,
    "yml": edit_yaml,
}


class _Kept(NamedTuple):
    mode: int
    owner: tuple[int, int]


def apply(folder: int, files: str, variables: Mapping[str, Any]) -> list[str]:
    """Writes what `files` (JSON as kept in Configuration.process.files) says into the files beneath the folder that
    the descriptor is of. `variables` stand for placeholders, by whole names (`server.build.default.port`) or nested.

    Returns warnings; they name files and paths in them, never a value. Blocks: call it in a thread.
    """
    wanted, warnings = read(files, variables)
    for file in wanted:
        found: list[str] = []
        try:
            _one(folder, file, found)
        except (Broken, errors.Error) as error:
            found.append(str(error))
        except OSError as error:
            found.append("a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0))
        except Exception as error:  # whatever is in the file, the server shall start
            found.append(f"could not be changed ({type(error).__name__})")
        warnings += (f"{file.name}: {each}" for each in found)
    return warnings


def _one(folder: int, file: File, warnings: list[str]) -> None:
    """Raises Broken, OSError, errors.Forbidden."""
    parts = _parts(file.name)
    owner = os.fstat(folder)
    ours = _Kept(0o644, (owner.st_uid, owner.st_gid))
    parent = _parent(folder, parts[:-1], None if file.parser == "file" else ours)
    if parent is None:
        return
    try:
        there = _contents(parent, parts[-1], YAML_LIMIT if file.parser in ("yaml", "yml") else LIMIT)
        if there is None and file.parser == "file":
            return  # it has no line that could be changed
        data, kept = (b"", ours) if there is None else there
        made = _edited(data, file, warnings)
        if made != data or there is None:
            _write(parent, parts[-1], made, kept)
    finally:
        os.close(parent)


def _edited(data: bytes, file: File, warnings: list[str]) -> bytes:
    if file.parser == "xml":
        return edit_xml(data, file.rules, warnings)
    mark = _BOM if data.startswith(_BOM) else b""
    # Bytes that are no UTF-8, as older games write them, survive.
    text = data.removeprefix(mark).decode(errors="surrogateescape")
    return mark + _TEXTS[file.parser](text, file.rules, warnings).encode(errors="surrogateescape")


def _parts(name: str) -> Sequence[bytes]:
    """Raises Broken, errors.Invalid."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        raise Broken("that is no name of a file")
    return paths.absolute("/" + "/".join(parts))


def _parent(folder: int, parts: Sequence[bytes], made: _Kept | None) -> int | None:
    """The folder of a file, made where it is missing if it may be."""
    if made is None:
        try:
            return paths.beneath(folder, parts)
        except FileNotFoundError:
            return None
    for depth in range(1, len(parts) + 1):
        above = paths.beneath(folder, parts[: depth - 1])
        try:
            os.mkdir(parts[depth - 1], 0o755, dir_fd=above)
        except FileExistsError:
            continue
        else:
            child = paths.beneath(above, parts[depth - 1 : depth])
            with _closing(child):
                _own(child, made.owner)
        finally:
            os.close(above)
    return paths.beneath(folder, parts)


def _contents(parent: int, name: bytes, limit: int) -> tuple[bytes, _Kept] | None:
    try:
        descriptor = os.open(name, _READ, dir_fd=parent)
    except FileNotFoundError:
        return None
    with _closing(descriptor):
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Broken("not a plain file")
        if found.st_size > limit:
            raise Broken(f"larger than {limit // 1024 // 1024} MiB")
        parts: list[bytes] = []
        while part := os.read(descriptor, limit + 1 - sum(map(len, parts))):
            parts.append(part)
    data = b"".join(parts)
    if len(data) > limit:
        raise Broken(f"larger than {limit // 1024 // 1024} MiB")
    return data, _Kept(stat.S_IMODE(found.st_mode) & 0o777, (found.st_uid, found.st_gid))


def _write(parent: int, name: bytes, data: bytes, kept: _Kept) -> None:
    aside = b".undrift-" + secrets.token_hex(8).encode()
    descriptor = os.open(aside, _NEW, 0o600, dir_fd=parent)
    try:
        with _closing(descriptor):
            _own(descriptor, kept.owner)
            os.fchmod(descriptor, kept.mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=parent)
        raise


def _own(descriptor: int, owner: tuple[int, int]) -> None:
    found = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != owner:
        os.fchown(descriptor, *owner)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
