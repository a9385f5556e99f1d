"""What directories say, read with suspicion, and what a majority of them comes to."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from domain import errors
from domain.plans import network, network_lists
from tests.doubles import network_oracle
from tests.doubles.directories import GARBAGE, Content, User, content, lie, serial

HEADER = b"CustomSerialNumber,FirstName,LastName,Description,InboxFee,Class,Beacon\n"
LISTS: dict[str, network.List] = {
    "/service/users": "users",
    "/service/qmail_servers": "servers",
    "/service/raida_servers": "raida_servers",
}


def parse(name: network.List, body: bytes, rows: int = 1000) -> network.Listing:
    return network_lists.parse(name, body, rows)


def read(listing: network.Listing) -> dict[str, Any]:
    return {key: msgspec.json.decode(value) if value else None for key, value in listing.records.items()}


def row(*columns: str) -> bytes:
    return (",".join(columns) + "\n").encode()


GOOD = row("C23", "Sean", "Worth", "CEO", "0.1", "Giga", "RAIDA11")


# One list.


def test_the_documents_serial_number() -> None:
    assert network_lists.serial_number("C23") == 12355
    assert network_lists.serial_number(" c-2_3 ") == 12355
    assert network_lists.serial_number("I!") is None
    assert [network_lists.serial_number(serial(number)) for number in (0, 31, 32, 99_999)] == [0, 31, 32, 99_999]


def test_a_user() -> None:
    found = read(parse("users", HEADER + GOOD))
    assert found == {
        "12355": {
            "serial_number": 12355,
            "custom_serial_number": "C23",
            "first_name": "Sean",
            "last_name": "Worth",
            "description": "CEO",
            "inbox_fee": 0.1,
            "class": "giga",
            "beacon": "RAIDA11",
            "denomination": 4,
            "auto_address": "Sean.Worth@CEO#C23.Giga",
        }
    }


def test_classes_have_denominations() -> None:
    rows = b"".join(
        row(serial(n), "a", "b", "", "", name, "") for n, name in enumerate(["bit", "Byte", "KILO", "mega"])
    )
    found = read(parse("users", rows + row("Z", "a", "b", "", "", "giant", "")))
    assert [(one["denomination"], one["inbox_fee"]) for one in found.values()] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (0, 0),
    ]


@pytest.mark.parametrize("body", [b"", b"\n\n", HEADER, b"\xef\xbb\xbf" + HEADER])
def test_no_users_are_an_empty_list(body: bytes) -> None:
    assert parse("users", body).records == {}


def test_short_rows_are_skipped_with_a_word() -> None:
    found = parse("users", HEADER + GOOD + b"C24,short\n")
    assert (list(found.records), found.skipped, found.troubles) == (["12355"], 1, ("row 2: 2 columns, not 7",))


@pytest.mark.parametrize(
    "bad",
    [
        row("C24", "a", "b", "", "-1", "bit", ""),
        row("C24", "a", "b", "", "nan", "bit", ""),
        row("C24", "a", "b", "", "inf", "bit", ""),
        row("C24", "a", "b", "", "1e300", "bit", ""),
        row("C24", "a", "b", "", "much", "bit", ""),
        row("C24", "a\0", "b", "", "1", "bit", ""),
        row("C24", "a" * 256, "b", "", "1", "bit", ""),
        row("C24", "a", "b", "d" * 1001, "1", "bit", ""),
        row("C24", "a", "b", "", "1", "bit" * 30, ""),
        row("C24", "a", "\x1b[31mb", "", "1", "bit", ""),
    ],
)
def test_a_user_that_cannot_be_used_leaves_its_neighbours_alone(bad: bytes) -> None:
    found = parse("users", HEADER + GOOD + bad)
    assert found.records["12356"] == network.UNUSABLE
    assert found.records["12355"] != network.UNUSABLE
    assert found.troubles


def test_a_serial_number_that_is_none_cannot_be_known() -> None:
    found = parse("users", HEADER + GOOD + row("!?", *"abcdef"[:6]) + GOOD)
    assert (list(found.records), found.skipped) == (["12355"], 1)
    found = parse("users", HEADER + GOOD + row("Z" * 20, "a", "b", "", "1", "bit", "") + GOOD)
    assert (list(found.records), found.skipped) == (["12355"], 1)


@pytest.mark.parametrize("name", LISTS.values())
@pytest.mark.parametrize("body", [b"\xff\xfe", HEADER + b"\xc3\x28", "é".encode("latin-1")])
def test_what_is_not_utf_8_is_no_list(name: network.List, body: bytes) -> None:
    with pytest.raises(errors.Invalid, match="not UTF-8"):
        parse(name, body)


def test_a_list_has_a_limit() -> None:
    rows = b"".join(row(serial(n), "a", "b", "", "1", "bit", "") for n in range(11))
    with pytest.raises(errors.Invalid, match="more than 10 rows"):
        parse("users", rows, 10)
    assert len(parse("users", rows, 11).records) == 11
    servers = json.dumps([{"server_id": f"s{n}", "ip_address": "10.0.0.1"} for n in range(1001)]).encode()
    with pytest.raises(errors.Invalid, match="more than 1000 rows"):
        parse("servers", servers, 10**7)
    with pytest.raises(errors.Invalid, match="more than 25 rows"):
        parse("raida_servers", b"10.0.0.1\n" * 26)


@pytest.mark.parametrize("body", GARBAGE)
@pytest.mark.parametrize("name", LISTS.values())
def test_garbage_is_no_list(name: network.List, body: bytes) -> None:
    with pytest.raises(errors.Invalid):
        parse(name, body)


def test_of_a_key_said_twice_the_last_counts() -> None:
    found = parse("users", HEADER + GOOD + row("D", *["x"] * 3, "1", "bit", "") + GOOD.replace(b"0.1", b"0.7"))
    assert list(found.records) == ["13", "12355"]
    assert read(found)["12355"]["inbox_fee"] == 0.7


def test_columns_may_be_quoted() -> None:
    found = read(parse("users", HEADER + b'C23,"Anne, ""A""",B,"two\nlines",1,bit,x\n' + GOOD.replace(b"C23", b"D")))
    assert found["12355"] is None  # a line break is no part of a description
    assert read(parse("users", b'C23,"Anne, ""A""",B,d,1,bit,x\n'))["12355"]["first_name"] == 'Anne, "A"'


