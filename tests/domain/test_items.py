"""Items and collections: what becomes a fact of what connectors say, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from domain import collections, errors, items

MONDAY, TUESDAY = "2026-01-05T00:00:00.000000Z", "2026-01-06T00:00:00.000000Z"


def put(value: Any, revision: str | None = None, expect: int | None = None) -> items.Put:
    content = items.canonical({"value": value})
    return items.Put("c", "things", "a", Raw(content), items.digest(content), revision, "outside", expect)


def remove(revision: str | None = None, expect: int | None = None, reason: str = "deleted") -> items.Remove:
    return items.Remove("c", "things", "a", reason, "outside", revision, expect)


def said(*commands: items.Command) -> tuple[items.Item, list[items.Event]]:
    """The state after these, and what became a fact."""
    state, events = items.initial, []
    for command in commands:
        for event in items.decide(command, state):
            state = items.evolve(state, event)
            events.append(event)
    return state, events


def names(events: list[items.Event]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.number) for event in events]


def test_versions_count_on_over_a_deletion() -> None:
    _, events = said(put(1), put(2), remove(), put(2), remove())
    assert names(events) == [("Created", 1), ("Updated", 2), ("Deleted", 3), ("Created", 4), ("Deleted", 5)]


def test_what_is_so_already_is_no_fact() -> None:
    assert names(said(put(1), put(1), put(1, TUESDAY))[1]) == [("Created", 1)]
    assert said(remove())[1] == []
    assert names(said(put(1), remove(), remove())[1]) == [("Created", 1), ("Deleted", 2)]


def test_news_older_than_what_is_kept_are_none() -> None:
    assert names(said(put(1, TUESDAY), put(2, MONDAY))[1]) == [("Created", 1)]
    assert names(said(put(1, TUESDAY), remove(MONDAY))[1]) == [("Created", 1)]
    assert names(said(put(1, MONDAY), put(2, MONDAY), put(3, TUESDAY))[1]) == [
        ("Created", 1),
        ("Updated", 2),
        ("Updated", 3),
    ]


@pytest.mark.parametrize("deletion", [remove(), remove(TUESDAY)])
def test_what_was_deleted_does_not_come_back_by_older_news(deletion: items.Remove) -> None:
    assert names(said(put(1, TUESDAY), deletion, put(1, MONDAY))[1]) == [("Created", 1), ("Deleted", 2)]
    assert names(said(put(1, TUESDAY), deletion, put(1, TUESDAY))[1]) == [
        ("Created", 1),
        ("Deleted", 2),
        ("Created", 3),
    ]


def test_without_a_revision_nothing_is_older() -> None:
    assert names(said(put(1, TUESDAY), put(2), put(3, MONDAY))[1]) == [("Created", 1), ("Updated", 2), ("Updated", 3)]


def test_an_expected_version_decides_alone() -> None:
    state, _ = said(put(1, TUESDAY))
    assert names(list(items.decide(put(2, MONDAY, expect=1), state))) == [("Updated", 2)]
    for command in (put(2, expect=0), remove(expect=2), put(1, expect=3)):
        with pytest.raises(errors.Conflict):
            items.decide(command, state)
    assert items.decide(put(1, expect=0), items.initial)


def test_content_has_a_largest_size() -> None:
    fits = "x" * (items.MAX_BYTES - len('{"value":""}'))
    assert said(put(fits))[1]
    with pytest.raises(errors.TooLarge, match="196609 bytes"):
        said(put(fits + "x"))


@pytest.mark.parametrize("name", ["", "a\0b", "x" * (items.MAX_NAME + 1), "\ud800"])
def test_a_name_must_be_fit_to_be_kept(name: str) -> None:
    for entity, item in (("things", name), (name, "a")):
        with pytest.raises(errors.Invalid):
            items.check(entity, item, 2)
    items.check("things", "x" * items.MAX_NAME, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_equal_contents_have_one_text(content: dict[str, Any]) -> None:
    shuffled = dict(reversed(content.items()))
    assert items.canonical(content) == items.canonical(shuffled)


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=2, max_size=2, unique=True))
def test_each_item_has_a_stream_of_its_own(pair: list[tuple[str, str]]) -> None:
    first, second = ((entity.replace("\0", ""), item.replace("\0", "")) for entity, item in pair)
    one, other = items.stream_id("c", *first), items.stream_id("c", *second)
    assert (one == other) == (first == second)
    assert one.startswith("c.")
    assert len(one) == 34


@given(st.lists(st.sampled_from([put(1), put(2), put(1, MONDAY), put(3, TUESDAY), remove(), remove(TUESDAY)])))
def test_the_last_event_says_all_of_an_item(commands: list[items.Command]) -> None:
    state, events = said(*commands)
    assert state == (items.evolve(items.initial, events[-1]) if events else items.initial)
    assert [event.number for event in events] == list(range(1, len(events) + 1))


# Collections.


def observed(*commands: collections.Observe) -> collections.Collection:
    state = collections.initial
    for command in commands:
        for event in collections.decide(command, state):
            state = collections.evolve(state, event)
    return state


def test_a_mark_belongs_to_a_configuration() -> None:
    state = observed(collections.Observe(Raw(b"1"), "a", True))
    assert (state.mark_for("a"), state.mark_for("b"), state.complete) == (Raw(b"1"), Raw(b"null"), True)
    state = observed(collections.Observe(Raw(b"1"), "a", True), collections.Observe(Raw(b"2"), "b", False))
    assert (state.mark_for("a"), state.mark_for("b"), state.complete) == (Raw(b"null"), Raw(b"2"), False)


def test_without_a_mark_the_present_one_stays() -> None:
    state = observed(collections.Observe(Raw(b"1"), "a", True), collections.Observe(None, "a", False))
    assert (state.mark, state.complete) == (Raw(b"1"), True)
    state = observed(collections.Observe(Raw(b"1"), "a", True), collections.Observe(None, "b", True))
    assert state.mark == Raw(b"null")
