"""How a conflict is settled: which commands make a resolution true, as a pure function of both sides."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from domain import library
from domain.library import Content, File, Place
from infra.eventstore.store import Wish


class Sides(NamedTuple):
    """The file a conflict is about, what was found, the device's bytes where the library holds them; the file that
    stands in the conflict's place now, and its state where that is another file."""

    file: str
    state: File
    found: library.ConflictFound
    content: Content | None
    there: str | None
    other: File | None


class Settlement(NamedTuple):
    """`awaits` is the hash of bytes that have yet to come, `kept` the path where the device's side is kept."""

    wishes: list[Wish]
    awaits: str | None = None
    kept: str | None = None


def settle(
    sides: Sides,
    resolution: library.Resolution,
    device: str | None,
    copy: str,
    place: Place,
    fresh: str,
    *,
    blocked: bool,
) -> Settlement:
    """`copy` and its place are where the device's side may be kept, as the new file `fresh`; `blocked` when the
    conflict's own place has turned out to be taken."""
    file, state, found, content, there, other = sides
    resolve = library.Resolve(found.conflict, resolution, device)
    if resolution == "manual":
        return Settlement([Wish(library, file, resolve)])
    announced = _announced(sides, resolve)
    if resolution == "server_wins" or (resolution == "keep_both" and found.local_hash is None):
        return Settlement(announced)
    if found.local_hash is not None and content is None:
        return Settlement([Wish(library, file, replace(resolve, awaits=found.local_hash))], awaits=found.local_hash)
    if resolution == "client_wins" and other is not None and not state.alive:
        change = library.Delete(other.number) if content is None else library.Modify(content, other.number)
        return Settlement([Wish(library, file, resolve), Wish(library, str(there), change)])
    if resolution == "client_wins" or (other is None and not state.alive and not blocked):
        return Settlement([Wish(library, file, replace(resolve, then=_win(found, state, content)))])
    assert content is not None
    if other is not None and other.hash == content.hash:  # it stands there already
        return Settlement(_announced(sides, replace(resolve, kept=there)), kept=other.path)
    create = Wish(library, fresh, library.Create(copy, place, content, found.device), fresh=True)
    return Settlement([*_announced(sides, replace(resolve, kept=fresh)), create], kept=copy)


def _announced(sides: Sides, resolve: library.Resolve) -> list[Wish]:
    """What stands there is said once more, for devices that believe otherwise; a file that another one has followed
    is not called gone again."""
    if sides.other is None or sides.state.alive:
        return [Wish(library, sides.file, replace(resolve, then=library.Announce(sides.state.number)))]
    assert sides.there is not None
    return [
        Wish(library, sides.file, resolve),
        Wish(library, sides.there, library.Announce(sides.other.number)),
    ]


def _win(found: library.ConflictFound, state: File, content: Content | None) -> library.Change:
    """The device's side becomes the file."""
    if content is None:
        return library.Delete(state.number, found.device) if state.alive else library.Announce(state.number)
    if not state.alive:
        return library.Create(found.path, found.place, content, found.device, state.number)
    if found.place.at != state.place.at:
        return library.Move(found.path, found.place, state.number, found.device, content)
    return library.Modify(content, state.number, found.device)
