"""This node: its token is renewed once for each that is new, and what was replaced never counts again."""

from __future__ import annotations

from domain import nodes
from tests.domain.given import fold, given, held

FIRST = nodes.TokenRenewed("id", "sealed:1", "b", ("a",))
SECOND = nodes.TokenRenewed("id", "sealed:2", "c", ("b",))


def renew(mark: str, before: str) -> nodes.Renew:
    return nodes.Renew("id", f"sealed:{mark}", mark, before)


def test_a_token_is_renewed() -> None:
    given(nodes).when(nodes.Renew("id", "sealed:1", "b", "a")).then(FIRST)
    given(nodes, FIRST).when(nodes.Renew("id", "sealed:2", "c", "b")).then(SECOND)
    assert held(nodes, [FIRST]) == set()


def test_said_twice() -> None:
    given(nodes, FIRST).when(renew("b", "b")).then()
    given(nodes).when(renew("a", "a")).then()


def test_whoever_had_not_heard_of_the_one_before_replaces_both() -> None:
    given(nodes, FIRST).when(renew("c", "a")).then(nodes.TokenRenewed("id", "sealed:c", "c", ("a", "b")))


def test_what_was_replaced_is_overruled_and_nothing_else() -> None:
    node = fold(nodes, [FIRST, SECOND])
    assert [mark for mark in "abcd" if node.overrules(mark)] == ["a", "b"]
    assert not fold(nodes, []).overrules("a")


def test_settings_that_say_something_new_count_and_can_be_replaced_too() -> None:
    given(nodes, FIRST).when(renew("e", "d")).then(nodes.TokenRenewed("id", "sealed:e", "e", ("b", "d")))


def test_back_to_one_from_before() -> None:
    given(nodes, FIRST).when(renew("a", "b")).then(nodes.TokenRenewed("id", "sealed:a", "a", ("b",)))
    node = fold(nodes, [FIRST, nodes.TokenRenewed("id", "sealed:a", "a", ("b",))])
    assert node.mark == "a"
    assert node.overrules("a")
