"""Plans of folder syncs: by example, and their algebra on random trees that are kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import errors
from domain.plans import files
from domain.plans.files import SELF, Action, Digest, Entry, Group, Guards, Last, Spec, Verdict, holds, join, show, steps
from domain.plans.files_planner import Planner
from domain.plans.patterns import Scope


@dataclass
class Node:
    """A file (`data`), a link (`link`), or a folder (`inner`)."""

    data: bytes = b""
    link: bytes = b""
    inner: dict[bytes, Node] | None = None
    time: int = 1
    mode: int = 0o644
    changed: int = 0

    @property
    def kind(self) -> files.Kind:
        return "dir" if self.inner is not None else "link" if self.link else "file"

    def entry(self, name: bytes) -> Entry:
        return Entry(name, self.kind, len(self.data), self.time, self.mode, self.link, self.changed)


def folder(time: int = 1, **inner: Node) -> Node:
    return Node(inner={name.encode(): node for name, node in inner.items()}, time=time, mode=0o755)


@dataclass
class Seen:
    path: bytes
    listed: list[Entry]
    hidden: bool = False
    unreadable: bool = False
    files: int = field(init=False)
    folders: int = field(init=False)

    def __post_init__(self) -> None:
        self.folders = sum(entry.kind == "dir" for entry in self.listed)
        self.files = len(self.listed) - self.folders

    @property
    def body(self) -> bytes:
        return repr([replace_state(entry) for entry in self.listed]).encode()

    @property
    def state(self) -> bytes:
        return repr(self.listed).encode()

    def entries(self) -> list[Entry]:
        return self.listed


def replace_state(entry: Entry) -> tuple[object, ...]:
    return (entry.name, entry.kind, entry.size, entry.mtime_ns, entry.mode, entry.link)


def listing(root: Node | None, scope: Scope, path: bytes = b"") -> Iterator[Seen]:
    if root is None:
        return
    assert root.inner is not None
    names = scope.visible(path, sorted(root.inner))
    entries = [root.inner[name].entry(name) for name in names]
    if not path:
        entries = sorted([*entries, root.entry(SELF)], key=lambda entry: entry.name)
    yield Seen(path, entries, hidden=len(names) < len(root.inner))
    for name in names:
        if root.inner[name].kind == "dir":
            yield from listing(root.inner[name], scope, join(path, name))


def at(root: Node, path: bytes) -> Node:
    for part in path.split(b"/") if path else ():
        assert root.inner is not None
        root = root.inner[part]
    return root


def compared(spec: Spec, source: Node, target: Node) -> Mapping[bytes, Mapping[bytes, Verdict]]:
    """For each folder, the files of one size whose bytes differ."""
    found: dict[bytes, dict[bytes, Verdict]] = {}
    for step in steps(listing(source, spec.scope()), listing(target, spec.scope())):
        if step.source is None or step.target is None:
            continue
        ours, theirs = at(source, step.path).inner or {}, at(target, step.path).inner or {}
        for entry in step.source.entries():
            one, other = ours.get(entry.name), theirs.get(entry.name)
            if one is None or other is None or not one.kind == other.kind == "file":
                continue
            if len(one.data) == len(other.data) and one.data != other.data:
                found.setdefault(step.path, {})[entry.name] = "differs"
    return found


def make(spec: Spec, source: Node, target: Node | None, record: Node | None = None, safe: bool = True) -> Made:
    contents = compared(spec, source, target) if target is not None else {}
    planner = Planner(spec, lambda path: contents.get(path, {}), safe=safe, recorded=record is not None)
    scope = spec.scope()
    groups = list(planner.groups(steps(listing(source, scope), listing(target, scope), listing(record, scope))))
    return Made(groups, planner)


@dataclass
class Made:
    groups: list[Group]
    planner: Planner

    @property
    def actions(self) -> list[tuple[str, str, str]]:
        return [(a.op, show(join(g.path, a.name)), a.reason) for g in self.groups for a in g.actions]


def apply(groups: list[Group], source: Node, target: Node) -> None:
    """In the order of the engine: copies, then what is done in order, then modes and times of folders."""
    actions = [(group.path, action) for group in groups for action in group.actions]
    for path, action in actions:
        if action.op == "mkdir" and path:
            above, _, name = path.rpartition(b"/")
            parent = at(target, above).inner
            assert parent is not None
            assert name not in parent or action.was is not None
            parent[name] = Node(inner={}, mode=0o700, time=99)
        elif action.op in ("create", "update", "attributes"):
            put(path, action, source, target)
    for path, action in actions:
        inner = at(target, path).inner
        assert inner is not None
        if action.op == "delete":
            assert inner.pop(action.name).kind != "dir"
        elif action.op in ("rmdir", "replace"):
            assert inner[action.name].inner == {}
            del inner[action.name]
            if action.op == "replace":
                put(path, action, source, target)
    for path, action in actions:
        if action.op == "settle":
            node = at(target, path)
            node.mode, node.time = action.mode, action.mtime_ns


def put(path: bytes, action: Action, source: Node, target: Node) -> None:
    ours, theirs = at(source, path).inner, at(target, path).inner
    assert ours is not None
    assert theirs is not None
    assert (action.op == "create") == (action.name not in theirs) or action.op == "replace"
    node = replace(ours[action.name])
    if action.op == "attributes":
        assert (node.data, node.link) == (theirs[action.name].data, theirs[action.name].link)
    theirs[action.name] = node


def seen(root: Node, scope: Scope) -> dict[bytes, tuple[object, ...]]:
    """Everything in scope, by path."""
    found = {}
    for one in listing(root, scope):
        for entry in one.listed:
            node = at(root, join(one.path, entry.name))
            found[join(one.path, entry.name)] = (*replace_state(entry)[1:], node.data)
    return found


def hidden(root: Node, scope: Scope, path: bytes = b"") -> dict[bytes, Node]:
    """Everything out of scope, by path."""
    found: dict[bytes, Node] = {}
    visible = set(scope.visible(path, sorted(root.inner or {})))
    for name, node in (root.inner or {}).items():
        if name not in visible:
            found[join(path, name)] = node
        elif node.kind == "dir":
            found |= hidden(node, scope, join(path, name))
    return found


NAMES = st.sampled_from([b"a", b"b", b"b!", b"keep.log", b"\xff\n", b"z"])
LEAVES = st.builds(
    Node,
    data=st.sampled_from([b"", b"1", b"2", b"22"]),
    link=st.sampled_from([b"", b"", b"", b"to"]),
    time=st.integers(1, 3),
    mode=st.sampled_from([0o644, 0o600]),
).map(lambda node: Node(link=node.link, time=node.time, mode=0o777) if node.link else node)


def folders(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        lambda children, time, mode: Node(inner=children, time=time, mode=mode),
        st.dictionaries(NAMES, inner, max_size=4),
        st.integers(1, 3),
        st.sampled_from([0o755, 0o700]),
    )


TREES = folders(st.recursive(LEAVES, folders, max_leaves=10))


def spec(**options: object) -> Spec:
    return Spec(source_directory="/s", target_directory="/t", **options)  # type: ignore[arg-type]


@given(TREES, TREES, st.booleans(), st.booleans())
def test_a_mirror_is_its_source_and_a_second_plan_is_empty(
    source: Node, target: Node, verify: bool, excludes: bool
) -> None:
    wanted = spec(
        delete_missing_in_target=True, verify_integrity=verify, exclude_patterns=("*.log",) if excludes else ()
    )
    scope = wanted.scope()
    spared = hidden(target, scope)
    made = make(wanted, source, target)
    if not verify:  # then what differs only in content is not seen
        for path, names in compared(wanted, source, target).items():
            for name in names:
                at(source, join(path, name)).time += 10
        made = make(wanted, source, target)
    apply(made.groups, source, target)
    assert hidden(target, scope) == spared  # nothing excluded is ever touched
    left = seen(target, scope).keys() - seen(source, scope).keys()
    around = {path.rpartition(b"/")[0] for path in spared}
    assert all(any(inner == path or inner.startswith(path + b"/") for inner in around) for path in left)
    again = make(wanted, source, target)
    if made.planner.counts.blocked:
        assert {op for op, _, _ in again.actions} == {"blocked"}
    else:
        assert {path: seen(target, scope)[path] for path in seen(source, scope)} == seen(source, scope)
        assert again.actions == []


@given(TREES, TREES)
def test_without_deletions_nothing_is_lost(source: Node, target: Node) -> None:
    wanted = spec()
    before = seen(target, Scope())
    made = make(wanted, source, target)
    apply(made.groups, source, target)
    after = seen(target, Scope())
    replaced = {join(group.path, a.name) for group in made.groups for a in group.actions if a.op in ("replace",)}
    for path in before.keys() - after.keys():
        assert any(path.startswith(one + b"/") for one in replaced)
    assert {path: after[path] for path in seen(source, Scope())} == seen(source, Scope())
    assert make(wanted, source, target).actions == []


@given(TREES, TREES)
def test_after_a_read_error_nothing_is_deleted(source: Node, target: Node) -> None:
    made = make(spec(delete_missing_in_target=True), source, target, safe=False)
    assert not {"delete", "rmdir", "replace"} & {op for op, _, _ in made.actions}


@given(TREES, TREES)
def test_counts_are_those_of_the_actions(source: Node, target: Node) -> None:
    made = make(spec(delete_missing_in_target=True), source, target, record=target)
    ops = [op for op, _, _ in made.actions]
    counts = made.planner.counts
    assert counts.created == ops.count("create") + ops.count("replace")
    folders_for_files = sum(op == "mkdir" and reason == "kind" for op, _, reason in made.actions)
    assert counts.updated == ops.count("update") + ops.count("attributes") + folders_for_files
    assert counts.deleted == ops.count("delete")
    assert counts.actions == len(ops)
    assert counts.conflicts == 0  # the target is as it was recorded


@given(TREES, TREES)
def test_a_plan_survives_its_encoding(source: Node, target: Node) -> None:
    groups = make(spec(delete_missing_in_target=True), source, target).groups
    digest = Digest(spec())
    plan = digest.header + b"".join(map(digest.group, groups))
    found, end = [], files.frame(plan, 0).end
    while end < len(plan):
        here = files.frame(plan, end)
        found.append(files.decode(plan, here))
        end = here.end
    assert found == groups


def test_actions_say_why() -> None:
    source = folder(
        new=Node(b"1"),
        longer=Node(b"22"),
        other=Node(b"x"),
        touched=Node(b"s", time=5),
        moded=Node(b"s", mode=0o600),
        pointer=Node(link=b"there"),
        was_file=folder(x=Node(b"x")),
        was_folder=Node(b"f"),
        fresh=folder(deep=folder(leaf=Node(b"l"))),
    )
    target = folder(
        longer=Node(b"1"),
        other=Node(b"y"),
        touched=Node(b"s"),
        moded=Node(b"s"),
        pointer=Node(link=b"here"),
        was_file=Node(b"f"),
        was_folder=folder(y=Node(b"y")),
        gone=Node(b"g"),
        left=folder(z=Node(b"z")),
    )
    assert make(spec(delete_missing_in_target=True), source, target).actions == [
        ("delete", "gone", "missing in source"),
        ("update", "longer", "size"),
        ("attributes", "moded", "mode"),
        ("create", "new", "missing in target"),
        ("update", "other", "content"),
        ("update", "pointer", "link"),
        ("attributes", "touched", "time"),
        ("mkdir", "fresh", "missing in target"),
        ("mkdir", "fresh/deep", "missing in target"),
        ("create", "fresh/deep/leaf", "missing in target"),
        ("settle", "fresh/deep", "attributes"),
        ("settle", "fresh", "attributes"),
        ("delete", "left/z", "missing in source"),
        ("rmdir", "left", "missing in source"),
        ("mkdir", "was_file", "kind"),
        ("create", "was_file/x", "missing in target"),
        ("settle", "was_file", "attributes"),
        ("delete", "was_folder/y", "missing in source"),
        ("replace", "was_folder", "kind"),
        ("settle", "", "attributes"),
    ]


def test_without_verification_sizes_and_times_decide() -> None:
    source, target = folder(same=Node(b"x"), newer=Node(b"x", time=2)), folder(same=Node(b"y"), newer=Node(b"x"))
    for options in ({"verify_integrity": False}, {"mode": "incremental"}):
        assert make(spec(**options), source, target).actions == [
            ("update", "newer", "time"),
            ("settle", "", "attributes"),
        ]


def test_a_target_changed_since_the_record_is_a_conflict() -> None:
    source = folder(edited=Node(b"new"), untouched=Node(b"new"), ours=Node(b"1"))
    target = folder(edited=Node(b"mine", time=7), untouched=Node(b"old"), ours=Node(b"1"), added=Node(b"a"))
    record = folder(edited=Node(b"old"), untouched=Node(b"old"), ours=Node(b"0"))
    made = make(spec(delete_missing_in_target=True), source, target, record)
    conflicts = {a.name: a.conflict for group in made.groups for a in group.actions if a.op in ("update", "delete")}
    assert conflicts == {b"edited": True, b"untouched": False, b"added": True}
    assert made.planner.counts.conflicts == 2


def test_a_changed_inode_with_the_old_time_is_a_conflict_too() -> None:
    source, target = folder(x=Node(b"new")), folder(x=Node(b"bad", changed=5))
    record = folder(x=Node(b"old", changed=4))
    assert make(spec(), source, target, record).planner.counts.conflicts == 1
    assert make(spec(), source, target, folder(x=Node(b"old", changed=5))).planner.counts.conflicts == 0


def test_the_first_sync_has_no_conflicts() -> None:
    assert make(spec(), folder(x=Node(b"new")), folder(x=Node(b"old"))).planner.counts.conflicts == 0


def test_a_target_that_is_not_there_is_made() -> None:
    made = make(spec(), folder(x=Node(b"1")), None)
    assert made.actions == [
        ("mkdir", "", "missing in target"),
        ("create", "x", "missing in target"),
        ("settle", "", "attributes"),
    ]


def test_large_folders_come_in_groups_that_can_be_shared() -> None:
    source = folder(**{f"n{number:04}": Node(b"1") for number in range(1200)})
    groups = make(spec(), source, folder()).groups
    assert [len(group.actions) for group in groups] == [512, 512, 176, 1]


def test_guards() -> None:
    wanted, guards = spec(), Guards(max_delete_count=10)
    held = [
        holds(wanted, guards, files.Counts(files=0), 1, Last(5, 1)),
        holds(wanted, guards, files.Counts(files=9), 2, Last(5, 1)),
        holds(wanted, guards, files.Counts(files=9, target_files=10, deleted=6), 1, Last(5, 1)),
        holds(wanted, guards, files.Counts(files=9, target_files=100, deleted=11), 1, None),
    ]
    assert all(held)
    assert holds(wanted, guards, files.Counts(files=9, target_files=10, deleted=5), 1, Last(5, 1)) is None
    assert holds(wanted, guards, files.Counts(files=0), 1, Last(0, 1)) is None
    assert holds(wanted, guards, files.Counts(files=0), 1, None) is None


def test_a_selective_sync_needs_sub_paths() -> None:
    with pytest.raises(errors.Invalid):
        spec(mode="selective").scope()


def test_paths_are_shown_on_one_line() -> None:
    assert show(b"a\nb\x1b[0m\xff\xe2\x80\xae") == "a\\nb\\x1b[0m\\xff\\u202e"
    assert len(show(b"x" * 5000)) == 301
