"""The planner of folder syncs: two listings and a record side by side, actions out, in the memory of one folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from domain.plans.files import (
    SELF,
    Action,
    Contents,
    Counts,
    Entry,
    Group,
    Spec,
    Step,
    Verdict,
    changed_since,
    join,
    split,
)


class _Level:
    """A folder whose inside is being planned. `pending` is what its own rows said of the folders in it."""

    __slots__ = (
        "deleting",
        "kept",
        "make",
        "pending",
        "replacement",
        "settle",
        "spared",
        "step",
        "touched",
        "wants",
    )

    def __init__(self, step: Step, deleting: bool) -> None:
        self.step = step
        self.deleting = deleting
        self.spared = False
        self.make: Action | None = None
        self.replacement: Action | None = None
        self.settle = self.touched = self.kept = False
        self.pending: dict[bytes, Action | None] = {}
        self.wants: dict[bytes, Entry] | None = None

    def want(self, name: bytes) -> Entry:
        """The source's entry of a folder in this one."""
        if self.wants is None:
            source = self.step.source
            assert source is not None
            self.wants = {entry.name: entry for entry in source.entries() if entry.kind == "dir"}
        return self.wants[name]


_SPARE = Action("blocked", b"", "spared")
_SETTLE = Action("settle", b"", "attributes")


