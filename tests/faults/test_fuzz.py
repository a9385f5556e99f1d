"""Schemathesis at length, with another seed each time; the seed is printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.doubles.panel import Panel
from tests.journeys.nodes import settings
from tests.journeys.system import System
from tests.journeys.test_schemathesis import fuzz


def test_a_long_run_finds_no_undocumented_and_no_generic_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = os.environ.get("FAULTS_SEED") or str(int.from_bytes(os.urandom(4), "big"))
    print(f"FAULTS_SEED={seed}")
    monkeypatch.setenv("FUZZED_AT_LENGTH", "1")
    with Panel() as panel:
        run(System(tmp_path / "system", settings=settings(panel)), tmp_path, panel, seed)


def run(system: System, folder: Path, panel: Panel, seed: str) -> None:
    system.start()
    try:
        ran = fuzz(system, folder, "--max-examples", os.environ.get("EXAMPLES", "300"), "--seed", seed, panel=panel)
        print(ran.stdout[-1500:])
        assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
        assert "failed unexpectedly" not in system.log.read_text()
        assert system.undrift("doctor")["well"]
    finally:
        system.stop()
