"""A person whose every word can be told from everybody else's, and all the places where it could be found again."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra import embedded
from tests.journeys import libraries
from tests.journeys.libraries import User, created
from tests.journeys.system import ADMIN, UNDRIFT, System


@dataclass
class Canary:
    """`words` are those by which the person would be recognised."""

    system: System
    mark: str = field(default_factory=lambda: os.urandom(6).hex())

    def __post_init__(self) -> None:
        words = ("zelda", "laptop", "folder", "diary", "moved", "content", "upload", "meta", "key", "phone")
        self.words = {word: f"{word}-{self.mark}" for word in words}
        self.user = libraries.user(self.system, self.words["zelda"])
        self.laptop = self.user.device(self.words["laptop"])
        self.phone = self.user.device(self.words["phone"])

    def live(self, shared: bytes = b"what others have as well") -> None:
        """Leaves something in every place there is: files, versions, a conflict, an upload under way, keys."""
        words, path = self.words, f"{self.words['folder']}/{self.words['diary']}.txt"
        self.laptop.upload(path, f"dear {words['content']}".encode())
        self.laptop.upload("shared", shared)
        self.phone.follow()
        self.laptop.upload(path, f"dear {words['content']}, again".encode())
        data = f"{words['content']} on the phone".encode()
        self.phone.report({**created(path, data), "change_type": "modified"})
        self.phone.upload(path, data)
        self.laptop.upload(f"{words['moved']}.txt", f"{words['content']} moved".encode())
        half = self.laptop.open(f"{words['upload']}.bin", f"{words['upload']}".encode() * 9000)
        answer = self.laptop.chunk(half, 0, f"{words['upload']}".encode() * 9000)
        assert answer.status == 200, answer
        opened = self.user.call(
            "POST",
            "/api/v1/sync/upload",
            {"target_path": f"{words['meta']}", "expected_size": 9, "expected_hash": "a" * 64},
            headers={"Idempotency-Key": words["key"]},
        )
        assert opened.status == 200, opened

    def found(self, *, but: frozenset[str] = frozenset()) -> dict[str, set[str]]:
        """Where which word can be read: place -> words."""
        found: dict[str, set[str]] = {}
        for place, raw in self._places():
            if place not in but:
                hits = {word for word, text in self.words.items() if any(one in raw for one in spellings(text))}
                if hits:
                    found[place] = hits
        return found

    def _places(self) -> Iterator[tuple[str, bytes]]:
        system = self.system
        program = embedded.postgres_program("pg_dump")
        dumped = subprocess.run([program, system.ready["database_url"]], check=True, capture_output=True, timeout=120)
        yield "dump", dumped.stdout
        yield "metrics", system.get("/metrics", token=ADMIN).body
        yield "health", system.get("/readyz").body
        yield "log", system.log.read_bytes()
        for folder in sorted(system.directory.iterdir()):
            if folder.name != "postgres":
                yield folder.name, b"\0".join(_files(folder))


def _files(folder: Path) -> Iterator[bytes]:
    """Names and bytes."""
    for path in [folder, *folder.rglob("*")]:
        yield str(path).encode()
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def spellings(text: str) -> tuple[bytes, ...]:
    """As it is, as Postgres dumps bytes, and as Base64 at any offset."""
    raw = text.encode()
    encoded = [base64.b64encode(b"\0" * n + raw)[4 if n else 0 : -4] for n in range(3)]
    return raw, raw.hex().encode(), *encoded


def erase(system: System, subject: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a person does."""
    command = [UNDRIFT, "erase", subject, "--data-dir", str(system.directory), "--json", *more]
    own = {name: value for name, value in os.environ.items() if not name.startswith("UNDRIFT_")}
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)


def somebody(system: System) -> User:
    return libraries.user(system)
