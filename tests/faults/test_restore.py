"""A dump of an hour ago, restored into a fresh server: another history, and everybody is told so."""

from __future__ import annotations

from pathlib import Path

from infra import embedded
from tests.faults.restoring import check, feed
from tests.journeys.system import System


def test_a_dump_taken_under_load_is_another_history(tmp_path: Path) -> None:
    fresh = embedded.Postgres(tmp_path / "fresh")
    fresh.start()
    try:
        check(tmp_path, fresh, clients=2)
    finally:
        fresh.stop()


def test_a_start_on_the_same_server_is_the_same_history(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        before = feed(system, "after=0").json()["epoch"]
    finally:
        system.stop()
    system.start()
    try:
        assert before == feed(system, f"after=1&epoch={before}").json()["epoch"]
    finally:
        system.stop()
