"""The command line, as a person or a script uses it, against the real programs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cyclopts import App

from services import cli
from services.cli_common import Exit
from services.client import Client, WrongAddress
from tests.journeys.conftest import UNDRIFT, Instance, environment, undrift


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def until(true: Callable[[], Any], patience_s: float = 30.0) -> Any:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    return true()


# Files.


def test_a_sync_says_what_it_did_and_the_second_one_does_nothing(instance: Instance) -> None:
    source = instance.folder(a="one", deep__er__b="two")
    target = source.with_name("new")
    first = instance.run("files", "sync", source, target)
    assert first.code == 0, first.err
    assert "2 created, 0 updated, 0 deleted, 0 errors" in first.out
    assert tree(source) == tree(target)
    second = instance.ask("files", "sync", source, target)
    assert (second["success"], second["changesApplied"], second["conflictsEncountered"]) == (True, 0, 0)
    assert second["status"] == "completed"


def test_a_relative_path_begins_where_one_is_and_patterns_leave_out(instance: Instance) -> None:
    source = instance.folder(keep="1", drop="2", sub__drop="3")
    command = [UNDRIFT, "files", "sync", source.name, "excluded", "--exclude", "drop", "--exclude", "nothing"]
    done = subprocess.run(
        [*command, "--data-dir", instance.directory],
        cwd=instance.roots,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert tree(instance.roots / "excluded") == {"keep": b"1"}


def test_what_was_changed_in_the_target_is_kept_in_the_trash(instance: Instance) -> None:
    source, target = instance.folder(sub__a="ours"), instance.roots / "edited"
    assert instance.run("files", "sync", source, target).code == 0
    (target / "sub" / "a").write_text("theirs")
    second = instance.ask("files", "sync", source, target)
    assert (second["changesApplied"], second["conflictsEncountered"]) == (1, 1)
    assert (target / "sub" / "a").read_text() == "ours"
    assert tree(instance.roots / ".undrift" / "trash" / second["jobId"]) == {"sub/a": b"theirs"}


def test_a_plan_changes_nothing_and_is_applied_by_its_hash(instance: Instance) -> None:
    source, target = instance.folder(a="new", b="new"), instance.folder(b="old!")
    shown = instance.run("files", "sync", source, target, "--plan")
    assert shown.code == 0, shown.err
    assert tree(target) == {"b": b"old!"}
    plan = instance.ask("files", "sync", source, target, "--plan")
    assert plan["planHash"] in shown.out
    assert {(one["action"], one["path"]) for one in plan["actions"]} >= {("create", "a"), ("update", "b")}
    assert instance.run("files", "sync", source, target, "--apply", plan["planHash"]).code == 0
    assert tree(source) == tree(target)


def test_a_plan_whose_world_has_moved_is_refused(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.folder()
    plan = instance.ask("files", "sync", source, target, "--plan")
    (source / "late").write_text("2")
    refused = instance.run("files", "sync", source, target, "--apply", plan["planHash"])
    assert refused.code == Exit.CHANGED
    assert tree(target) == {}


def test_a_guard_holds_until_somebody_confirms(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.folder(a="1", b="2", c="3", d="4")
    plan = instance.run("files", "sync", source, target, "--delete", "--plan")
    assert plan.code == Exit.HELD
    held = instance.run("files", "sync", source, target, "--delete")
    assert held.code == Exit.HELD
    assert len(tree(target)) == 4
    [job] = [one for one in instance.ask("jobs", "list", "--status", "paused")["jobs"] if one["id"] in held.err]
    assert job["error"]["code"] == "held"
    command = held.err.rstrip().partition("To carry it out: undrift ")[2].split()
    assert command[:3] == ["jobs", "resume", job["id"]]
    assert undrift(*command).code == 0
    watched = instance.run("jobs", "watch", job["id"])
    assert watched.code == 0, watched.err
    assert tree(target) == {"a": b"1"}


def test_force_carries_out_what_a_guard_would_hold(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.folder(b="2")
    assert instance.run("files", "sync", source, target, "--delete", "--force").code == 0
    assert tree(target) == {"a": b"1"}


def test_what_cannot_be_synced_is_said_in_one_sentence(instance: Instance) -> None:
    missing = instance.run("files", "sync", instance.roots / "no such", instance.roots / "x")
    assert missing.code == Exit.FAILED
    assert "not found" in missing.err
    outside = instance.run("files", "sync", "/etc", instance.roots / "x")
    assert outside.code == Exit.NOT_ALLOWED
    assert len(outside.err.splitlines()) == 1
    named = instance.run("files", "sync", os.fsdecode(b"/\xff"), instance.roots / "x")
    assert named.code == Exit.USAGE
    assert "UTF-8" in named.err


# Jobs.


@contextmanager
def stopped(instance: Instance, name: str) -> Iterator[None]:
    """A process that stands still: what it would do waits."""
    pid = instance.ready["processes"][name]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def queue(instance: Instance, source: Path, target: Path) -> str:
    """The id of a job that was queued and is not waited for."""
    body = {"sourceDirectory": str(source), "targetDirectory": str(target)}
    client = Client(instance.ready["url"], instance.ready["admin_token"])
    answer = client.post("/api/v1/sync/files", body, headers={"Prefer": "respond-async"})
    client.close()
    assert answer.status == 202
    return str(answer.body["jobId"])


def test_jobs_are_listed_and_shown(instance: Instance) -> None:
    job = queue(instance, instance.folder(a="1"), instance.roots / "listed")
    assert instance.run("jobs", "watch", job).code == 0
    listed = instance.ask("jobs", "list", "--status", "completed", "--limit", "1")
    assert [job] == [one["id"] for one in listed["jobs"]]
    assert job in instance.run("jobs", "list").out
    assert instance.ask("jobs", "list", "--integration", "none") == {"jobs": [], "total": 0}
    shown = instance.ask("jobs", "show", job)
    assert (shown["id"], shown["kind"], shown["progress"], shown["result"]["created"]) == (job, "files", 100, 1)
    text = instance.run("jobs", "show", job).out
    assert "completed" in text
    assert "Starting full sync" in text


def test_a_job_is_stopped_while_it_waits(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.roots / "never"
    with stopped(instance, "worker"):
        job = queue(instance, source, target)
        assert instance.ask("jobs", "show", job)["status"] == "queued"
        assert instance.ask("jobs", "stop", job, "--now")["status"] == "stopped"
        assert instance.run("jobs", "watch", job).code == Exit.FAILED
    again = instance.run("jobs", "resume", job)
    assert (again.code, again.err) == (Exit.FAILED, "undrift: A stopped job cannot be resumed\n")
    assert not target.exists()


def test_a_watch_outlives_the_gateway(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.roots / "outlived"
    with stopped(instance, "worker"):
        job = queue(instance, source, target)
        command = [UNDRIFT, "jobs", "watch", job, "--json", "--data-dir", str(instance.directory)]
        watching = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert watching.stderr is not None
        assert b"queued" in watching.stderr.readline()
        old = instance.ready["processes"]["gateway"]
        os.kill(old, signal.SIGKILL)
        assert until(lambda: instance.ready["processes"].get("gateway", old) != old)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert b'"status": "completed"' in out


def test_a_failed_watch_and_unknown_jobs_have_their_exit_codes(instance: Instance) -> None:
    failed = queue(instance, instance.roots / "gone", instance.roots / "y")
    assert instance.run("jobs", "watch", failed).code == Exit.FAILED
    for command in ("show", "watch", "stop", "resume"):
        assert instance.ask("jobs", command, "sync-job-none", code=Exit.FAILED)["code"] == "JOB_NOT_FOUND"


def test_ctrl_c_leaves_the_job_alone(instance: Instance) -> None:
    source, target = instance.folder(a="1"), instance.roots / "interrupted"
    with stopped(instance, "worker"):
        command = [UNDRIFT, "files", "sync", str(source), str(target), "--data-dir", str(instance.directory)]
        syncing = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        assert syncing.stderr is not None
        job = syncing.stderr.readline().partition(":")[0]
        syncing.send_signal(signal.SIGINT)
        _, err = syncing.communicate(timeout=30)
        assert syncing.returncode == Exit.INTERRUPTED
        assert f"{job} goes on" in err
    assert instance.run("jobs", "watch", job).code == 0
    assert tree(target) == {"a": b"1"}


# Keys and tenants.


def test_a_key_opens_what_its_scopes_say_until_it_is_revoked(instance: Instance) -> None:
    source = instance.folder(a="1")
    added = instance.run("keys", "add", "reader", "--scope", "jobs:read", "--scope", "files", "--root", source)
    token, url = added.out.strip(), instance.ready["url"]
    assert added.code == 0, added.err
    asked = undrift("jobs", "list", "--url", url, UNDRIFT_TOKEN=token)
    assert asked.code == 0, asked.err
    [key] = [one for one in instance.ask("keys", "list")["keys"] if one["name"] == "reader"]
    assert (key["scopes"], key["roots"]) == (["files:read", "files:write", "jobs:read"], [str(source)])
    assert token not in instance.run("keys", "list").out
    beyond = undrift("files", "sync", source, instance.roots / "z", "--url", url, UNDRIFT_TOKEN=token)
    assert beyond.code == Exit.NOT_ALLOWED
    stop = undrift("jobs", "stop", "x", UNDRIFT_URL=url, UNDRIFT_TOKEN=token)
    assert stop.code == Exit.NOT_ALLOWED
    assert instance.run("keys", "revoke", key["id"]).code == 0
    assert until(lambda: undrift("jobs", "list", UNDRIFT_URL=url, UNDRIFT_TOKEN=token).code == Exit.NOT_ALLOWED)
    assert instance.ask("keys", "list", "--tenant", "main")["keys"][-1]["revokedAt"]


def test_wrong_keys_are_refused_with_a_reason(instance: Instance) -> None:
    assert instance.run("keys", "add", "twice", "--scope", "jobs").code == 0
    for code, arguments, reason in (
        (Exit.FAILED, ("twice", "--scope", "jobs"), "has a key named twice"),
        (Exit.FAILED, ("x", "--scope", "jobs", "--tenant", "nobody"), "undrift tenants add nobody"),
        (Exit.USAGE, ("x", "--scope", "everything"), "Unknown scope everything"),
        (Exit.USAGE, ("x",), "--scope"),
    ):
        ran = instance.run("keys", "add", *arguments)
        assert (ran.code, ran.out) == (code, "")
        assert reason in ran.err
    assert instance.run("keys", "revoke", "nothing").code == Exit.FAILED


def test_tenants_share_nothing(instance: Instance) -> None:
    assert instance.ask("tenants", "add", "acme") == {"name": "acme", "added": True}
    assert instance.ask("tenants", "add", "acme") == {"name": "acme", "added": False}
    assert {"main", "acme"} <= {one["name"] for one in instance.ask("tenants", "list")["tenants"]}
    assert instance.run("tenants", "add", "No Name").code == Exit.USAGE
    job = queue(instance, instance.folder(a="1"), instance.roots / "theirs")
    token = instance.ask("keys", "add", "theirs", "--scope", "admin", "--tenant", "acme")["token"]
    own = undrift("jobs", "list", "--json", "--url", instance.ready["url"], UNDRIFT_TOKEN=token)
    assert own.json() == {"jobs": [], "total": 0}
    foreign = undrift("jobs", "show", job, "--url", instance.ready["url"], UNDRIFT_TOKEN=token)
    assert (foreign.code, foreign.err) == (Exit.FAILED, "undrift: There is no such job\n")


# Doctor.


async def test_the_doctor_finds_a_changed_read_model_and_a_rebuild_heals_it(instance: Instance) -> None:
    job = queue(instance, instance.folder(a="1"), instance.roots / "examined")
    assert instance.run("jobs", "watch", job).code == 0
    well = instance.run("doctor")
    assert well.code == 0, well.out + well.err
    connection = await asyncpg.connect(instance.ready["database_url"])
    try:
        schemas = await connection.fetch("select nspname from pg_namespace where nspname ~ '^rm_jobs_[0-9]+$'")
        for (schema,) in schemas:
            await connection.execute(f"update {schema}.jobs set created = 77 where id = $1", job)
    finally:
        await connection.close()
    ill = instance.ask("doctor", code=1)
    assert [one["check"] for one in ill["findings"] if not one["well"]] == ["read model jobs"]
    assert instance.run("doctor", "--format", "json").json()["well"] is False
    assert instance.ask("rebuild", "jobs")["rebuilt"][0]["name"] == "jobs"
    healed = instance.run("doctor", "--retry-parked")
    assert healed.code == 0, healed.out + healed.err


# What every command shares.


def test_the_status_of_what_runs(instance: Instance) -> None:
    found = instance.ask("status")
    assert (found["url"], found["status"]) == (instance.ready["url"], "ready")
    assert found["processes"] == instance.ready["processes"]
    assert undrift("status", "--url", found["url"]).code == 0


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (Exit.USAGE, ["jobs", "lsit"]),
        (Exit.USAGE, ["jobs", "list", "--status", "lost"]),
        (Exit.USAGE, ["jobs", "list", "--url", "http://x", "--data-dir", "y"]),
        (Exit.USAGE, ["jobs", "list", "--url", "ftp://x"]),
        (Exit.USAGE, ["jobs", "list", "--url", "http://127.0.0.1:1", "--token", "ü"]),
        (Exit.USAGE, ["files", "sync", "a"]),
        (Exit.USAGE, ["files", "sync", "a", "b", "--plan", "--apply", "c", "--url", "http://127.0.0.1:1"]),
        (Exit.USAGE, ["keys", "list", "--url", "http://127.0.0.1:1"]),
        (Exit.USAGE, ["rebuild", "nothing"]),
        (Exit.USAGE, ["up", "--port", "70000"]),
        (Exit.UNREACHABLE, ["jobs", "list", "--url", "http://127.0.0.1:1"]),
        (Exit.UNREACHABLE, ["jobs", "list", "--data-dir", "/nonexistent"]),
        (Exit.UNREACHABLE, ["keys", "list", "--data-dir", "/nonexistent"]),
        (Exit.UNREACHABLE, ["status", "--data-dir", "/nonexistent"]),
        (2, ["doctor", "--data-dir", "/nonexistent"]),
    ],
)
def test_whatever_is_wrong_is_one_sentence_and_an_exit_code(code: int, arguments: list[str]) -> None:
    ran = undrift(*arguments)
    assert (code, 1) == (ran.code, len(ran.err.splitlines())), ran.err
    assert ran.out == ""
    if arguments[0] != "up":
        said = undrift(*arguments, "--json")
        assert (code, said.json()["exitCode"]) == (said.code, code)


def test_an_answer_that_is_not_ours_is_no_answer(instance: Instance) -> None:
    nats = instance.ready["nats_url"].rpartition("@")[2].rpartition("/")[2]
    assert undrift("jobs", "list", "--url", f"http://{nats}").code == Exit.UNREACHABLE


def commands(app: App, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    yield above, app
    for name in app:
        if not name.startswith("-"):
            yield from commands(app[name], (*above, name))


def test_every_command_has_help_that_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = dict(commands(cli.app))
    assert found.keys() >= {("up",), ("jobs", "watch"), ("files", "sync"), ("keys", "revoke"), ("doctor",)}
    for command, app in found.items():
        code, (out, err) = cli.main([*command, "--help"]), capsys.readouterr()
        assert (code, err) == (0, "")
        assert "Exit codes: 0" in out
        assert app.default_command is None or ("--json" in out) == (command != ("up",))


def test_the_reader_of_an_answer_may_leave(instance: Instance) -> None:
    ran = subprocess.run(
        f"{UNDRIFT} status --data-dir {instance.directory} | true",
        shell=True,
        env=environment(),
        capture_output=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("url", ["http://", "http://x:99999", "x:y:z", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(WrongAddress):
        Client(url)
