"""Conflicts of a library: resolving them, saying what that would do, and undoing it."""

from __future__ import annotations

import uuid

from msgspec import Struct

from domain import errors, library
from domain.library import Content, File, Place
from domain.plans import library as plan
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Wish
from services import resolutions
from services.shelf import Places, Shelf, Who

#: So many copies may stand beside one another on one day.
_TRIES = 100


class Resolved(Struct, frozen=True):
    """`awaits` is the hash of bytes that have yet to come; `kept` the path of a copy."""

    position: int
    awaits: str | None = None
    kept: str | None = None


class Conflicts:
    """Carries out what a person or a device decides."""

    def __init__(self, shelf: Shelf, places: Places) -> None:
        self._shelf, self._places = shelf, places

    async def resolve(
        self, who: Who, file: str, conflict: str, resolution: library.Resolution, whose: str = "", day: str = ""
    ) -> Resolved:
        """Settles a conflict, or completes a settlement whose bytes have come. `whose` and `day` name the copy where
        both sides are kept. Raises errors.NotFound, errors.InvalidState."""
        blocked = 0
        for _ in range(_TRIES):
            state = (await self._shelf.files(who, [file]))[file]
            if (known := state.conflicts.get(conflict)) is None:
                raise errors.NotFound("There is no such conflict", kind="conflict")
            sides = await self._sides(who, file, state, known.found)
            # Where even its folder is taken, a copy goes to the top.
            beside = known.found.path if blocked < 2 else known.found.path.rpartition("/")[2]
            copy = plan.conflict_name(beside, whose, day or "copy", blocked)
            if sides.there is None and not blocked:
                copy = known.found.path  # nothing else is there to be kept
            settled = resolutions.settle(
                sides, resolution, who.device, copy, self._places.of(who, copy), str(uuid.uuid4()), blocked=blocked > 0
            )
            try:
                return Resolved(await self._shelf.append(who, settled.wishes), settled.awaits, settled.kept)
            except Claimed:
                if resolution == "client_wins":
                    raise errors.InvalidState("Something else stands there now; keep_both keeps a copy") from None
                blocked += 1
            except errors.Conflict:
                continue
        raise errors.Conflict()

    async def preview(
        self, who: Who, file: str, conflict: str, resolution: library.Resolution, whose: str, day: str
    ) -> resolutions.Settlement:
        """What `resolve` would do, as things stand. Raises errors.NotFound."""
        state = (await self._shelf.files(who, [file]))[file]
        if (known := state.conflicts.get(conflict)) is None:
            raise errors.NotFound("There is no such conflict", kind="conflict")
        sides = await self._sides(who, file, state, known.found)
        path = known.found.path
        copy = path if sides.there is None else plan.conflict_name(path, whose, day)
        return resolutions.settle(sides, resolution, who.device, copy, self._places.of(who, copy), "", blocked=False)

    async def reopen(self, who: Who, file: str, conflict: str) -> int:
        """Undoes a resolution: the conflict is open again, and the file as it was before, unless it has changed since.

        Raises errors.NotFound, errors.InvalidState, errors.Conflict.
        """
        state = (await self._shelf.files(who, [file]))[file]
        known = state.conflicts.get(conflict)
        if known is None:
            raise errors.NotFound("There is no such conflict", kind="conflict")
        if known.resolved is None:
            raise errors.InvalidState("The conflict is not resolved")
        then = await self._before(who, state, known.found)
        return await self._shelf.append(who, [Wish(library, file, library.Reopen(conflict, then))])

    async def awaiting(self, who: Who, place: Place, hash: str) -> tuple[str, library.Conflict] | None:
        """A conflict at a place whose resolution waits for these bytes."""
        there = set((await self._shelf.there(who, [place.at])).values())
        there |= {one.file for one in (await self._shelf.known(who, [place.at])).values()}
        for file, state in (await self._shelf.files(who, there)).items():
            for conflict in state.conflicts.values():
                if conflict.found.place.at != place.at or conflict.resolved is None:
                    continue
                if (awaited := conflict.resolved.awaits) is None:
                    continue
                if (await self._shelf.contents(who, [awaited])).get(awaited, ("", 0))[0] == hash:
                    return file, conflict
        return None

    async def _before(self, who: Who, state: File, found: library.ConflictFound) -> library.Change | None:
        if state.hash == found.server_hash:
            return None
        if state.number > found.server_number + 1 or (found.server_hash and not state.alive):
            raise errors.InvalidState("The file has changed since; its versions can be restored one by one")
        if found.server_hash is None:
            return library.Delete(state.number)
        stored = (await self._shelf.contents(who, [found.server_hash]))[found.server_hash]
        return library.Modify(Content(*stored, found.server_mtime), state.number)

    async def _sides(self, who: Who, file: str, state: File, found: library.ConflictFound) -> resolutions.Sides:
        stored = None
        if (hash := found.local_hash) is not None:
            stored = (await self._shelf.contents(who, [hash])).get(hash)
        there = (await self._shelf.there(who, [found.place.at])).get(found.place.at)
        other = None if there is None or there == file else (await self._shelf.files(who, [there]))[there]
        content = None if stored is None else Content(*stored, found.local_mtime)
        return resolutions.Sides(file, state, found, content, there, other)
