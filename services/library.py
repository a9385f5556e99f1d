"""What becomes of a library's files: reports of devices, completed uploads, resolutions; each as commands for the log.

The rules are pure (domain.plans.library, domain.library). Here they meet what is there: a `Shelf` looks it up and
appends, so the same code serves the log and a model of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from domain import errors, library
from domain.library import Content, File, Place
from domain.plans import library as plan
from domain.plans.library import Known, Reported
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Wish
from services.conflicts import Conflicts
from services.shelf import Places, Shelf, Who

#: Items of a report that are carried out in one append.
TOGETHER = 32
_TRIES = 6


class Item(Struct, frozen=True):
    """One change as a device reports it; nothing of it is checked yet."""

    path: str
    change: plan.Change
    old_path: str | None = None
    hash: str | None = None
    size: int | None = None
    mtime: datetime | None = None


class Refusal(Struct, frozen=True):
    path: str
    reason: str


class Outcome(Struct):
    """Every reported item is in exactly one of accepted, conflicts and rejected; upload_required is a part of
    accepted. `accepted` says for each path where in the feed it is as reported: what the feed tells of it before is
    old. `position` is where the last effect is complete, 0 where there was none."""

    accepted: dict[str, int] = field(default_factory=dict)
    upload_required: list[str] = field(default_factory=list)
    conflicts: list[library.ConflictFound] = field(default_factory=list)
    rejected: list[Refusal] = field(default_factory=list)
    position: int = 0


class _Asked(NamedTuple):
    """A checked item, where it stands, and where it comes from when it moves."""

    item: Reported
    raw: Item
    place: Place
    old: Place | None

    def names(self) -> Iterable[str]:
        yield from (self.place.at, *self.place.below)
        if self.old is not None:
            yield from (self.old.at, *self.old.below)


class _View(NamedTuple):
    there: Mapping[str, str]
    files: Mapping[str, File]
    known: Mapping[str, Known]
    contents: Mapping[str, tuple[str, int]]
    conflicts: Sequence[library.ConflictFound]

    def identity(self, hash: str | None) -> str | None:
        """The hash under which bytes are kept, where they are; by whichever they were named."""
        return hash if hash is None or hash not in self.contents else self.contents[hash][0]

    def now(self, place: str) -> Known | None:
        file = self.there.get(place)
        return None if file is None else Known(file, self.files[file].hash, self.files[file].device)


class _Decided(NamedTuple):
    """What becomes of one item, and the command for it, if any."""

    wish: Wish | None = None
    since: int | None = None
    upload: bool = False
    conflict: library.ConflictFound | None = None
    reason: str | None = None


class Library:
    """Carries out what devices and people want of a library."""

    def __init__(self, shelf: Shelf, places: Places) -> None:
        self._shelf, self._places = shelf, places
        self._conflicts = Conflicts(shelf, places)

    async def report(self, who: Who, items: Sequence[Item]) -> Outcome:
        """One outcome for each item, in order; a bad one never blocks its neighbours."""
        outcome = Outcome()
        group: list[_Asked] = []
        taken: set[str] = set()
        named: set[str] = set()
        for item in items:
            try:
                asked = self._ask(who, item)
            except plan.BadPath as bad:
                outcome.rejected.append(Refusal(item.path, str(bad)))
                continue
            exact = {asked.place.at} | ({asked.old.at} if asked.old is not None else set())
            # What one item frees or takes, or stands below, the next may need: then it waits for its turn.
            if len(group) >= TOGETHER or not taken.isdisjoint(asked.names()) or not named.isdisjoint(exact):
                await self._carry_out(who, group, outcome)
                group, taken, named = [], set(), set()
            group.append(asked)
            taken |= exact
            named.update(asked.names())
        await self._carry_out(who, group, outcome)
        return outcome

    async def publish(self, who: Who, path: str, content: Content, knew: Known | None = None) -> Outcome:
        """A file whose bytes have just been stored. `knew` is what the one who sent them knew to be there, for one
        who is no device."""
        place = self._places.of(who, path)
        if (awaiting := await self._conflicts.awaiting(who, place, content.hash)) is not None:
            file, conflict = awaiting
            assert conflict.resolved is not None
            done = await self._conflicts.resolve(who, file, conflict.found.conflict, conflict.resolved.resolution)
            return Outcome(accepted={path: done.position}, position=done.position)
        item = Item(path, "modified", hash=content.hash, size=content.size, mtime=content.mtime)
        asked = _Asked(Reported(path, "modified", hash=content.hash, size=content.size), item, place, None)
        outcome = Outcome()
        await self._carry_out(who, [asked], outcome, {place.at: knew} if who.device is None else None)
        return outcome

    async def standing(self, who: Who, path: str) -> Known | None:
        """What stands at a path now."""
        at = self._places.of(who, path).at
        there = await self._shelf.there(who, [at])
        if at not in there:
            return None
        file = there[at]
        return Known(file, (await self._shelf.files(who, [file]))[file].hash)

    async def restore(self, who: Who, file: str, path: str, content: Content) -> int:
        """Makes an older version the newest; a deleted file comes back at a path. Raises errors.InvalidState when
        something else stands there, errors.Conflict."""
        state = (await self._shelf.files(who, [file]))[file]
        command: library.Command = library.Modify(content, state.number)
        if not state.alive:
            command = library.Create(path, self._places.of(who, path), content, expect=state.number)
        try:
            return await self._shelf.append(who, [Wish(library, file, command)])
        except Claimed:
            raise errors.InvalidState("Something else stands there now; move it away first") from None

    def _ask(self, who: Who, item: Item) -> _Asked:
        path = plan.check_path(item.path)
        old = None if item.old_path is None or item.change != "moved" else plan.check_path(item.old_path)
        reported = Reported(path, item.change, old, item.hash, item.size)
        return _Asked(reported, item, self._places.of(who, path), None if old is None else self._places.of(who, old))

    async def _carry_out(
        self,
        who: Who,
        group: Sequence[_Asked],
        outcome: Outcome,
        knew: Mapping[str, Known | None] | None = None,
    ) -> None:
        if not group:
            return
        blocked: Claimed | None = None
        for _ in range(_TRIES):
            seen = await self._shelf.head()
            view = await self._look(who, group, knew)
            decided = [self._decide(who, asked, view) for asked in group]
            wishes = [one.wish for one in decided if one.wish is not None]
            if len({wish.id for wish in wishes}) < len(wishes):
                break  # what becomes of one item changes the file that another is about
            try:
                written = await self._shelf.append(who, wishes) if wishes else 0
            except Claimed as claimed:
                blocked = claimed
            except errors.Conflict:
                blocked = None
            else:
                outcome.position = max(outcome.position, written)
                for asked, one in zip(group, decided, strict=True):
                    held = seen if one.since is None else one.since
                    _note(outcome, asked, one, held if one.wish is None else written)
                return
            if len(group) > 1:
                break  # the one that stands in the way is found alone
        if len(group) > 1:
            for asked in group:
                await self._carry_out(who, [asked], outcome, knew)
        else:
            outcome.rejected.append(Refusal(group[0].item.path, _blocked(group[0], blocked)))

    async def _look(self, who: Who, group: Sequence[_Asked], knew: Mapping[str, Known | None] | None) -> _View:
        exact = {asked.place.at for asked in group} | {asked.old.at for asked in group if asked.old is not None}
        there = await self._shelf.there(who, exact)
        if knew is None:
            known: Mapping[str, Known] = await self._shelf.known(who, exact)
        else:
            known = {place: one for place, one in knew.items() if one is not None}
        files = await self._shelf.files(who, {*there.values(), *(one.file for one in known.values())})
        conflicts = [*await self._shelf.conflicts(who, exact)]
        conflicts += [one.found for state in files.values() for one in state.open_conflicts()]
        hashes = {asked.item.hash for asked in group} | {one.local_hash for one in conflicts}
        contents = await self._shelf.contents(who, [hash for hash in hashes if hash is not None])
        return _View(there, files, known, contents, conflicts)

    def _decide(self, who: Who, asked: _Asked, view: _View) -> _Decided:
        item = asked.item
        item = Reported(item.path, item.change, item.old_path, view.identity(item.hash), item.size)
        here = asked.place if asked.old is None else asked.old
        there, knew = view.now(here.at), view.known.get(here.at)
        target = view.now(asked.place.at) if asked.old is not None else None
        twin = view.there.get(asked.place.at)
        if twin is not None and item.change != "moved" and view.files[twin].path != item.path:
            return _Decided(reason="another path differs from it only in case")
        match plan.judge(item, there, knew, target):
            case plan.Accepted():
                # Where a move that is said again came from, something else may stand by now.
                return _Decided(since=who.acked if item.change == "moved" else None)
            case plan.Rejected() as rejected:
                return _Decided(reason=rejected.reason)
            case plan.Conflict() as conflict:
                return self._conflict(who, asked, conflict, view, knew)
            case plan.Apply() as verdict:
                return self._apply(who, asked, item, verdict, view)

    def _apply(self, who: Who, asked: _Asked, item: Reported, verdict: plan.Apply, view: _View) -> _Decided:
        state = library.initial if verdict.file is None else view.files[verdict.file]
        content = self._content(asked, item, view)
        changes = verdict.act in ("create", "modify") or (verdict.act == "move" and item.hash not in (None, state.hash))
        if changes and content is None:
            return _Decided(upload=True)
        command = _command(who, asked, verdict, state, content if changes else None)
        if command is None:
            return _Decided()
        file = verdict.file or str(uuid.uuid4())
        return _Decided(Wish(library, file, command, fresh=verdict.file is None))

    def _content(self, asked: _Asked, item: Reported, view: _View) -> Content | None:
        stored = None if asked.item.hash is None else view.contents.get(asked.item.hash)
        return None if stored is None else Content(stored[0], stored[1], asked.raw.mtime)

    def _conflict(self, who: Who, asked: _Asked, conflict: plan.Conflict, view: _View, knew: Known | None) -> _Decided:
        assert conflict.file is not None
        if who.device is None:
            return _Decided(reason="it was changed meanwhile")
        state, item = view.files[conflict.file], asked.item
        stored = None if item.hash is None else view.contents.get(item.hash)
        found = library.ConflictFound(
            conflict=str(uuid.uuid4()),
            rule=conflict.rule,
            path=item.path,
            place=asked.place,
            device=who.device,
            local_change=item.change,
            local_hash=item.hash if stored is None else stored[0],
            local_size=item.size if stored is None else stored[1],
            local_mtime=asked.raw.mtime,
            base_hash=None if knew is None else knew.hash,
            server_hash=state.hash,
            server_device=state.device,
            server_number=state.number,
            server_mtime=state.content.mtime if state.content is not None and state.alive else None,
        )
        for one in view.conflicts:
            if library.same_change(replace(one, local_hash=view.identity(one.local_hash)), found):
                return _Decided(conflict=one)
        return _Decided(Wish(library, conflict.file, library.FindConflict(found)), conflict=found)


def _command(
    who: Who, asked: _Asked, verdict: plan.Apply, state: File, content: Content | None
) -> library.Change | None:
    path, place, device = asked.item.path, asked.place, who.device
    match verdict.act:
        case "create":
            assert content is not None
            return library.Create(path, place, content, device)
        case "modify":
            assert content is not None
            return library.Modify(content, state.number, device)
        case "move":
            return library.Move(path, place, state.number, device, content)
        case "delete":
            return library.Delete(state.number, device)
        case "touch":
            mtime = asked.raw.mtime
            if mtime is None or state.content is None or mtime == state.content.mtime:
                return None
            return library.Touch(state.number, mtime, device)


def _note(outcome: Outcome, asked: _Asked, decided: _Decided, sequence: int) -> None:
    path = asked.item.path
    if decided.reason is not None:
        outcome.rejected.append(Refusal(path, decided.reason))
    elif decided.conflict is not None:
        outcome.conflicts.append(decided.conflict)
    else:
        outcome.accepted[path] = sequence
        if decided.upload:
            outcome.upload_required.append(path)


def _blocked(asked: _Asked, claimed: Claimed | None) -> str:
    if claimed is None:
        return "it changes too fast; report it again"
    if claimed.name in asked.place.below:
        return "a file stands where its folder would be"
    return "a folder stands there"
