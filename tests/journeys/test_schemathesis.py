"""The gateway keeps to its own OpenAPI document, whatever is sent: Schemathesis, all phases, on the real thing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.doubles.directories import Directories, content
from tests.doubles.panel import Panel
from tests.journeys.libraries import PASSWORD, Device, login, sha, user
from tests.journeys.system import ADMIN, System, until

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
CONFIG = Path(__file__).with_name("schemathesis.toml")
# Valid by the schema is not yet accepted: a path lies outside the roots, a key of idempotency was used before, a
# position is ahead of the log. Which 5xx are right is judged by the hooks.
# Log lines stay readable after a delete, as the contract has it; that the rest is gone is in test_jobs.
EXCLUDED = "positive_data_acceptance,not_a_server_error,use_after_free"


#: Nobody is there, and hardly anything is sent.
HOOK = {"url": "https://127.0.0.1:9/", "events": ["device.stale"]}
HOOKS_PATH = "/api/v1/webhooks"


def people(system: System) -> dict[str, Any]:
    """People with libraries, and an id of everything in them: some for what ends it, some for what looks at it."""
    owner, other, leaving, left = (user(system) for _ in range(4))
    device, beside = other.pair()
    conflicts = [conflict(device, beside, f"conflict {number}") for number in range(12)]
    uploads = [device.open(f"upload {number}", b"")["id"] for number in range(18)]
    device.upload("file", b"1")
    version = next(one for one in device.changes() if one["path"] == "file")
    sessions = [json.loads(login(system, owner.name).body)["token"].split("_")[1] for _ in range(8)]
    gone = [owner.device(f"old {number}").id for number in range(6)]
    kept = owner.device("kept").id
    users = [user(system).id for _ in range(9)]
    said = {"device_id": device.id, "local_mtime": "2026-01-01T00:00:00Z"}
    empty = {**said, "expected_hash": sha(b""), "expected_size": 0, "chunk_size": 65536, "target_path": "fuzzed"}
    chunk = "/api/v1/sync/upload/{upload_id}"
    one = "/api/v1/sync/conflicts/{conflict_id}"
    return {
        "admin": system.ready["admin_token"],
        "owner": owner.token,
        "device": device.token,
        "leaving": leaving.token,
        "left": left.token,
        "ids": {
            "device_id": {"any": [kept], "DELETE /api/v1/sync/devices/{device_id}": gone},
            "session_id": {"any": sessions},
            "user_id": {"any": users[:3], "DELETE /api/v1/admin/users/{user_id}": users[3:]},
            "conflict_id": {
                "any": conflicts[:4],
                f"POST {one}/resolve": conflicts[4:],
                f"POST {one}/reopen": conflicts[4:],
            },
            "upload_id": {
                "any": uploads[:6],
                f"DELETE {chunk}": uploads[6:12],
                f"POST {chunk}/complete": uploads[:6],
                f"PUT {chunk}/chunks/{{index}}": uploads[12:],
            },
            "index": {"any": ["0"]},
            **jobs(system),
            **sync_sessions(system),
            **webhooks(system),
            "path": {"any": ["file"]},
            "media_id": {"any": [version["media_id"]]},
            "kind": {"any": ["jobs"]},
        },
        "bodies": {
            "/api/v1/auth/login": {"username": owner.name, "password": PASSWORD},
            "/api/v1/sync/ack": {**said, "cursor": device.cursor},
            "/api/v1/sync/upload": empty,
            "/api/v1/sync/restore": {"media_id": version["media_id"], "sequence": version["sequence"]},
            "/api/v1/admin/users": {"password": PASSWORD},
        },
    }


def jobs(system: System) -> dict[str, Any]:
    """Ids of jobs that came to an end, and of some that wait for somebody to confirm what they would delete."""
    folder = system.folder(a="1")
    system.integration("done", folder, system.place())
    done = [system.queue("done") for _ in range(4)]
    assert {system.wait(job)["status"] for job in done} == {"completed"}
    many = {f"file{number}": "x" for number in range(9)}
    for number in range(4):
        system.integration(f"held-{number}", folder, system.folder(**many), deleteMissingInTarget=True)
    held = [system.queue(f"held-{number}") for number in range(4)]
    assert {system.wait(job)["status"] for job in held} == {"paused"}
    stopped = {"POST /api/sync/jobs/{job_id}/stop": held}
    return {"job_id": {"any": done, **stopped}, "other_id": {"any": done}, "id": {"any": done}}


def sync_sessions(system: System) -> dict[str, Any]:
    """Ids of open sync sessions: some to look at, some to complete and some to cancel."""
    wanted = {"sourceLocation": "System1", "targetLocation": "System2"}
    start = "/api/v1/sync/session/start"
    ids = [system.ok("POST", start, wanted, token=ADMIN)["sessionId"] for _ in range(12)]
    one = "/api/v1/sync/session/{sync_session_id}"
    return {
        "sync_session_id": {"any": ids[:6], f"POST {one}/complete": ids[6:9], f"POST {one}/cancel": ids[9:]},
    }


def webhooks(system: System) -> dict[str, Any]:
    """Ids of webhooks, each with a message: some to look at, some to delete."""
    ids = [system.ok("POST", f"{HOOKS_PATH}/subscribe", HOOK, token=ADMIN)["subscriptionId"] for _ in range(8)]
    for id in ids:
        system.ok("POST", f"{HOOKS_PATH}/{id}/test", token=ADMIN)
    for id in ids:
        assert until(partial(messages, system, id))
    return {
        "webhook_id": {"any": ids[:4], f"DELETE {HOOKS_PATH}/{{webhook_id}}": ids[4:]},
        "seq": {"any": ["1"]},
    }


def messages(system: System, webhook: str) -> Any:
    return system.ok("GET", f"{HOOKS_PATH}/{webhook}/events", token=ADMIN)["events"]


def conflict(one: Device, other: Device, path: str) -> str:
    """The id of a conflict: both made the same file."""
    one.upload(path, b"here")
    other.upload(path, b"there")
    return str(next(found["id"] for found in other.conflicts() if found["path"] == path))


#: The Panel's routes.
NODE = r"^/api/(servers|system|update|deauthorize-user)(/|$)"


def servers(system: System, panel: Panel) -> dict[str, Any]:
    """The Panel's credential, and servers of this node: some to look at, one that runs, and some to forget."""

    def taken_over() -> tuple[str, int]:
        uuid = panel.add(invocation="cat")
        answer = system.post("/api/servers", {"uuid": uuid}, token=panel.node[1])
        assert answer.status == 202, answer
        return uuid, answer.position

    every = [taken_over() for _ in range(12)]
    uuids = [uuid for uuid, _ in every]
    running = panel.add()
    system.post("/api/servers", {"uuid": running, "start_on_completion": True}, token=panel.node[1])
    assert until(lambda: system.get(f"/api/servers/{running}", token=panel.node[1]).json()["state"] != "offline")
    return {
        "node": panel.node[1],
        "ids": {
            "server": {
                "any": uuids[:6],
                "DELETE /api/servers/{server}": uuids[6:],
                "POST /api/servers/{server}/commands": [running],
            },
        },
        "bodies": {
            "/api/servers": {"uuid": uuids[0]},
            "/api/servers/{server}/rollback": {"position": every[-1][1]},
            "/api/update": panel.configuration(),
        },
    }


