"""A library and its devices in memory: the real rules and the real engine around a log that is a list.

`World.run` plays a seeded history: edits, moves and deletions on the devices, rounds of syncing that may crash at any
call, answers that are lost and requests that come twice.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from domain import library, messages
from domain.library import Content, File
from domain.plans import device as plan
from domain.plans.device import Change, Local
from domain.plans.library import Known
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Wish
from services.conflicts import Conflicts
from services.device import engine
from services.device.engine import Base, Blocked, Changed, Conflict, Engine, Page, Reported
from services.library import Item, Library, Outcome
from services.shelf import Places, Who

T = TypeVar("T")


Filled = library.Created | library.Modified | library.Touched | library.Moved | library.Restored
Written = library.Created | library.Modified | library.Touched | library.Moved | library.Deleted | library.Restored


class Crash(Exception):
    """The device ends here, or the answer never came."""


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


@dataclass
class Log:
    """The log, the claims and the bytes of one user."""

    events: list[tuple[str, library.Event]] = field(default_factory=list)
    states: dict[str, File] = field(default_factory=dict)
    claims: dict[tuple[str, str], str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)

    async def head(self) -> int:
        return len(self.events)

    async def there(self, who: Who, places: Collection[str]) -> Mapping[str, str]:
        return {place: file for (place, file), kind in self.claims.items() if place in places and kind == "exclusive"}

    async def files(self, who: Who, ids: Collection[str]) -> Mapping[str, File]:
        return {id: self.states[id] for id in ids}

    async def conflicts(self, who: Who, places: Collection[str]) -> Sequence[library.ConflictFound]:
        open_ = [one.found for state in self.states.values() for one in state.open_conflicts()]
        return [found for found in open_ if found.device == who.device and found.place.at in places]

    async def contents(self, who: Who, hashes: Collection[str]) -> Mapping[str, tuple[str, int]]:
        return {hash: (hash, 1) for hash in hashes if hash in self.stored}

    async def known(self, who: Who, places: Collection[str]) -> Mapping[str, Known]:
        """The definition, by going through the whole history."""
        seen: dict[str, Known] = {}
        for position, (file, event) in enumerate(self.events, start=1):
            if not isinstance(event, Written) or not (position <= who.acked or event.device == who.device):
                continue
            if isinstance(event, library.Moved):
                seen[event.old_place.at] = Known(file, None)
            seen[event.place.at] = Known(file, event.content.hash if isinstance(event, Filled) else None)
        return {place: one for place, one in seen.items() if place in places}

    async def keep(self, who: Who, hash: str) -> None:
        """Bytes that were uploaded."""
        self.stored.add(hash)

    async def append(self, who: Who, wishes: Sequence[Wish]) -> int:
        claims, states = dict(self.claims), dict(self.states)
        fresh: list[tuple[str, library.Event]] = []
        assert len({wish.id for wish in wishes}) == len(wishes), "one append says one thing about each file"
        for wish in wishes:
            state = states.get(wish.id, library.initial)
            for event in library.decide(wish.command, state):  # type: ignore[arg-type]
                for claim in library.claims(event):
                    self._claim(claims, claim, wish.id)
                state = library.evolve(state, event)
                fresh.append((wish.id, event))
            states[wish.id] = state
        self.claims, self.states = claims, states
        self.events += fresh
        return len(self.events)

    def _claim(self, claims: dict[tuple[str, str], str], claim: messages.Claim, file: str) -> None:
        mine = (claim.key, file)
        if claim.action == "release":
            claims.pop(mine, None)
            return
        kind = "shared" if claim.shared else "exclusive"
        for (key, holder), held in claims.items():
            if key == claim.key and holder != file and "exclusive" in (kind, held):
                raise Claimed(claim.kind, claim.key, holder)
        claims[mine] = kind

    def living(self) -> dict[str, str]:
        return {state.path: state.hash for state in self.states.values() if state.hash is not None}

    def kept(self) -> set[str]:
        """Every hash in history or in a conflict."""
        found: set[str] = set()
        for _, event in self.events:
            if isinstance(event, library.ConflictFound):
                found |= {event.local_hash} if event.local_hash is not None else set()
            elif isinstance(event, Filled):
                found.add(event.content.hash)
        return found


@dataclass
class Disk:
    """A device's folder: path -> contents, which stand for their own hash."""

    log: Log
    name: str
    files: dict[str, str] = field(default_factory=dict)
    asides: int = 0

    def scan(self) -> Mapping[str, Local]:
        return {path: Local(hash, 1) for path, hash in self.files.items()}

    def look(self, path: str) -> Local | None:
        return Local(self.files[path], 1) if path in self.files else None

    def put(self, path: str, fetched: object, change: Change, expected: Local | None) -> None:
        for other in self.files:
            if path.startswith(other + "/") or other.startswith(path + "/"):
                raise Blocked(other if path.startswith(other + "/") else path)
        if self.look(path) != expected:
            raise Changed
        assert isinstance(fetched, str)
        self._lose(path)
        self.files[path] = fetched

    def _lose(self, path: str) -> None:
        """What a person saved is never overwritten before the library holds it."""
        if path in self.files:
            assert self.files[path] in self.log.kept(), f"{path} was overwritten here before it was stored"

    def set_aside(self, path: str) -> None:
        self.asides += 1
        aside = f"{path} (aside {self.name}{self.asides})"
        for other in [one for one in self.files if one == path or one.startswith(path + "/")]:
            self.files[aside + other[len(path) :]] = self.files.pop(other)

    def remove(self, path: str, expected: Local) -> None:
        if self.look(path) != expected:
            raise Changed
        self._lose(path)
        del self.files[path]


