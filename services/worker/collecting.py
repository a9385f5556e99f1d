"""What kinds that bring items from outside share: they only say what is there, page by page; see `Source`.

Everything here runs in a worker's child. What is new or changed goes up to the worker, which puts it into the log
together with the cursor behind it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from domain import jobs, kinds
from domain.errors import Held, RemoteBusy, TimedOut
from services.worker import child

_NAP_S = 0.1
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class Item(NamedTuple):
    """`content` is what becomes a JSON object; `revision` is `YYYY-MM-DDTHH:MM:SS.ffffffZ` or None."""

    entity: str
    id: str
    content: Mapping[str, Any]
    revision: str | None = None


class Gone(NamedTuple):
    """`reason` is "deleted", "archived", ..."""

    entity: str
    id: str
    reason: str = "deleted"


class Page(NamedTuple):
    """What was found, and the JSON value `cursor` from which `observe` goes on behind it (None: not from here).
    `gone` may come only after a complete enumeration; it is taken at the end. `percent` is of the whole run."""

    items: Sequence[Item] = ()
    gone: Sequence[Gone] = ()
    cursor: Any = None
    stage: str = "processing_items"
    percent: int = 0


class Outcome(NamedTuple):
    """`mark` is the JSON value with which the next incremental run begins (None: the one before stays); `complete`
    says that everything there is was seen; `result` is the kind's own."""

    mark: Any | None
    complete: bool
    result: Struct


class Source(Protocol):
    """What a kind of this sort is: a class in a file of its name, made from a Context, listed in
    services.worker.sources. With an attribute `atomic = True` all changes are kept until the end and become part of
    the log together or not at all. One with `guarded = True` looks
    itself whether its deletions need a person."""

    def observe(self, cursor: Any | None) -> Iterator[Page]:
        """From the beginning, or from behind the page with that cursor. Whatever `outcome` needs of the pages before
        must be in the cursor. May raise Stopped and domain.errors."""

    def outcome(self) -> Outcome:
        """Asked after the last page."""


class Stopped(Exception):
    """A stop was asked for while the work waited."""


class Known:
    """What the collection holds as the run begins, without what is deleted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _items(self) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        if self._path.exists():
            with self._path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    entity, item, digest, _ = line.rstrip("\n").split("\t")
                    found.setdefault(_unescaped(entity), {})[_unescaped(item)] = bytes.fromhex(digest)
        return found

    def projects(self, entity: str, ids: AbstractSet[str]) -> dict[str, str]:
        """What stands under `project` in the content of these items, of those where it is text."""
        found: dict[str, str] = {}
        if ids and self._path.exists():
            with self._path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    kind, item, _, project = map(_unescaped, line.rstrip("\n").split("\t"))
                    if kind == entity and item in ids and project:
                        found[item] = project
        return found

    def ids(self, entity: str) -> AbstractSet[str]:
        return self._items.get(entity, {}).keys()

    def hash(self, entity: str, id: str) -> str | None:
        digest = self._items.get(entity, {}).get(id)
        return None if digest is None else digest.hex()

    def count(self, entity: str | None = None) -> int:
        """Of one entity, or of all."""
        return sum(map(len, self._items.values())) if entity is None else len(self._items.get(entity, {}))


def _unescaped(text: str) -> str:
    """A value of the text format of COPY."""
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text) if "\\" in text else text


class Remote:
    """The limits of what is asked, which all workers share and which survive restarts."""

    def __init__(self, parent: child.Parent, deadline: float | None) -> None:
        self._parent, self._deadline = parent, deadline

    def permit(self, name: str, patience: float | None = None) -> None:
        """Waits until one more request may go out. Raises Stopped, errors.TimedOut at the deadline, errors.RemoteBusy
        when that would take longer than `patience`, in seconds."""
        while (seconds := self._ask(name)) > 0:
            if patience is not None and seconds > patience:
                raise RemoteBusy(retry_after=seconds)
            self.sleep(seconds)

    def learn(
        self,
        name: str,
        remaining: int | None = None,
        reset_at: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """What the remote said of its limits: `reset_at` in Unix seconds, `retry_after` in seconds."""
        self._parent.say(child.Quota(name, remaining, reset_at, retry_after))

    def sleep(self, seconds: float) -> None:
        """Waits so long. Raises Stopped, errors.TimedOut at the deadline."""
        until = time.monotonic() + seconds
        if self._deadline is not None and until > self._deadline:
            raise TimedOut("The remote asks for more patience than the deadline leaves", retry_after=seconds)
        while (left := until - time.monotonic()) > 0:
            if self._parent.stop_asked():
                raise Stopped
            time.sleep(min(left, _NAP_S))

    def _ask(self, name: str) -> float:
        self._parent.say(child.Permit(name))
        return self._parent.hear(child.Wait).seconds


def hold(plan: str, reason: str, details: Mapping[str, Any]) -> None:
    """Nobody has confirmed anything."""
    raise Held(f"Held: {reason}", plan=plan, reason=reason, **details)


@dataclass(kw_only=True)
class Context:
    """What a source is made from. `spec` is the kind's Spec, `secrets` are in clear, `mark` is the last Outcome's
    under this configuration, `resumed` says that this is not the job's beginning (then nothing will be deleted),
    `deadline` is on the monotonic clock, `work` a folder that stays while the job may be resumed. `counters` tells
    what the job came to so far. `confirm(plan hash, reason, details)` raises errors.Held, or errors.PlanChanged, unless
    a person has seen that plan."""

    spec: Any
    options: kinds.Options
    secrets: Mapping[str, str]
    mark: Any | None
    resumed: bool
    known: Known
    log: Callable[[str, str], None]
    stopped: Callable[[], bool]
    deadline: float | None
    remote: Remote
    work: Path
    job: str
    collection: str
    counters: Callable[[], jobs.Counters]
    confirm: Callable[[str, str, Mapping[str, Any]], None] = hold


Make = Callable[[Context], Source]
