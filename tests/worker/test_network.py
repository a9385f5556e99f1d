"""The network's source against directory servers on loopback, without an instance around it."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from domain import errors, items, jobs, kinds
from domain.plans import network as plan
from services.worker import network_fetch
from services.worker.collecting import Context, Known, Page, Remote, Stopped
from services.worker.network import Network
from tests.doubles import network_oracle
from tests.doubles.directories import Content, Directories, content, lie

TRUTH = content(random.Random(0), users=12, servers=3)
NOBODY: dict[str, dict[str, Any]] = {"users": {}, "servers": {}, "raida_servers": {}}


@pytest.fixture(scope="module")
def five() -> Iterator[Directories]:
    with Directories(5, TRUTH) as running:
        yield running


@pytest.fixture
def directories(five: Directories) -> Directories:
    five.become("ok")
    five.serve(TRUTH)
    return five


@dataclass
class Ran:
    """What one run came to."""

    pages: list[Page]
    result: plan.Result
    lines: list[str]

    @property
    def found(self) -> dict[str, dict[str, Any]]:
        made: dict[str, dict[str, Any]] = {name: {} for name in NOBODY}
        for page in self.pages:
            for item in page.items:
                made[item.entity][item.id] = item.content
        return made

    @property
    def gone(self) -> list[tuple[str, str]]:
        return [(one.entity, one.id) for page in self.pages for one in page.gone]


@dataclass
class Runner:
    """Runs the source as a worker's child does."""

    work: Path
    known: dict[str, dict[str, Any]] = field(default_factory=lambda: NOBODY)
    force: bool = False
    stopped: bool = False
    seconds: float | None = None
    lines: list[str] = field(default_factory=list)

    def run(self, *urls: str, **more: Any) -> Ran:
        spec = plan.Spec(urls, **{"timeout": 2.0, "patience": 0.3, "max_rows": 2000, "ping": False, **more})
        source = Network(self._context(spec))
        self.lines.clear()
        pages = list(source.observe(None))
        outcome = source.outcome()
        assert (outcome.mark, outcome.complete) == (None, True)
        return Ran(pages, cast(plan.Result, outcome.result), list(self.lines))

    def _context(self, spec: plan.Spec) -> Context:
        file = self.work / "known"
        rows = [(entity, id, content) for entity, each in self.known.items() for id, content in each.items()]
        file.write_text(
            "".join(f"{entity}\t{id}\t{items.digest(items.canonical(one))}\t\\N\n" for entity, id, one in rows)
        )
        return Context(
            spec=spec,
            options=kinds.Options(),
            secrets={},
            mark=None,
            resumed=False,
            known=Known(file),
            log=lambda level, message: self.lines.append(message),
            stopped=lambda: self.stopped,
            deadline=None if self.seconds is None else time.monotonic() + self.seconds,
            remote=cast(Remote, None),  # it asks nobody for patience
            work=self.work,
            job="job",
            collection="network",
            counters=jobs.Counters,
        )


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_what_is_brought(runner: Runner, directories: Directories) -> None:
    ran = runner.run(*directories.urls)
    assert ran.found == network_oracle.meant(TRUTH)
    assert (ran.result.users_synced, ran.result.servers_synced, ran.result.raida_servers_synced) == (12, 3, 25)
    assert ran.result.last_server == "RAIDA2"
    assert (ran.result.dissenters, ran.result.silent) == ((), ())
    assert [page.percent for page in ran.pages] == sorted(page.percent for page in ran.pages)