def test_a_server_and_its_defaults() -> None:
    body = b'{"servers": [{"server_id": "RAIDA1", "ip_address": "10.0.0.1"}]}'
    assert read(parse("servers", body)) == {
        "RAIDA1": {
            "server_id": "RAIDA1",
            "ip_address": "10.0.0.1",
            "port": 50000,
            "server_index": 0,
            "server_type": "QMAIL",
            "cost_per_mb": 1.0,
            "cost_per_8_weeks": 1.0,
            "percent_uptime": 100,
            "performance_benchmark_percentile": 0,
            "region": None,
            "description": None,
            "date_created": None,
        }
    }
    assert parse("servers", body) == parse("servers", body[12:-1])
    assert parse("servers", b"[]").records == parse("servers", b"").records == {}


@pytest.mark.parametrize(
    "change",
    [
        {"port": -1},
        {"port": 65_536},
        {"port": 1.5},
        {"port": 10**30},
        {"port": True},
        {"port": "80"},
        {"server_index": -1},
        {"cost_per_mb": -0.5},
        {"cost_per_mb": 1e300},
        {"cost_per_mb": 10**400},
        {"percent_uptime": 101},
        {"percent_uptime": -1},
        {"performance_benchmark_percentile": {}},
        {"region": "r" * 256},
        {"region": ["a"]},
        {"description": "a\0b"},
        {"date_created": "d" * 65},
        {"ip_address": "not an address"},
        {"ip_address": "10.0.0.1/../.."},
        {"ip_address": "a..b"},
        {"ip_address": None},
        {"ip_address": "h" * 254},
    ],
)
def test_a_server_that_cannot_be_used_leaves_its_neighbours_alone(change: dict[str, Any]) -> None:
    good = {"server_id": "good", "ip_address": "raida0.cloudcoin.global", "port": 443.0}
    found = parse("servers", json.dumps([good, {**good, "server_id": "bad", **change}]).encode())
    assert found.records["bad"] == network.UNUSABLE
    assert read(found)["good"]["port"] == 443


