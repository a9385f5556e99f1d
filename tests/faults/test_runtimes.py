"""However often a node and the shims beside its servers are killed, there is never more than one of a server."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

ROUNDS = int(os.environ.get("FAULTS_RUNTIME_KILLS", "200"))
SEED = os.environ.get("FAULTS_SEED", secrets.token_hex(4))


def test_of_a_server_there_is_never_more_than_one(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.runtime_killed", str(tmp_path / "data"), str(ROUNDS), SEED],
        capture_output=True,
        text=True,
        timeout=60 + ROUNDS * 5,
    )
    assert ran.returncode == 0, f"seed {SEED}: {ran.stderr[-4000:]}"
    print(f"seed {SEED}: {ran.stdout.splitlines()[-1]}")
