"""Who is to be erased, in a file beside the master key: a log that was restored cannot bring anybody back."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from infra import processes

_FILE = "erased.list"


class Entry(Struct, frozen=True):
    """A line of the file. `subject` is the id of a user of `tenant`: it says nothing about whom."""

    tenant: str
    subject: str
    at: datetime


class Erasures:
    """`secrets`/erased.list of a data directory (mode 0600), one JSON document a line; lines are only ever added."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "secrets" / _FILE

    def all(self) -> list[Entry]:
        """Each person once, in the order in which they were erased."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return []
        found: dict[tuple[str, str], Entry] = {}
        for line in text.splitlines():
            try:
                entry = msgspec.json.decode(line, type=Entry)
            except msgspec.MsgspecError:  # cut off while it was written: it is written again
                continue
            found.setdefault((entry.tenant, entry.subject), entry)
        return list(found.values())

    def add(self, tenant: str, subject: str, at: datetime) -> None:
        """Durable once this returns."""
        if any((entry.tenant, entry.subject) == (tenant, subject) for entry in self.all()):
            return
        processes.private_directory(self._path.parent)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Begins with a line end: what was cut off before stays by itself.
            os.write(descriptor, b"\n" + msgspec.json.encode(Entry(tenant, subject, at)) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        processes.sync_directory(self._path.parent)