class Planner:
    """Yields the groups of a plan and counts what is in it.

    `safe` is false when something could not be read in a scan: then nothing is deleted. `recorded` says that a sync of
    this pair came to its end before: then what is not in the record was made since. `moved`, that the target is
    another folder than the record's, so that change times tell nothing. `current` stays true as long as the record is
    what the target looks like.
    """

    def __init__(
        self,
        spec: Spec,
        contents: Contents | None = None,
        *,
        safe: bool = True,
        recorded: bool = False,
        moved: bool = False,
    ) -> None:
        self.counts = Counts()
        self.current = recorded
        self._contents = contents if spec.by_content else None
        self._by_content = spec.by_content
        self._deleting = spec.delete_missing_in_target and safe
        self._safe = safe
        self._recorded = recorded
        self._moved = moved
        self._levels: list[_Level] = []

    def groups(self, steps: Iterable[Step]) -> Iterator[Group]:
        for step in steps:
            if step.source is None and step.target is None:
                self.current = False
                continue
            if self._levels and not _within(step.path, self._levels[-1].step.path):
                yield from self._leave(step.path)
            for group in self._enter(step):
                self.counts.actions += len(group.actions)
                yield group
        yield from self._leave(None)

    # Into a folder.

    def _enter(self, step: Step) -> Iterable[Group]:
        parent = self._levels[-1] if self._levels else None
        level = _Level(step, parent.deleting if parent else self._deleting)
        self._levels.append(level)
        self._inherit(level, parent)
        source, target, record = step.source, step.target, step.record
        if target is not None:
            self.counts.target_files += target.files
            if record is None or record.state != target.state:
                self.current = False
        if source is not None:
            self.counts.files += source.files
        different = self._contents(step.path) if self._contents and source and target else {}
        if source is not None and target is not None and source.body == target.body and not different:
            self.counts.same += source.files
            return ()
        if (source is not None and source.unreadable) or (target is not None and target.unreadable):
            level.kept = True
            return split(step.path, [level.make] if level.make else [])
        if target is None and source is not None:
            actions = self._all_new(level, source.entries())
        else:
            actions = [action for action in self._rows(level, different) if action is not None]
        if level.make is not None:
            actions.insert(0, level.make)
        return split(step.path, actions)

    def _inherit(self, level: _Level, parent: _Level | None) -> None:
        """What the row of this folder in the folder above decided."""
        step = level.step
        said = parent.pending.pop(step.path.rpartition(b"/")[2], None) if parent is not None else None
        if parent is not None and parent.spared:
            level.spared = True
        if said is not None and said.op == "replace":
            level.replacement, level.deleting = said, self._safe
        elif said is _SPARE:
            level.spared = True
        elif said is _SETTLE:
            level.settle = True
        if step.source is not None and step.target is None:
            self.counts.folders += 1
            level.make = said if said is not None and said.op == "mkdir" else self._mkdir(level, parent)
            if parent is not None:
                parent.touched = True

    def _mkdir(self, level: _Level, parent: _Level | None, reason: str = "missing in target") -> Action:
        want = self._wanted(level, parent)
        return Action("mkdir", SELF, reason, "dir", 0, want.mtime_ns, want.mode)

    def _wanted(self, level: _Level, parent: _Level | None) -> Entry:
        return level.want(SELF) if parent is None else parent.want(level.step.path.rpartition(b"/")[2])

    # Its rows.

    def _rows(self, level: _Level, different: Mapping[bytes, Verdict]) -> Iterator[Action | None]:
        step = level.step
        theirs = {entry.name: entry for entry in step.record.entries()} if step.record is not None else {}
        ours: Sequence[Entry] = step.source.entries() if step.source is not None else ()
        found: Sequence[Entry] = step.target.entries() if step.target is not None else ()
        at, end = 0, len(found)
        for wanted in ours:
            while at < end and found[at].name < wanted.name:
                yield self._extra(level, found[at], theirs.get(found[at].name))
                at += 1
            if at < end and found[at].name == wanted.name:
                yield self._both(level, wanted, found[at], theirs.get(wanted.name), different.get(wanted.name))
                at += 1
            else:
                yield self._missing(level, wanted)
        for entry in found[at:]:
            yield self._extra(level, entry, theirs.get(entry.name))

    def _all_new(self, level: _Level, entries: Sequence[Entry]) -> list[Action]:
        actions = [
            Action("create", new.name, "missing in target", new.kind, new.size, new.mtime_ns, new.mode, new.link)
            for new in entries
            if new.kind in ("file", "link")
        ]
        counts = self.counts
        counts.created += len(actions)
        counts.bytes += sum(action.size for action in actions)
        counts.skipped += sum(entry.kind == "other" for entry in entries)
        level.touched = level.touched or bool(actions)
        return actions

    def _missing(self, level: _Level, wanted: Entry) -> Action | None:
        if wanted.kind == "dir":
            return None
        if wanted.kind == "other":
            self.counts.skipped += 1
            return None
        level.touched = True
        return self._put("create", wanted, "missing in target")

    def _extra(self, level: _Level, found: Entry, then: Entry | None) -> Action | None:
        if found.kind == "dir":
            return None
        if not level.deleting or level.spared:
            self.counts.kept += 1
            level.kept = True
            return None
        level.touched = True
        self.counts.deleted += 1
        conflict = self._conflict(found, then)
        was = (found.kind, found.size, found.mtime_ns)
        return Action("delete", found.name, "missing in source", found.kind, conflict=conflict, was=was)

    def _both(
        self, level: _Level, wanted: Entry, found: Entry, then: Entry | None, verdict: Verdict | None
    ) -> Action | None:
        if wanted.kind == "other":
            self.counts.skipped += 1
            if found.kind == "dir":
                level.pending[found.name] = _SPARE
            return None
        if wanted.kind == found.kind == "dir":
            if (wanted.mode, wanted.mtime_ns) != (found.mode, found.mtime_ns):
                if wanted.name == SELF:
                    level.settle = True
                else:
                    level.pending[wanted.name] = _SETTLE
            return None
        if wanted.kind != found.kind:
            return self._other_kind(level, wanted, found, then)
        if verdict == "source":
            self.counts.blocked += 1
            return Action("blocked", wanted.name, "the source could not be read")
        reason = self._difference(wanted, found, verdict)
        if reason is not None:
            level.touched = True
            return self._put("update", wanted, reason, found, then)
        return self._attributes(wanted, found)

    def _difference(self, wanted: Entry, found: Entry, verdict: Verdict | None) -> str | None:
        """Why the content is to be copied, or None."""
        if wanted.link != found.link:
            return "link"
        if wanted.kind == "link":
            return None
        if wanted.size != found.size:
            return "size"
        if self._by_content:
            return None if verdict is None else "content" if verdict == "differs" else "unreadable in target"
        return "time" if wanted.mtime_ns != found.mtime_ns else None

    def _attributes(self, wanted: Entry, found: Entry) -> Action | None:
        reason = "time" if wanted.mtime_ns != found.mtime_ns else "mode" if wanted.mode != found.mode else None
        if reason is None or (reason == "mode" and wanted.kind == "link"):
            self.counts.same += 1
            return None
        self.counts.updated += 1
        was = (found.kind, found.size, found.mtime_ns)
        return Action(
            "attributes", wanted.name, reason, wanted.kind, 0, wanted.mtime_ns, wanted.mode, wanted.link, was=was
        )

    def _other_kind(self, level: _Level, wanted: Entry, found: Entry, then: Entry | None) -> Action | None:
        was = (found.kind, found.size, found.mtime_ns)
        if found.kind == "dir":
            facts = (wanted.kind, wanted.size, wanted.mtime_ns, wanted.mode, wanted.link)
            level.pending[found.name] = Action("replace", wanted.name, "kind", *facts, was=was)
            return None
        level.touched = True
        if wanted.kind == "dir":
            self.counts.updated += 1
            conflict = self._conflict(found, then)
            level.pending[wanted.name] = Action(
                "mkdir", SELF, "kind", "dir", 0, wanted.mtime_ns, wanted.mode, conflict=conflict, was=was
            )
            return None
        return self._put("update", wanted, "kind", found, then)

    def _put(
        self, op: str, wanted: Entry, reason: str, found: Entry | None = None, then: Entry | None = None
    ) -> Action:
        self.counts.bytes += wanted.size
        was = None if found is None else (found.kind, found.size, found.mtime_ns)
        conflict = found is not None and self._conflict(found, then)
        facts = (wanted.kind, wanted.size, wanted.mtime_ns, wanted.mode, wanted.link, conflict, was)
        if found is None:
            self.counts.created += 1
            return Action("create", wanted.name, reason, *facts)
        self.counts.updated += 1
        return Action("update", wanted.name, reason, *facts)

    def _conflict(self, found: Entry, then: Entry | None) -> bool:
        if not (self._recorded if then is None else changed_since(found, then, self._moved)):
            return False
        self.counts.conflicts += 1
        return True

    # Out of a folder.

    def _leave(self, path: bytes | None) -> Iterator[Group]:
        """Closes the folders that a path does not lie in."""
        while self._levels and not (path is not None and _within(path, self._levels[-1].step.path)):
            for group in self._close(self._levels.pop()):
                self.counts.actions += len(group.actions)
                yield group

    def _close(self, level: _Level) -> Iterator[Group]:
        parent = self._levels[-1] if self._levels else None
        step = level.step
        if step.source is not None:
            if level.make is not None or level.settle or level.touched:
                want = self._wanted(level, parent)
                settle = Action("settle", SELF, "attributes", "dir", 0, want.mtime_ns, want.mode)
                yield Group(step.path, [settle])
            return
        assert step.target is not None
        if parent is None:
            return
        name = step.path.rpartition(b"/")[2]
        hidden = step.target.hidden or step.target.unreadable
        if level.kept or level.spared or hidden or not level.deleting:
            parent.kept = True
            if level.replacement is not None:
                self.counts.blocked += 1
                reason = "a folder that has to stay is in the place of a file"
                yield Group(parent.step.path, [Action("blocked", name, reason)])
            return
        parent.touched = True
        self.counts.folders += 1
        if level.replacement is None:
            yield Group(parent.step.path, [Action("rmdir", name, "missing in source", "dir")])
            return
        self.counts.created += 1
        self.counts.bytes += level.replacement.size
        yield Group(parent.step.path, [level.replacement])


def _within(path: bytes, folder: bytes) -> bool:
    return not folder or path.startswith(folder + b"/")


def shown(group: Group) -> Iterator[tuple[bytes, Action]]:
    """The actions of a group that a person is told of, with their paths."""
    for action in group.actions:
        if action.op != "settle":
            yield join(group.path, action.name), action
