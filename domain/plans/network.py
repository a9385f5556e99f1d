"""The RAIDA network's directory: what one server of it says, read with suspicion, and what most of them agree on.

Each directory server publishes three lists: `users` (CSV), `servers` (JSON, the QMail servers) and `raida_servers`
(text). None of them knows of the others, so several are asked and a record counts when a majority of those that are
*configured* gives the same value; so does the absence of one. With n configured, any n - (n // 2 + 1) may be down,
late, out of date or lying.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from domain import errors

List = Literal["users", "servers", "raida_servers"]

#: list -> where a directory serves it, in the order in which the real client asks
PATHS: Mapping[List, str] = {
    "users": "/service/users",
    "servers": "/service/qmail_servers",
    "raida_servers": "/service/raida_servers",
}
#: How many directories may be configured.
MAX_DIRECTORIES = 100
#: A record that a directory does have, but that cannot be used: nothing is put and nothing removed for it.
UNUSABLE = b""
#: What a client is told when no directory answers: the words of the QMail document.
UNREACHABLE = "Failed to connect to RAIDA network. Please check network connectivity."
_SHOWN = 3


class Spec(Struct, frozen=True):
    """`directories` are base addresses. A download may take `timeout` seconds; once a majority agrees, the others have
    `patience` seconds more. A plan that touches more than `max_change_fraction` of a list waits for a person: `force`
    carries it out, `plan_hash` only if it is that one."""

    directories: tuple[str, ...]
    timeout: float = 30.0
    patience: float = 2.0
    max_rows: int = 100_000
    max_change_fraction: float = 0.2
    ping: bool = True
    ping_timeout: float = 2.0
    force: bool = False
    plan_hash: str | None = None


def directories(given: Iterable[str]) -> tuple[str, ...]:
    """Base addresses in one spelling, each once. Raises errors.Invalid for what is none, for none at all, and for
    more than MAX_DIRECTORIES."""
    found = tuple(dict.fromkeys(map(_address, given)))
    if not 0 < len(found) <= MAX_DIRECTORIES:
        raise errors.Invalid(f"There are 1 to {MAX_DIRECTORIES} directories")
    return found


def _address(text: str) -> str:
    wrong = errors.Invalid("A directory is a base address such as https://raida11.cloudcoin.global, and no more")
    try:
        parts = urlsplit(text.strip())
        parts.port  # noqa: B018 - it is looked at, and refused, only when it is asked for
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise wrong
    if parts.query or parts.fragment or not text.isascii() or not text.strip().isprintable() or " " in text.strip():
        raise wrong
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class Sighting(Struct, frozen=True):
    """A server of the accepted list. `ping_ms` is how long a TCP connect took, None when it failed."""

    server_id: str
    ping_ms: int | None = None
    checked: bool = False


class Result(Struct, frozen=True):
    """`*_synced` count the distinct records of the accepted lists; `last_server` is the last of the servers."""

    users_synced: int
    servers_synced: int
    raida_servers_synced: int
    last_server: str | None
    servers: tuple[Sighting, ...]
    dissenters: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


class Listing(Struct, frozen=True):
    """One list of one directory: key -> canonical JSON, or UNUSABLE; `skipped` rows have no key to be known by."""

    records: Mapping[str, bytes]
    skipped: int = 0
    troubles: tuple[str, ...] = ()


class Trouble(NamedTuple):
    """Why a directory gave no list of use; `reached` when it answered at all, however badly."""

    reason: str
    reached: bool


Answers = Mapping[List, Mapping[str, Listing | Trouble]]
"""list -> directory -> what it gave."""


class Dissent(NamedTuple):
    """How one directory's list differs from the accepted one: by numbers, and by the first examples."""

    list: List
    differ: int
    missing: int
    extra: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        parts = [(self.differ, "differ"), (self.missing, "missing"), (self.extra, "that nobody else has")]
        counts = ", ".join(f"{count} {what}" for count, what in parts if count)
        return f"{self.list}: {counts} ({'; '.join(self.examples)})"


class Agreed(NamedTuple):
    """What a majority says. `unusable` are keys of records that it has but nobody can use; of `undecided` keys
    neither a value nor the absence has a majority."""

    records: Mapping[str, bytes]
    unusable: frozenset[str]
    undecided: Sequence[str]


Accepted = Mapping[List, Agreed]


def majority(configured: int) -> int:
    """How many directories must say the same, whatever the number that answers."""
    return configured // 2 + 1


def agree(answers: Mapping[str, Listing], configured: int) -> Agreed:
    """Counts votes record by record. `answers` has the directories that gave this list; the result depends on the set
    of answers alone. Directories with byte-identical lists may share one Listing, which is then looked at once."""
    needed, answered = majority(configured), len(answers)
    weights = Counter(map(id, answers.values()))
    distinct = {id(listing): listing for listing in answers.values()}
    for name, weight in weights.items():
        if weight >= needed:
            return _unanimous(distinct[name])
    records: dict[str, bytes] = {}
    unusable: set[str] = set()
    undecided: list[str] = []
    for key in sorted({key for listing in distinct.values() for key in listing.records}):
        votes: Counter[bytes] = Counter()
        for name, listing in distinct.items():
            if (value := listing.records.get(key)) is not None:
                votes[value] += weights[name]
        value, most = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        if most >= needed:
            if value == UNUSABLE:
                unusable.add(key)
            else:
                records[key] = value
        elif answered - votes.total() < needed:
            undecided.append(key)
    return Agreed(records, frozenset(unusable), undecided)