@dataclass
class Memory:
    """What a device remembers over a crash."""

    cursor: str | None = None
    kept: dict[str, Base] = field(default_factory=dict)
    spare: dict[str, str] = field(default_factory=dict)
    noted: dict[str, Base] = field(default_factory=dict)

    def base(self, path: str) -> Base:
        return self.kept.get(path, engine.NOTHING)

    def bases(self) -> Mapping[str, Base]:
        return dict(self.kept)

    def spared(self, path: str) -> str | None:
        return self.spare.get(path)

    def intents(self) -> Mapping[str, Base]:
        return dict(self.noted)

    def intend(self, bases: Mapping[str, Base]) -> None:
        self.noted = dict(bases)

    def agree(
        self, bases: Mapping[str, Base], *, spared: Mapping[str, str | None] | None = None, cursor: str | None = None
    ) -> None:
        self.kept |= bases
        for path, hash in (spared or {}).items():
            if hash is None:
                self.spare.pop(path, None)
            else:
                self.spare[path] = hash
        self.cursor = cursor if cursor is not None else self.cursor


class Wire:
    """The library as one device sees it, over a wire that fails as the seed says."""

    def __init__(self, world: World, device: str) -> None:
        self._world, self._device, self.acked = world, device, 0

    def _who(self) -> Who:
        return Who("main", "user", f"device:{self._device}", self._device, self.acked)

    def _fail(self) -> None:
        if self._world.random.random() < self._world.trouble:
            raise Crash

    def _twice(self) -> bool:
        return self._world.random.random() < self._world.trouble

    def ack(self, cursor: str) -> None:
        self._fail()
        self.acked = max(self.acked, int(cursor))
        self._fail()

    def report(self, items: Sequence[plan.Item]) -> Reported:
        self._fail()
        asked = [Item(one.path, one.change, one.old_path, one.hash, one.size, one.mtime) for one in items]
        outcome = self._world.now(self._world.library.report(self._who(), asked))
        if self._twice():
            outcome = self._world.now(self._world.library.report(self._who(), asked))
        self._fail()
        assert sorted(
            [*outcome.accepted, *(c.path for c in outcome.conflicts), *(r.path for r in outcome.rejected)]
        ) == (sorted(one.path for one in items))
        return Reported(
            outcome.accepted,
            outcome.upload_required,
            [_conflict(one) for one in outcome.conflicts],
            {one.path: one.reason for one in outcome.rejected},
        )

    def upload(self, path: str, entry: Local) -> int | Conflict:
        self._fail()
        disk = self._world.disks[self._device]
        if disk.look(path) != entry:
            raise Changed
        self._world.now(self._world.log.keep(self._who(), entry.hash))
        outcome = self._world.now(self._world.library.publish(self._who(), path, Content(entry.hash, 1)))
        self._fail()
        return self._said(path, outcome, entry.hash)

    def _said(self, path: str, outcome: Outcome, hash: str) -> int | Conflict:
        if outcome.conflicts:
            return _conflict(outcome.conflicts[0])
        if path not in outcome.accepted:
            raise Changed
        self._world.taken.add(hash)
        return outcome.accepted[path]

    def changes(self, cursor: str | None, limit: int) -> Page:
        self._fail()
        limit = self._world.random.choice([1, 2, 5, limit])
        after, found = int(cursor or 0), []
        for position, (_, event) in enumerate(self._world.log.events, start=1):
            if position > after and isinstance(event, Written):
                found.append((position, event))
        page = found[:limit]
        last = page[-1][0] if page else after
        return Page([_change(position, event) for position, event in page], str(last), len(found) > limit)

    def download(self, path: str, hash: str) -> object | None:
        self._fail()
        return hash if self._world.log.living().get(path) == hash else None

    def conflicts(self) -> Sequence[Conflict]:
        self._fail()
        open_ = [one.found for state in self._world.log.states.values() for one in state.open_conflicts()]
        return [_conflict(found) for found in open_ if found.device == self._device]

    def resolve(self, conflict: str, resolution: str) -> None:
        self._fail()
        for file, state in list(self._world.log.states.items()):
            if conflict in state.conflicts:
                assert resolution in library.RESOLUTIONS
                self._world.now(
                    self._world.conflicts.resolve(self._who(), file, conflict, resolution, self._device, "2026-11-21")
                )
        self._fail()


