"""The README says what is so: its lines run as they stand, its tables are those of the code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra import config, configfile
from services import cli
from services.cli_common import Exit
from tests.journeys.conftest import Instance, environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [README, (ROOT / "ARCHITECTURE.md").read_text(), (ROOT / "CHANGELOG.md").read_text()]


def blocks(language: str, text: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [inside for named, inside in found if named == language]


def rows(text: str) -> list[list[str]]:
    """The rows of tables whose first cell is code or a number."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in found if re.match(r"`|[0-9]", cells[0])]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(README) if len(cells) == 3}
    defaults = json.loads(configfile.dump(config.Settings()))
    actual = {}
    for setting in configfile.all_settings():
        value: Any = defaults
        for part in setting.dotted.split("."):
            value = value[part]
        actual[setting.dotted] = msgspec.json.encode(value).decode()
    assert actual == documented


def test_every_exit_code_is_documented() -> None:
    documented = [int(cells[0]) for cells in rows(README) if len(cells) == 2]
    assert list(Exit) == documented


def test_the_settings_file_is_one(tmp_path: Path) -> None:
    shown = []
    for number, text in enumerate(blocks("toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        shown.append(configfile.load(file, environ={}))
    [chosen] = [one for one in shown if one.files.roots]
    assert (chosen.gateway.port, len(chosen.files.roots), chosen.integrations[0].kind) == (9000, 2, "files")


def test_every_command_that_is_shown_exists() -> None:
    shown = re.findall(r"^undrift ([a-z]+)(?: ([a-z]+)\b)?", "\n".join(blocks("")), re.MULTILINE)
    assert len(shown) > 8
    for name, below in shown:
        app = cli.app[name]
        assert not below or below in app


def test_every_target_file_and_folder_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(re.findall(r"`[^`]+`", README)))) <= targets
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", "\n".join(PAGES)):
        assert (ROOT / link).exists(), link
    above = ""
    for indent, name in re.findall(r"^( *)([a-z]+/) ", blocks("")[-1], re.MULTILINE):
        above = "" if not indent else above
        assert (ROOT / above / name).is_dir(), name
        above = above or name


def test_the_first_sync_runs_as_it_is_written(instance: Instance) -> None:
    section = README.partition("## A first sync")[2].partition("\n## ")[0]
    script = "\n".join(blocks("sh", section))
    demo = instance.roots / "undrift-demo"
    demo.mkdir()
    for written, here in (
        ("~/undrift-demo", str(demo)),
        ("http://127.0.0.1:8080", instance.ready["url"]),
        ("~/.local/share/undrift", str(instance.directory)),
    ):
        assert written in script
        script = script.replace(written, here)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answers = documents(ran.stdout)
    first, plan, applied, jobs, _, started, status, feed = answers
    assert first.keys() == json.loads(blocks("json", section)[0]).keys()
    assert (first["changesApplied"], plan["created"], applied["changesApplied"]) == (2, 1, 1)
    assert jobs["total"] >= 2
    assert started["success"]
    assert "photos" in [one["integrationId"] for one in status["integrations"]]
    assert [one["position"] for one in feed["events"]] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (demo / "copy").iterdir()) == ["a.txt", "b.txt", "c.txt"]


def test_two_folders_of_a_library_run_as_they_are_written(instance: Instance, tmp_path: Path) -> None:
    section = README.partition("## Devices and the library")[2].partition("\n## ")[0]
    script = "\n".join(blocks("sh", section))
    for written, here in (
        ("~/undrift-devices", str(tmp_path / "devices")),
        ("http://127.0.0.1:8080", instance.ready["url"]),
        ("~/.local/share/undrift", str(instance.directory)),
    ):
        assert written in script
        script = script.replace(written, here)
    own = environment()
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=own, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("buy milk\n") or "\nbuy milk\n" in ran.stdout
    assert "buy milk and tea" in ran.stdout
    assert "buy bread" in ran.stdout
    assert "picture" in ran.stdout
    assert ran.stdout.splitlines()[-1] in ("buy milk and tea", "buy bread")
    kept = {path.name: path.read_text() for path in (tmp_path / "devices" / "laptop").iterdir() if path.is_file()}
    assert {"buy milk and tea\n", "buy bread\n"} <= set(kept.values())


def test_the_consumer_of_nats_runs_as_it_is_written(instance: Instance, tmp_path: Path) -> None:
    section = README.partition("## NATS consumers")[2].partition("\n## ")[0]
    script = "\n".join(blocks("sh", section))
    for written, here in (
        ("~/undrift-consumer", str(tmp_path / "consumer")),
        ("http://127.0.0.1:8080", instance.ready["url"]),
        ("~/.local/share/undrift", str(instance.directory)),
    ):
        assert written in script
        script = script.replace(written, here)
    (tmp_path / "consumer").mkdir()
    [program] = blocks("python", section)
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    (tmp_path / "consumer" / "consumer.py").write_text(program)
    own = environment()
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=own, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *told, feed = ran.stdout.splitlines()
    assert [line.split()[0] for line in told] == ["1", "2", "3", "4"][: len(told)]
    assert len(told) > 2
    assert {one["type"].partition(".")[0] for one in json.loads(feed)["events"]} == {"consumers", "keys"}


def test_time_and_why_run_as_they_are_written(instance: Instance, tmp_path: Path) -> None:
    done = instance.ask("files", "sync", instance.folder(a="1"), instance.roots / "as it was")
    section = README.partition("## Time and why")[2].partition("\n## ")[0]
    script = "\n".join(blocks("sh", section))
    for written, here in (
        ("http://127.0.0.1:8080", instance.ready["url"]),
        ("~/.local/share/undrift", str(instance.directory)),
    ):
        assert written in script
        script = script.replace(written, here)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    before, why, position = documents(ran.stdout)
    assert (done["success"], before["status"], why["value"]) == (True, "queued", "completed")
    assert [link["type"] for link in why["chain"]][:2] == ["jobs.completed", "jobs.queued"]
    assert position["position"] <= position["head"]


def test_the_receiver_of_webhooks_runs_as_it_is_written(instance: Instance, tmp_path: Path) -> None:
    section = README.partition("## Webhooks")[2].partition("\n## ")[0]
    script, [program] = "\n".join(blocks("sh", section)), blocks("python", section)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for written, here in (
        ("~/undrift-webhook", str(tmp_path / "webhook")),
        ("http://127.0.0.1:8080", instance.ready["url"]),
        ("~/.local/share/undrift", str(instance.directory)),
        ("8099", port),
    ):
        assert written in script
        script, program = script.replace(written, here), program.replace(written, here)
    (tmp_path / "webhook").mkdir()
    (tmp_path / "webhook" / "receiver.py").write_text(program)
    own = environment()
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=own, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [received] = re.findall(r"(msg_[\w-]+) webhooks\.tested (.*)$", ran.stdout, re.MULTILINE)
    page = json.loads('{"events"' + ran.stdout.partition('{"events"')[2])
    assert [(one["webhookId"], one["body"]["data"]) for one in page["events"]] == [
        (received[0], json.loads(received[1]))
    ]


def documents(text: str) -> list[Any]:
    """The JSON documents that follow one another in a text."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=["README", "ARCHITECTURE", "CHANGELOG"])
def test_paths_that_are_named_exist(page: str) -> None:
    for name in re.findall(r"`((?:domain|infra|services|projections|tests)/[\w/.]+)`", page):
        assert (ROOT / name).exists(), name
