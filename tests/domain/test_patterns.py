"""Exclude patterns are fnmatch's, in time linear in the name; sub-paths choose what else is seen."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import errors
from domain.plans.patterns import Patterns, Scope

_PATTERN = st.text(alphabet="ab*?[]!-./é\udc80", max_size=10).filter(
    lambda text: "\udc80" not in text and sum(map(text.count, "*?[")) <= 16
)
_PATH = st.text(alphabet="ab-!]./é\udc80[*", min_size=1, max_size=14)


def _fnmatch(path: str, pattern: str) -> bool:
    name = path.rpartition("/")[2]
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(name, pattern)


@given(st.lists(_PATTERN, max_size=4), st.lists(_PATH, min_size=1, max_size=5))
def test_patterns_are_those_of_fnmatch(patterns: list[str], paths: list[str]) -> None:
    matcher = Patterns(patterns)
    for path in paths:
        assert any(_fnmatch(path, pattern) for pattern in patterns) == matcher.match(path)


@pytest.mark.parametrize(
    "patterns",
    [
        ["*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"],
        ["*" + "a" * 254 + "b"],
        ["*a" + "?" * 14],
        ["[ab][!b]*[a-b]*[!a]*"],
        ["*" + "ab" * 100 + "?" * 15] * 100,
    ],
)
def test_no_pattern_makes_a_name_cost_more_than_its_length(patterns: list[str]) -> None:
    matcher = Patterns(patterns)
    names = ["a" * 255, "ab" * 127, "b" + "a" * 254, "aab" * 85]
    for name in names:
        before = matcher.computed
        matcher.among("", [name])
        assert matcher.computed - before <= len(name)  # one step for each character, at most


def test_what_was_worked_out_is_remembered() -> None:
    matcher = Patterns(["*.log", "build*"])
    matcher.among("some/folder/", ["a.log", "builds"])
    before = matcher.computed
    assert matcher.among("some/folder/", ["a.log", "builds"]) == {"a.log", "builds"}
    assert matcher.computed == before


@pytest.mark.parametrize(
    "patterns", [["a"] * 101, ["a" * 257], ["*?" * 8 + "*"], ["a\0b"], ["\ud800"], ["[" * 17]], ids=repr
)
def test_patterns_are_limited(patterns: list[str]) -> None:
    with pytest.raises(errors.Invalid):
        Patterns(patterns)


def test_limits_are_inclusive() -> None:
    assert Patterns(["*" * 16 + "a" * 240] * 100).match("a" * 240)


def test_names_of_our_own_are_never_seen() -> None:
    scope = Scope()
    assert scope.whole
    assert scope.visible(b"", [b".undrift", b".undrift-tmp-1", b".undrifted", b"a"]) == [b".undrifted", b"a"]


def test_an_excluded_folder_covers_what_lies_in_it() -> None:
    scope = Scope(["cache", "*.tmp", "docs/draft*"])
    assert scope.visible(b"docs", [b"draft1", b"final", b"x.tmp"]) == [b"final"]
    assert scope.covers(b"docs/final")
    assert not scope.covers(b"a/cache/b/c")
    assert not scope.covers(b"docs/draft/x")


def test_sub_paths_choose() -> None:
    scope = Scope([], ["a/b", "a/b/c", "x"])
    assert scope.visible(b"", [b"a", b"q", b"x"]) == [b"a", b"x"]
    assert scope.visible(b"a", [b"b", b"z"]) == [b"b"]
    assert scope.visible(b"a/b", [b"c", b"d"]) == [b"c", b"d"]
    assert scope.visible(b"x/y", [b"1"]) == [b"1"]
    assert scope.visible(b"q", [b"1"]) == []
    assert [scope.covers(path) for path in (b"a", b"a/b/q", b"a/z", b"q")] == [True, True, False, False]


@pytest.mark.parametrize("entity", ["", "/a", "a//b", "a/../b", ".", "a\0", "a\nb", "\ud800", "b" * 256], ids=repr)
def test_a_sub_path_is_relative_and_plain(entity: str) -> None:
    with pytest.raises(errors.Invalid):
        Scope([], [entity])