def _conflict(found: library.ConflictFound) -> Conflict:
    return Conflict(found.conflict, found.path, found.local_hash)


def _change(position: int, event: Written) -> Change:
    hash = event.content.hash if isinstance(event, Filled) else None
    old = event.old_path if isinstance(event, library.Moved) else None
    return Change(event.path, hash, position, old_path=old)


class World:
    """Devices `a`, `b`, … around one library."""

    def __init__(
        self,
        seed: int,
        *,
        devices: int = 3,
        trouble: float = 0.05,
        log: Log | None = None,
        now: Callable[[Coroutine[Any, Any, Any]], Any] = now,
    ) -> None:
        """`now` gets the result of a coroutine; one that waits needs a loop elsewhere."""
        self.random, self.now = random.Random(seed), now
        self.seed, self.trouble = seed, trouble
        self.log = log or Log()
        self.library = Library(self.log, Places(b"k" * 32))
        self.conflicts = Conflicts(self.log, Places(b"k" * 32))
        names = "abcdefgh"[:devices]
        self.disks = {name: Disk(self.log, name) for name in names}
        self.memories = {name: Memory() for name in names}
        self.wires = {name: Wire(self, name) for name in names}
        self.contents = 0
        self.taken: set[str] = set()

    def round(self, device: str) -> bool:
        """Whether it found nothing to do."""
        return Engine(self.wires[device], self.disks[device], self.memories[device]).round().idle

    def edit(self) -> None:
        """A person does something on a device."""
        disk = self.disks[self.random.choice(list(self.disks))]
        paths = sorted(disk.files)
        path = self.random.choice(["x", "y", "d/x", "d/y", "e/x", "d"])
        action = self.random.random()
        if action < 0.2 and paths:
            del disk.files[self.random.choice(paths)]
        elif action < 0.4 and paths and self._free(disk, path):
            disk.files[path] = disk.files.pop(self.random.choice(paths))
        elif action < 0.6 and paths:
            disk.files[self.random.choice(paths)] = self._content()
        elif self._free(disk, path):
            disk.files[path] = self._content()

    def _free(self, disk: Disk, path: str) -> bool:
        return path not in disk.files and not any(
            other.startswith(path + "/") or path.startswith(other + "/") for other in disk.files
        )

    def _content(self) -> str:
        self.contents += 1
        # Now and then two devices come to the same bytes.
        return f"{self.contents if self.random.random() < 0.8 else self.random.randrange(self.contents):064x}"

    def play(self, operations: int) -> None:
        for _ in range(operations):
            if self.random.random() < 0.6:
                self.edit()
                continue
            with contextlib.suppress(Crash):
                self.round(self.random.choice(list(self.disks)))

    def settle(self) -> None:
        """Everybody syncs, without trouble, until nobody has anything to say."""
        self.trouble = 0.0
        for _ in range(60):
            busy = [device for device in self.disks if not self.round(device)]
            if not busy:
                return
        raise AssertionError(f"seed {self.seed}: it never comes to rest")

    def check(self) -> None:
        library_ = self.log.living()
        for name, disk in self.disks.items():
            assert disk.files == library_, f"seed {self.seed}: device {name} differs"
        assert self.taken <= self.log.kept(), f"seed {self.seed}: bytes that were taken are nowhere"
        open_ = [one for state in self.log.states.values() for one in state.open_conflicts()]
        assert not open_, f"seed {self.seed}: conflicts stay open"
