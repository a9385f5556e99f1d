"""The gateway keeps to its own OpenAPI document, whatever is sent: Schemathesis, all phases, on the real thing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.doubles.directories import Directories, content
from tests.journeys.system import ADMIN, System

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# Valid by the schema is not yet accepted: a path lies outside the roots, a key of idempotency was used before, a
# position is ahead of the log. Which 5xx are right is judged by the hooks.
# Log lines stay readable after a delete, as the contract has it; that the rest is gone is in test_jobs.
EXCLUDED = "positive_data_acceptance,not_a_server_error,use_after_free"


def fuzz(system: System, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs Schemathesis against an instance; what it made there is removed afterwards."""
    source = system.roots / "fuzzed-source-0"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("fuzzed")
    (system.roots / "fuzzed-source-1").mkdir(exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{system.ready['url']}/schema/openapi.json",
        *("--header", f"Authorization: Bearer {system.ready['admin_token']}"),
        *("--phases", "examples,coverage,fuzzing,stateful"),
        *("--exclude-checks", EXCLUDED),
        *("--generation-database", ":memory:", "--no-shrink", "--no-color", "--request-timeout", "60"),
        *options,
    ]
    system.integration("fuzzed", system.place(), system.place())
    failed = [system.queue("fuzzed") for _ in range(5)]
    assert {system.wait(job)["status"] for job in failed} == {"failed"}
    own = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": str(HOOKS),
        "FUZZED_ROOT": str(system.roots),
        "FUZZED_JOBS": ",".join(failed),
    }
    served = Directories(1, content(random.Random(0), users=3, servers=3))
    try:
        with served:
            config = {"directories": served.urls, "ping": False}
            body = {"id": "network", "name": "Network", "kind": "network", "config": config}
            system.ok("POST", "/api/sync/integrations", body, token=ADMIN)
            system.ok("POST", "/api/admin/sync", token=ADMIN)
            return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=900)
    finally:
        for one in system.ok("GET", "/api/sync/integrations", token=ADMIN)["integrations"]:
            system.call("DELETE", f"/api/sync/integrations/{one['integrationId']}", token=ADMIN)
        system.ok("POST", "/api/sync/jobs/stop-all", token=ADMIN)


def test_no_answer_is_undocumented_and_none_is_generic(system: System, tmp_path: Path) -> None:
    ran = fuzz(system, tmp_path, "--max-examples", "40", "--seed", "7")
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert "failed unexpectedly" not in system.log.read_text()
