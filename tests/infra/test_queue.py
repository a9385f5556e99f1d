"""Which commands make up the next group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from domain import messages
from infra.eventstore.recorder import Append, Overloaded, prepare
from infra.eventstore.writer import Pending, Queue
from tests.infra.appends import append


def pending(command: Append) -> Pending:
    return Pending(prepare(command), asyncio.get_running_loop().create_future())


def filled(commands: Sequence[Append], limit: int = 10_000) -> Queue:
    queue = Queue(limit)
    for command in commands:
        queue.put(pending(command))
    return queue


def streams(group: Sequence[Pending]) -> list[str]:
    return [one.prepared.command.writes[0].stream for one in group]


def groups(queue: Queue, max_events: int = 256) -> list[list[str]]:
    found = []
    while group := queue.take(max_events):
        found.append(streams(group))
    return found


async def test_commands_keep_their_order() -> None:
    queue = filled([append(str(n)) for n in range(5)])
    assert len(queue) == 5
    assert groups(queue) == [["0", "1", "2", "3", "4"]]
    assert len(queue) == 0


async def test_a_group_has_at_most_so_many_events() -> None:
    queue = filled([append(str(n), count=3) for n in range(5)])
    assert groups(queue, 7) == [["0", "1"], ["2", "3"], ["4"]]


async def test_commands_without_events_count_too() -> None:
    queue = filled([append(str(n), count=0) for n in range(5)])
    assert groups(queue, 2) == [["0", "1"], ["2", "3"], ["4"]]


async def test_a_large_command_goes_alone() -> None:
    queue = filled([append("a"), append("large", count=20), append("b"), append("c")])
    assert groups(queue, 10) == [["a"], ["large"], ["b", "c"]]


async def test_a_large_command_is_not_passed_over_while_others_are_many() -> None:
    queue = filled([append(f"{n}/{m}", principal=str(n)) for n in range(10) for m in range(200)])
    queue.put(pending(append("large", count=300, principal="large")))
    early = [streams(queue.take(256)) for _ in range(3)]
    assert ["large"] in early


async def test_a_large_command_comes_before_those_that_wait_for_a_name() -> None:
    hot = [append("s", n, principal=str(n)) for n in range(20)]
    queue = filled([*hot, append("large", count=20, principal="large")])
    assert [streams(queue.take(10)) for _ in range(3)] == [["s"], ["large"], ["s"]]


async def test_principals_take_turns() -> None:
    many = [append(f"many/{n}", principal="many") for n in range(1000)]
    queue = filled([*many, *(append(f"few/{n}", principal="few") for n in range(3))])
    first = streams(queue.take(8))
    assert first == ["many/0", "few/0", "many/1", "few/1", "many/2", "few/2", "many/3", "many/4"]


async def test_tenants_are_not_each_other_s_principals() -> None:
    theirs = append("theirs")
    queue = filled([append("0"), append("1"), Append("second", theirs.writes, None, (), theirs.principal)])
    assert streams(queue.take(2)) == ["0", "theirs"]


@pytest.mark.parametrize(
    "two",
    [
        pytest.param([append("a"), append("a", 1)], id="stream"),
        pytest.param([append("a", key="k"), append("b", key="k")], id="key"),
        pytest.param(
            [append("a", claims=[messages.take("n", "x", shared=True)]), append("b", claims=[messages.take("n", "x")])],
            id="claim",
        ),
        pytest.param(
            [append("a", claims=[messages.release("n", "x")]), append("b", claims=[messages.take("n", "x")])],
            id="released name",
        ),
    ],
)
async def test_a_group_has_no_name_twice(two: list[Append]) -> None:
    assert groups(filled([*two, append("other")])) == [["a", "other"], [two[1].writes[0].stream]]


@pytest.mark.parametrize(
    "two",
    [
        pytest.param([append("a", key="k"), append("b", key="l")], id="keys"),
        pytest.param([append("a", key="k"), append("k")], id="a key and a stream"),
        pytest.param(
            [append("a", claims=[messages.take("n", "x")]), append("b", claims=[messages.take("m", "x")])], id="kinds"
        ),
    ],
)
async def test_other_names_do_not_matter(two: list[Append]) -> None:
    assert len(groups(filled(two))) == 1


async def test_a_key_of_another_principal_is_another_name() -> None:
    assert len(groups(filled([append("a", key="k"), append("b", key="k", principal="other")]))) == 1


async def test_what_shares_a_name_with_one_that_waits_waits_behind_it() -> None:
    take = messages.take
    queue = filled(
        [
            append("a", claims=[take("n", "x")]),
            append("b", claims=[take("n", "x"), take("n", "y")]),
            append("c", claims=[take("n", "y")]),
            append("d"),
        ]
    )
    assert groups(queue) == [["a", "d"], ["b"], ["c"]]


async def test_what_waits_comes_first_next_time() -> None:
    queue = filled([append("s", principal="a"), append("s", 1, principal="b")])
    for n in range(600):
        queue.put(pending(append("s", n + 2, principal="a")))
        queue.put(pending(append(f"a{n}", principal="a")))
    queue.take(256)
    [first, *_] = queue.take(256)
    assert first.lane == ("main", "b")


async def test_what_is_put_back_comes_first_in_its_order() -> None:
    queue = filled([append(str(n), principal=str(n % 2)) for n in range(6)])
    group = queue.take(4)
    before = streams(group)
    queue.put_back(group)
    assert len(queue) == 6
    assert streams(queue.take(4)) == before


async def test_the_gone_do_not_hide_who_waits_behind_them() -> None:
    queue = Queue(10_000)
    gone = [pending(append()) for _ in range(5000)]
    for one in [*gone, pending(append("last"))]:
        queue.put(one)
    for one in gone:
        one.future.cancel()
    assert streams(queue.take(256)) == ["last"]
    assert len(queue) == 0


async def test_the_bound() -> None:
    queue = filled([append() for _ in range(3)], limit=3)
    with pytest.raises(Overloaded):
        queue.put(pending(append()))
    group = queue.take(256)
    queue.put(pending(append()))
    queue.put_back(group)  # what was accepted once is not refused later
    assert len(queue) == 4
