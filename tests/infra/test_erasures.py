"""The list of who is to be erased: only ever longer, private, and readable whatever happened to its last line."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from infra.erasures import Entry, Erasures

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_nobody_is_on_it_at_first(tmp_path: Path) -> None:
    assert Erasures(tmp_path).all() == []
    assert list(tmp_path.iterdir()) == []


def test_each_person_is_on_it_once_by_tenant(tmp_path: Path) -> None:
    erasures = Erasures(tmp_path)
    for tenant, subject, at in (("main", "a", AT), ("main", "b", AT), ("main", "a", LATER), ("acme", "a", LATER)):
        erasures.add(tenant, subject, at)
    assert Erasures(tmp_path).all() == [Entry("main", "a", AT), Entry("main", "b", AT), Entry("acme", "a", LATER)]


def test_it_is_private(tmp_path: Path) -> None:
    Erasures(tmp_path).add("main", "a", AT)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "erased.list").stat().st_mode) == 0o600


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    erasures, file = Erasures(tmp_path), tmp_path / "secrets" / "erased.list"
    erasures.add("main", "a", AT)
    erasures.add("main", "b", AT)
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        erasures.add("main", "b", AT)
        erasures.add("main", "c", AT)
        found = [entry.subject for entry in erasures.all()]
        assert found in (["b", "c"], ["a", "b", "c"])


def test_who_is_added_at_once_is_on_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Erasures(tmp_path).add("main", f"{n}", AT), range(64)))
    assert {entry.subject for entry in Erasures(tmp_path).all()} == {f"{n}" for n in range(64)}