@pytest.mark.parametrize("one", [7, None, [], {}, {"server_id": 7}, {"server_id": ""}, {"server_id": "a b"}])
def test_a_server_without_an_id_cannot_be_known(one: Any) -> None:
    good = {"server_id": "good", "ip_address": "::1"}
    found = parse("servers", json.dumps([good, one]).encode())
    assert (list(found.records), found.skipped) == (["good"], 1)


def test_raida_servers_are_lines() -> None:
    found = read(parse("raida_servers", b"10.0.0.1\n\n 10.0.0.2:443 \r\nraida2.cloudcoin.global\n[::1]:7\n::2\n[::3]"))
    assert [(one["raida_index"], one["ip"], one["port"]) for one in found.values()] == [
        (0, "10.0.0.1", 50000),
        (1, "10.0.0.2", 443),
        (2, "raida2.cloudcoin.global", 50002),
        (3, "::1", 7),
        (4, "::2", 50004),
        (5, "::3", 50005),
    ]


@pytest.mark.parametrize("line", [b"10.0.0.1:", b"10.0.0.1:0", b"10.0.0.1:99999", b"a b", b"[::1", b"[::1]x", b":1"])
def test_a_raida_server_that_cannot_be_used_keeps_its_index(line: bytes) -> None:
    found = read(parse("raida_servers", b"10.0.0.1\n" + line + b"\n10.0.0.3"))
    assert found["1"] is None
    assert found["2"]["raida_index"] == 2


def test_a_random_flip_of_bits_never_ends_in_an_error_of_ours() -> None:
    pick = random.Random(3)
    bodies = content(pick, users=20).bodies()
    for _ in range(600):
        path = pick.choice(list(bodies))
        body = bytearray(bodies[path])
        for _ in range(pick.randrange(1, 8)):
            body[pick.randrange(len(body))] = pick.randrange(256)
        try:
            found = parse(LISTS[path], bytes(body))
        except errors.Invalid:
            continue
        assert all(value == network.UNUSABLE or msgspec.json.decode(value) for value in found.records.values())


# What a majority says.


def answers(stories: Sequence[Content | bytes | None]) -> network.Answers:
    """As the worker has them: a story is what a directory means, or bytes that mean nothing, or silence."""
    found: dict[network.List, dict[str, network.Listing | network.Trouble]] = {
        name: {} for name in ("users", "servers", "raida_servers")
    }
    for number, story in enumerate(stories):
        for path, name in LISTS.items():
            one: network.Listing | network.Trouble
            if story is None:
                one = network.Trouble("no answer", reached=False)
            else:
                try:
                    one = parse(name, story if isinstance(story, bytes) else story.bodies()[path])
                except errors.Invalid as error:
                    one = network.Trouble(error.message, reached=True)
            found[name][f"http://{number}"] = one
    return found


def accept(stories: Sequence[Content | bytes | None]) -> dict[str, dict[str, Any]]:
    return contents(network.accept(answers(stories), len(stories)))


def contents(found: network.Accepted) -> dict[str, dict[str, Any]]:
    return {
        name: {key: msgspec.json.decode(value) for key, value in one.records.items()} for name, one in found.items()
    }


def named(said: network.Answers, accepted: network.Accepted) -> set[int]:
    return {int(where.removeprefix("http://")) for where in network.dissents(said, accepted)}


TRUTH = content(random.Random(0))


def test_of_25_directories_9_are_down_and_3_lie() -> None:
    pick = random.Random(1)
    stories: list[Content | bytes | None] = [TRUTH] * 25
    for number in range(3, 12):
        stories[number] = None
    for number in range(3):
        stories[number] = lie(pick, TRUTH)
    said = answers(stories)
    accepted = network.accept(said, 25)
    assert contents(accepted) == network_oracle.meant(TRUTH)
    assert named(said, accepted) == {0, 1, 2}