def schemathesis(
    system: System, folder: Path, known: dict[str, Any], *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(CONFIG),
        "run",
        f"{system.ready['url']}/schema/openapi.json",
        *("--phases", "examples,coverage,fuzzing,stateful"),
        *("--exclude-checks", EXCLUDED, "--exclude-method", "OPTIONS"),
        *("--generation-database", ":memory:", "--no-shrink", "--no-color", "--request-timeout", "60"),
        *options,
    ]
    own = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": str(HOOKS),
        "FUZZED_ROOT": str(system.roots),
        "FUZZED_NODE": NODE,
        "FUZZED_PEOPLE": json.dumps(known),
        **variables,
    }
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=900)


def fuzz(system: System, folder: Path, *options: str, panel: Panel | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Schemathesis against an instance, its servers too where it has a Panel; what it made there is removed
    afterwards."""
    source = system.roots / "fuzzed-source-0"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("fuzzed")
    (system.roots / "fuzzed-source-1").mkdir(exist_ok=True)
    system.integration("fuzzed", system.place(), system.place())
    failed = [system.queue("fuzzed") for _ in range(5)]
    assert {system.wait(job)["status"] for job in failed} == {"failed"}
    known = people(system)
    if panel is None:
        options = (*options, "--exclude-path-regex", NODE)
    else:
        more = servers(system, panel)
        known |= {**more, "ids": known["ids"] | more["ids"], "bodies": known["bodies"] | more["bodies"]}
    served = Directories(1, content(random.Random(0), users=3, servers=3))
    try:
        with served:
            config = {"directories": served.urls, "ping": False}
            body = {"id": "network", "name": "Network", "kind": "network", "config": config}
            system.ok("POST", "/api/sync/integrations", body, token=ADMIN)
            system.ok("POST", "/api/admin/sync", token=ADMIN)
            return schemathesis(system, folder, known, *options, FUZZED_JOBS=",".join(failed))
    finally:
        for one in system.ok("GET", "/api/sync/integrations", token=ADMIN)["integrations"]:
            system.call("DELETE", f"/api/sync/integrations/{one['integrationId']}", token=ADMIN)
        system.ok("POST", "/api/sync/jobs/stop-all", token=ADMIN)
        for one in system.ok("GET", HOOKS_PATH, token=ADMIN)["webhooks"]:
            system.call("DELETE", f"{HOOKS_PATH}/{one['subscriptionId']}", token=ADMIN)


def test_no_answer_is_undocumented_and_none_is_generic(system: System, tmp_path: Path) -> None:
    ran = fuzz(system, tmp_path, "--max-examples", "4", "--seed", "7")
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert "failed unexpectedly" not in system.log.read_text()