def accept(answers: Answers, configured: int) -> dict[List, Agreed]:
    """What is accepted of each list, all three or nothing. Raises errors.RemoteUnavailable where too few directories
    gave a list, errors.SyncFailed where those that did leave a record without a majority; both say which list."""
    if not any(isinstance(one, Listing) or one.reached for each in answers.values() for one in each.values()):
        raise errors.RemoteUnavailable(UNREACHABLE)
    accepted: dict[List, Agreed] = {}
    for name in PATHS:
        gave = {directory: one for directory, one in answers[name].items() if isinstance(one, Listing)}
        if len(gave) < majority(configured):
            raise errors.RemoteUnavailable(_too_few(name, len(gave), answers[name], configured))
        accepted[name] = agreed = agree(gave, configured)
        if agreed.undecided:
            raise errors.SyncFailed(
                f"The directories do not agree: {len(agreed.undecided)} records of {name}, such as"
                f" {agreed.undecided[0]}, have no majority of {majority(configured)} of {configured}"
            )
    return accepted


def _too_few(name: List, gave: int, answers: Mapping[str, Listing | Trouble], configured: int) -> str:
    reasons = sorted(f"{where}: {one.reason}" for where, one in answers.items() if isinstance(one, Trouble))
    why = f" ({'; '.join(reasons[:_SHOWN])})" if reasons else ""
    if configured == 1:
        return f"The directory gave no list {name} of use{why}"
    return f"Only {gave} of {configured} directories gave a list {name} of use, not {majority(configured)}{why}"


def dissents(answers: Answers, accepted: Accepted) -> dict[str, list[Dissent]]:
    """Who differs from what was accepted, by address."""
    found: dict[str, list[Dissent]] = {}
    for name, agreed in accepted.items():
        looked_at: dict[int, Dissent | None] = {}
        for directory, said in sorted(answers[name].items(), key=lambda one: one[0]):
            if isinstance(said, Trouble):
                continue
            if id(said) not in looked_at:
                looked_at[id(said)] = dissent(name, said, agreed)
            if (differs := looked_at[id(said)]) is not None:
                found.setdefault(directory, []).append(differs)
    return found


def _unanimous(listing: Listing) -> Agreed:
    unusable = frozenset(key for key, value in listing.records.items() if value == UNUSABLE)
    records = {key: value for key, value in listing.records.items() if value != UNUSABLE} if unusable else None
    return Agreed(listing.records if records is None else records, unusable, ())


def dissent(name: List, said: Listing, agreed: Agreed) -> Dissent | None:
    """How a directory's list differs from the accepted one; None where it does not."""
    differ, extra = [], []
    for key, value in said.records.items():
        if (accepted := agreed.records.get(key)) is None:
            if key not in agreed.unusable:
                extra.append(key)
        elif value != accepted:
            differ.append(key)
    missing = [key for key in agreed.records if key not in said.records]
    if not differ and not extra and not missing:
        return None
    examples = [_difference(key, said.records[key], agreed.records[key]) for key in sorted(differ)[:_SHOWN]]
    examples += [f"{key} is missing" for key in sorted(missing)[: _SHOWN - len(examples)]]
    examples += [f"{key} is its own" for key in sorted(extra)[: _SHOWN - len(examples)]]
    return Dissent(name, len(differ), len(missing), len(extra), tuple(examples))


def _difference(key: str, said: bytes, accepted: bytes) -> str:
    if said == UNUSABLE:
        return f"{key} cannot be used"
    theirs, ours = msgspec.json.decode(said), msgspec.json.decode(accepted)
    fields = [name for name in ours if theirs.get(name) != ours[name]]
    shown = [f"{name} {str(theirs.get(name))[:60]!r} instead of {str(ours[name])[:60]!r}" for name in fields[:2]]
    return f"{key}: {', '.join(shown)}"


def ordered(records: Mapping[str, bytes], configured: int) -> list[str]:
    """The keys of the servers: of one directory in its own order, of several by index, then id."""
    if configured == 1:
        return list(records)
    return sorted(records, key=lambda key: (msgspec.json.decode(records[key])["server_index"], key))


class Change(NamedTuple):
    """One thing to do; `op` is created, updated or deleted."""

    list: List
    key: str
    op: str


def changes(agreed: Accepted, known: Mapping[List, Mapping[str, str]]) -> list[Change]:
    """What would be done, sorted; `known` has key -> SHA-256 of canonical JSON, in hexadecimal, of what there is."""
    found: list[Change] = []
    for name, accepted in agreed.items():
        before = known[name]
        for key, value in accepted.records.items():
            if key not in before:
                found.append(Change(name, key, "created"))
            elif before[key] != hashlib.sha256(value).hexdigest():
                found.append(Change(name, key, "updated"))
        gone = before.keys() - accepted.records.keys() - accepted.unusable
        found += [Change(name, key, "deleted") for key in gone]
    return sorted(found)


def plan_hash(planned: Iterable[Change]) -> str:
    digest = hashlib.sha256()
    for change in planned:
        digest.update(msgspec.json.encode(change))
    return digest.hexdigest()


#: A list as small as this may change as a whole.
SMALL = 10


def suspicious(
    planned: Sequence[Change], known: Mapping[List, Mapping[str, str]], max_fraction: float
) -> dict[str, Any] | None:
    """Why a person should look at a plan first, as counts for the answer; None where nobody need.

    Users and RAIDA addresses hardly ever change, so changed ones count as much as removed ones; of the servers, whose
    figures change all the time, only those that are removed.
    """
    touched = Counter(
        change.list
        for change in planned
        if change.op == "deleted" or (change.op == "updated" and change.list != "servers")
    )
    for name in PATHS:
        if len(known[name]) > SMALL and touched[name] > max_fraction * len(known[name]):
            return {"list": name, "changed": touched[name], "known": len(known[name])}
    return None