def test_13_that_lie_are_too_many() -> None:
    other = [replace(TRUTH, users=tuple(replace(one, fee=f"7.{n}") for one in TRUTH.users)) for n in range(13)]
    with pytest.raises(errors.SyncFailed, match="40 records of users"):
        accept([TRUTH] * 12 + other)


def test_13_that_are_down_are_too_many() -> None:
    with pytest.raises(errors.RemoteUnavailable, match="Only 12 of 25"):
        accept([TRUTH] * 12 + [None] * 13)


def test_when_nobody_answers_the_documents_words_are_said() -> None:
    with pytest.raises(errors.RemoteUnavailable, match=r"^Failed to connect to RAIDA network"):
        accept([None] * 3)


def test_nobody_of_use_is_not_nobody() -> None:
    with pytest.raises(errors.RemoteUnavailable, match=r"gave no list users of use .*not UTF-8"):
        accept([GARBAGE[0]])


def test_one_directory_is_believed() -> None:
    assert accept([TRUTH]) == network_oracle.meant(TRUTH)
    assert accept([Content()]) == {"users": {}, "servers": {}, "raida_servers": {}}
    assert network.ordered({"b": b'{"server_index":2}', "a": b'{"server_index":1}'}, 1) == ["b", "a"]


def test_several_directories_agree_on_an_order_too() -> None:
    records = {"b": b'{"server_index":2}', "c": b'{"server_index":1}', "a": b'{"server_index":2}'}
    assert network.ordered(records, 3) == ["c", "a", "b"]


def test_what_nobody_can_use_is_left_as_it_is() -> None:
    bad = replace(TRUTH, users=(*TRUTH.users, User("ZZZZ", "a", "b", fee="-1")))
    found = network.accept(answers([bad, bad, TRUTH]), 3)
    assert found["users"].unusable == {"1048575"}
    before = {name: dict.fromkeys(one.records, "old") for name, one in found.items()}
    before["users"]["1048575"] = before["users"]["7777777"] = "old"
    planned = network.changes(found, before)
    assert [one.key for one in planned if one.op == "deleted"] == ["7777777"]


def test_a_dissenter_is_named_with_what_it_said() -> None:
    story = replace(
        TRUTH,
        users=(replace(TRUTH.users[0], fee="7"), *TRUTH.users[2:], User("ZZZZ", "Eve", "Nobody")),
    )
    said = answers([TRUTH, TRUTH, story])
    [(where, [one])] = network.dissents(said, network.accept(said, 3)).items()
    assert (where, one.list, one.differ, one.missing, one.extra) == ("http://2", "users", 1, 1, 1)
    assert "inbox_fee '7.0' instead of" in str(one)
    assert "1048575 is its own" in str(one)


def rounds(count: int) -> list[tuple[int, list[Content | bytes | None]]]:
    return [(seed, _stories(random.Random(seed))) for seed in range(count)]