@pytest.mark.parametrize("seed", range(25))
def test_rounds_over_sockets_come_to_what_an_independent_count_comes_to(
    runner: Runner, directories: Directories, seed: int
) -> None:
    pick = random.Random(seed)
    stories: list[Content | None] = []
    for number in range(5):
        kind = pick.choice(
            ("ok", "ok", "ok", "ok", "lying", "down", "garbage", "noise", "redirecting", "broken", "cut")
        )
        story = lie(pick, TRUTH, 0.1) if kind == "lying" else TRUTH
        directories.serve(story, number)
        directories.become("ok" if kind == "lying" else kind, number)
        stories.append(story if kind in ("ok", "lying") else None)
    expected = network_oracle.expected(stories)
    if expected is None:
        with pytest.raises((errors.RemoteUnavailable, errors.SyncFailed)):
            runner.run(*directories.urls)
        return
    ran = runner.run(*directories.urls)
    assert ran.found == expected
    urls = directories.urls
    assert {urls.index(one) for one in ran.result.dissenters} == network_oracle.dissenting(stories, expected)
    assert {urls.index(one) for one in ran.result.silent} == {n for n, story in enumerate(stories) if story is None}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("down", "no connection"),
        ("broken", "it answers 500"),
        ("redirecting", "it answers 302, which is not followed"),
        ("cut", "its answer is cut short"),
        ("noise", "its answer is not HTTP"),
        ("slow", "no answer"),
        ("dripping", "no answer"),
        ("huge", "its answer has more than 577536 bytes"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(runner: Runner, directories: Directories, how: str, said: str) -> None:
    directories.become(how, 0)
    ran = runner.run(*directories.urls)
    assert ran.found == network_oracle.meant(TRUTH)
    about = [line for line in ran.lines if line.startswith(directories.urls[0])]
    assert any(said in line for line in about), ran.lines
    assert directories.urls[0] in ran.result.silent or how == "huge"


def test_one_directory_is_waited_for_to_the_end(runner: Runner, directories: Directories) -> None:
    directories.become("dripping", 0)
    with pytest.raises(errors.RemoteUnavailable, match=r"^Failed to connect to RAIDA network"):
        runner.run(directories.urls[0], timeout=0.3)


def test_a_deadline_is_not_waited_beyond(runner: Runner, directories: Directories) -> None:
    directories.become("slow", 0)
    runner.seconds = 0.3
    with pytest.raises(errors.RemoteUnavailable):
        runner.run(directories.urls[0], timeout=300.0)


def test_a_stop_is_heard(runner: Runner, directories: Directories) -> None:
    directories.become("slow")
    runner.stopped = True
    with pytest.raises(Stopped):
        runner.run(*directories.urls, timeout=300.0)


def test_what_is_gone_is_said_and_what_nobody_can_use_is_not(runner: Runner, directories: Directories) -> None:
    runner.known = network_oracle.meant(TRUTH)
    first, second, *rest = TRUTH.users
    bad = Content((*rest, type(second)(second.serial, "a", "b", fee="-1")), TRUTH.qmail, TRUTH.raida)
    directories.serve(bad)
    ran = runner.run(*directories.urls)
    assert ran.gone == [("users", str(network_oracle.user(first)["serial_number"]))]
    assert any("rows of no use" in line for line in ran.lines)


def test_a_mass_change_needs_its_plans_hash(runner: Runner, directories: Directories) -> None:
    runner.known = network_oracle.meant(TRUTH)
    directories.serve(Content((), TRUTH.qmail, TRUTH.raida))
    with pytest.raises(errors.Held, match="12 of 12 users would change") as held:
        runner.run(*directories.urls)
    with pytest.raises(errors.PlanChanged):
        runner.run(*directories.urls, plan_hash="0" * 64)
    ran = runner.run(*directories.urls, plan_hash=held.value.details["plan"])
    assert len(ran.gone) == 12


def test_servers_are_timed(runner: Runner, directories: Directories) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        ports = (there.getsockname()[1], silent.getsockname()[1])
        servers = [{**TRUTH.qmail[n], "ip_address": "127.0.0.1", "port": ports[n]} for n in range(2)]
        directories.serve(Content(TRUTH.users, tuple(servers), TRUTH.raida))
        found = runner.run(*directories.urls, ping=True).result.servers
    assert [(one.server_id, one.checked, one.ping_ms is None) for one in found] == [
        ("RAIDA0", True, False),
        ("RAIDA1", True, True),
    ]
    assert found[0].ping_ms is not None
    assert found[0].ping_ms >= 1


def test_a_thousand_servers_that_are_not_there_are_not_waited_for_one_by_one() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        servers = [(str(n), "127.0.0.1", silent.getsockname()[1]) for n in range(1000)]
        found = network_fetch.ping(servers, 1.0, lambda: False)
    assert [one.server_id for one in found] == [str(n) for n in range(1000)]
    assert all(one.ping_ms is None for one in found)


def test_results_fit_into_an_event() -> None:
    sightings = tuple(plan.Sighting("x" * 64, 10**6, checked=True) for _ in range(1000))
    names = tuple(f"https://{'d' * 200}{n}.example" for n in range(20))
    result = plan.Result(10**6, 1000, 25, "x" * 64, sightings, names, names)
    assert len(msgspec.json.encode(result)) < 192 * 1024