def _stories(pick: random.Random) -> list[Content | bytes | None]:
    """Honest, late, silent, talking nonsense, lying each for itself and lying together; in any mixture."""
    truth = content(pick, users=pick.choice((0, 1, 6, 12)), servers=pick.choice((0, 3, 8)))
    old = lie(pick, truth, 0.2)
    together = lie(pick, truth, 0.4)
    total = pick.choice((1, 2, 3, 4, 5, 13, 25))
    faulty = pick.randrange(total // 2 + (3 if total > 3 else 1))
    stories: list[Content | bytes | None] = []
    for _ in range(faulty):
        kind = pick.choice(("down", "garbage", "lying", "stale", "together", "together"))
        bad: dict[str, Content | bytes | None] = {
            "down": None,
            "garbage": pick.choice(GARBAGE),
            "stale": old,
            "together": together,
        }
        stories.append(bad[kind] if kind in bad else lie(pick, truth, pick.choice((0.05, 0.5))))
    for _ in range(total - faulty):
        users, qmail = list(truth.users), list(truth.qmail)
        pick.shuffle(users)
        pick.shuffle(qmail)
        if users and pick.random() < 0.3:
            users.insert(0, pick.choice(users))
        stories.append(replace(truth, users=tuple(users), qmail=tuple(qmail), wrapped=pick.random() < 0.5))
    pick.shuffle(stories)
    return stories


def _useful(stories: Sequence[Content | bytes | None]) -> list[Content | None]:
    return [None if isinstance(story, bytes) else story for story in stories]


def test_1000_rounds_come_to_what_an_independent_count_comes_to() -> None:
    outcomes = {"accepted": 0, "refused": 0, "named": 0}
    for seed, stories in rounds(1000):
        expected = network_oracle.expected(_useful(stories))
        if expected is None:
            with pytest.raises(errors.Error):
                accept(stories)
            outcomes["refused"] += 1
            continue
        said = answers(stories)
        accepted = network.accept(said, len(stories))
        assert contents(accepted) == expected, seed
        dissenting = network_oracle.dissenting(_useful(stories), expected)
        assert named(said, accepted) == dissenting, seed
        outcomes["accepted"] += 1
        outcomes["named"] += len(dissenting)
    assert min(outcomes.values()) > 100, outcomes


def test_any_12_faulty_directories_change_nothing() -> None:
    for seed in range(100):
        pick = random.Random(seed)
        truth = content(pick, users=8, servers=4)
        liars = [pick.choice((None, pick.choice(GARBAGE), lie(pick, truth, pick.random()))) for _ in range(12)]
        stories = [truth] * 13 + liars
        pick.shuffle(stories)
        assert accept(stories) == network_oracle.meant(truth), seed


def test_neither_order_nor_company_matters() -> None:
    pick = random.Random(5)
    truth = content(pick, users=3, servers=2)
    stories: list[Content | bytes | None] = [truth, truth, truth, lie(pick, truth), None]
    results = [accept(list(order)) for order in itertools.permutations(stories)]
    assert all(result == results[0] for result in results)


# What follows from it.


def known(**counts: int) -> dict[network.List, dict[str, str]]:
    names: tuple[network.List, ...] = ("users", "servers", "raida_servers")
    return {name: {str(n): "old" for n in range(counts.get(name, 0))} for name in names}


def agreed(**records: Mapping[str, bytes]) -> dict[network.List, network.Agreed]:
    names: tuple[network.List, ...] = ("users", "servers", "raida_servers")
    return {name: network.Agreed(records.get(name, {}), frozenset(), ()) for name in names}


def test_changes_are_told_by_hash() -> None:
    before = known(users=2)
    before["users"]["3"] = "3d8a2d7d5b2d3ebd0f6b1ab4a2e5b6f7d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4"
    planned = network.changes(agreed(users={"1": b"{}", "9": b"{}"}), before)
    assert [tuple(one) for one in planned] == [
        ("users", "0", "deleted"),
        ("users", "1", "updated"),
        ("users", "3", "deleted"),
        ("users", "9", "created"),
    ]
    assert network.plan_hash(planned) != network.plan_hash(planned[1:])


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [
        ({"users": 10}, {}, False),
        ({"users": 11}, {}, True),
        ({"users": 100}, {"users": 80}, False),
        ({"users": 100}, {"users": 79}, True),
        ({"servers": 25}, {"servers": 20}, False),
        ({"servers": 25}, {"servers": 19}, True),
    ],
)
def test_many_changes_need_a_person(before: dict[str, int], after: dict[str, int], held: bool) -> None:
    there = known(**before)
    stays = agreed(**{name: {str(n): b"{}" for n in range(count)} for name, count in after.items()})
    planned = [one for one in network.changes(stays, there) if one.op == "deleted"]
    assert (network.suspicious(planned, there, 0.2) is not None) is held


def test_changed_users_count_and_changed_figures_of_servers_do_not() -> None:
    there = known(users=20, servers=25, raida_servers=25)
    same = {str(n): b"{}" for n in range(25)}
    servers = network.changes(agreed(servers=same), {**there, "users": {}, "raida_servers": {}})
    assert network.suspicious(servers, there, 0.2) is None
    users = network.changes(agreed(users={str(n): b"{}" for n in range(20)}), known(users=20))
    assert network.suspicious(users, there, 0.2) == {"list": "users", "changed": 20, "known": 20}
