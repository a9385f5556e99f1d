"""SFTP to the files of servers: OpenSSH's client and asyncssh's, against the real process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import os
import threading
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from aiohttp import web

from tests.doubles import panel as double
from tests.journeys.nodes import ask, sftp, sftp_address, taken_over, untroubled
from tests.journeys.sftp_clients import (
    LOST,
    MIB,
    OPENSSH,
    OpenSsh,
    build,
    changed,
    cut_off,
    folder,
    listens,
    read_again_and_again,
    refused,
    suspend,
    uploading,
    write,
)
from tests.journeys.system import System, until

__all__ = ["untroubled"]  # a fixture


@pytest.fixture
def uuid(node: System, panel: double.Panel) -> str:
    made = taken_over(node, panel)
    folder(node, made).joinpath("file").write_text("file")
    return made


@pytest.fixture
def ann(panel: double.Panel, uuid: str) -> str:
    return panel.account(uuid, "ann", "ann's password", "*")


@OPENSSH
def test_opensshs_client_puts_gets_and_lists(node: System, uuid: str, ann: str, tmp_path: Path) -> None:
    openssh, there = OpenSsh(node, ann, tmp_path), folder(node, uuid)
    (tmp_path / "large").write_bytes(os.urandom(3 * MIB + 17))
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "leaf").write_text("leaf")
    code, said = openssh(
        "put large",
        "get large again",
        "mkdir made",
        "rename large made/moved",
        "put -Rp tree",
        "chmod 600 made/moved",
        "ln -s made/moved link",
        "ls -la",
        "df",
        "pwd",
        "get link linked",
        "rm file",
        "!rm again.none",
        "get -R tree back",
    )
    assert code == 0, said
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes() == (tmp_path / "linked").read_bytes()
    assert (there / "made" / "moved").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "back" / "below" / "leaf").read_text() == "leaf"
    assert not (there / "file").exists()
    assert "Remote working directory: /" in said
    assert "64.0MB" in said.replace(" ", "") or "65536" in said  # the disk limit
    assert " made" in said


@OPENSSH
def test_opensshs_client_goes_on_with_an_upload(node: System, uuid: str, ann: str, tmp_path: Path) -> None:
    openssh, there = OpenSsh(node, ann, tmp_path), folder(node, uuid)
    (tmp_path / "large").write_bytes(os.urandom(2 * MIB))
    (there / "large").write_bytes((tmp_path / "large").read_bytes()[:MIB])
    code, said = openssh("reput large", "reget large")
    assert code == 0, said
    assert (there / "large").read_bytes() == (tmp_path / "large").read_bytes()


@OPENSSH
def test_opensshs_client_finds_nothing_outside(node: System, uuid: str, ann: str, tmp_path: Path) -> None:
    openssh, there = OpenSsh(node, ann, tmp_path), folder(node, uuid)
    (there / "etc").symlink_to("/etc")
    (there / "up").symlink_to("../../secrets")
    for path in ("../../secrets/master.key", "/../../secrets/master.key", "etc/passwd", "up/master.key", "/etc/passwd"):
        openssh(f"get {path} stolen", f"put askpass {path}")
        assert not (tmp_path / "stolen").exists()
    assert "root:" in Path("/etc/passwd").read_text()


@OPENSSH
def test_a_key_opens_too_and_nothing_but_files_is_to_be_had(
    node: System, panel: double.Panel, uuid: str, ann: str, tmp_path: Path
) -> None:
    for name in ("mine", "other"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(tmp_path / name))
        (tmp_path / name).chmod(0o600)
        (tmp_path / f"{name}.pub").write_bytes(key.export_public_key())
    panel.accounts[ann].keys = [(tmp_path / "mine.pub").read_text().strip() + " ann@home"]
    openssh = OpenSsh(node, ann, tmp_path)
    assert openssh("get file", key=tmp_path / "mine")[0] == 0
    assert (tmp_path / "file").read_text() == "file"
    code, said = openssh("ls", key=tmp_path / "other")
    assert (code, "Permission denied" in said) == (255, True), said
    asked = [seen.body for seen in panel.seen if seen.path == "/api/remote/sftp/auth"][-1]
    assert (asked["type"], asked["ip"]) == ("public_key", "127.0.0.1")
    assert base64.b64decode(asked["client_version"]).startswith(b"SSH-2.0-OpenSSH")
    assert base64.b64decode(asked["session_id"])


async def test_no_shell_no_command_no_forwarding(node: System, ann: str) -> None:
    host, port = sftp_address(node)
    async with asyncssh.connect(
        host, port, username=ann, password="ann's password", known_hosts=None, config=None, client_keys=None
    ) as connection:
        attempts: list[Any] = [
            lambda: connection.run("id", check=True),
            lambda: connection.create_process(),
            lambda: connection.create_process(term_type="xterm"),
            lambda: connection.open_session(subsystem="netconf"),
            lambda: connection.open_connection("127.0.0.1", port),
            lambda: connection.open_unix_connection("/tmp/socket"),
        ]
        for attempt in attempts:
            with pytest.raises(LOST):
                await attempt()
        with pytest.raises(LOST):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        async with connection.start_sftp_client() as client:
            assert await client.listdir() == ["file"]


async def test_the_newer_protocol(node: System, uuid: str, ann: str) -> None:
    async with sftp(node, ann, "ann's password", version=6) as client:
        assert client.version == 6
        async with client.open("new", "wb") as file:
            await file.write(b"x" * 100)
            await file.seek(10_000)
            await file.write(b"y")
            await file.fsync()
        async with client.open("new", "ab") as file:
            await file.write(b"z")
        assert (await client.stat("new")).size == 10_002
        await client.rename("new", "file", flags=asyncssh.FXR_OVERWRITE)
        assert await client.listdir() == ["file"]
        with pytest.raises(asyncssh.SFTPFileAlreadyExists):
            await client.open("file", "xb")
        with pytest.raises(asyncssh.SFTPOpUnsupported):
            await client.link("file", "again")
        await client.remote_copy("file", "copy")
        assert (folder(node, uuid) / "copy").read_bytes() == (folder(node, uuid) / "file").read_bytes()
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.stat("../../secrets/master.key")


async def test_ten_thousand_names(node: System, uuid: str, ann: str) -> None:
    there = folder(node, uuid) / "many"
    there.mkdir()
    for number in range(10_000):
        (there / f"{number:05}").touch()
    async with sftp(node, ann, "ann's password") as client:
        assert sorted(await client.listdir("many")) == [f"{number:05}" for number in range(10_000)]


async def test_the_disk_limit_as_it_is_now(node: System, panel: double.Panel, uuid: str, ann: str) -> None:
    there = folder(node, uuid)
    async with sftp(node, ann, "ann's password") as client:
        with changed(node, panel, uuid, build=build(disk_space=1)):
            await _eventually(client, MIB)
            with pytest.raises(asyncssh.SFTPFailure, match="used up"):
                await write(client, "large", 100 * 100_000)
            assert (there / "large").stat().st_size <= MIB - 4
            await client.remove("large")
        with changed(node, panel, uuid, build=build(disk_space=0)):
            await _eventually(client, None)
            async with client.open("large", "wb") as file:
                await file.write(b"x" * 2 * MIB)
        assert (there / "large").stat().st_size == 2 * MIB


async def _eventually(client: asyncssh.SFTPClient, size: int | None) -> None:
    """Until the session goes by another disk limit; None: by none."""
    async with asyncio.timeout(20):
        while True:
            found = await client.statvfs("/")
            total = found.blocks * found.frsize
            if total == size or (size is None and total > 1 << 30):
                return
            await asyncio.sleep(0.02)


async def test_denied_files_as_they_are_now(node: System, panel: double.Panel, uuid: str, ann: str) -> None:
    async with sftp(node, ann, "ann's password") as client:
        assert await client.listdir() == ["file"]
        with changed(node, panel, uuid, egg={"id": "egg-1", "file_denylist": ["file"]}):
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await read_again_and_again(client, "file")
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await client.rename("file", "other")


async def test_each_does_what_they_may(node: System, panel: double.Panel, uuid: str) -> None:
    bob = panel.account(uuid, "bob", "bob's password", "file.read", "file.create")
    async with sftp(node, bob, "bob's password") as client:
        assert await client.listdir() == ["file"]
        async with client.open("new", "wb") as file:
            await file.write(b"new")
        attempts: list[Any] = [
            lambda: client.open("file", "rb"),
            lambda: client.open("file", "wb"),
            lambda: client.remove("file"),
            lambda: client.rename("file", "other"),
            lambda: client.chmod("file", 0o777),
            lambda: client.truncate("file", 0),
        ]
        for attempt in attempts:
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await attempt()
    assert (folder(node, uuid) / "new").read_text() == "new"


async def test_nobody_else_comes_in(node: System, panel: double.Panel, uuid: str, ann: str) -> None:
    other = panel.add()  # of which this node does not know
    panel.account(other, "ann", "ann's password", "*")
    asked = len([seen for seen in panel.seen if seen.path.endswith("/sftp/auth")])
    assert await refused(node, ann, "another's password")
    assert await refused(node, f"nobody.{uuid[:8]}", "ann's password")
    assert await refused(node, f"ann.{other[:8]}", "ann's password")
    assert len([seen for seen in panel.seen if seen.path.endswith("/sftp/auth")]) == asked + 3
    for name in ("ann", uuid, "", f"ann.{uuid[:7]}", f"ann.{uuid}", "root"):
        assert await refused(node, name, "ann's password")
    assert len([seen for seen in panel.seen if seen.path.endswith("/sftp/auth")]) == asked + 3
    assert "another's password" not in node.said()
    assert not await refused(node, ann, "ann's password")


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: web.Response(status=429, text='{"errors":[{"code":"TooManyRequestsHttpException","status":"429"}]}'),
        lambda _: web.Response(status=502),
        lambda _: web.Response(text="<html>"),
        lambda _: web.json_response({"server": "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d", "user": "x", "permissions": []}),
        lambda _: web.json_response({"server": 5}),
        lambda _: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_a_panel_in_trouble_lets_nobody_in_and_no_one_out(
    node: System, panel: double.Panel, ann: str, answer: double.Answer
) -> None:
    async with sftp(node, ann, "ann's password") as client:
        panel.trouble = answer
        assert await refused(node, ann, "ann's password")
        assert await client.listdir() == ["file"]
        panel.trouble = None
        assert not await refused(node, ann, "ann's password")


async def test_a_suspension_cuts_everybody_off_at_once(node: System, panel: double.Panel, uuid: str, ann: str) -> None:
    bystander = taken_over(node, panel)
    other = panel.account(bystander, "eve", "eve's password", "*")
    async with sftp(node, other, "eve's password") as unharmed:
        begun = [asyncio.Event(), asyncio.Event()]
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(sftp(node, ann, "ann's password")) for _ in range(3)]
            writing = [asyncio.create_task(uploading(clients[n], f"{n}", begun[n])) for n in range(2)]
            for one in begun:
                await one.wait()
            await asyncio.to_thread(suspend, node, panel, uuid)
            await asyncio.wait_for(asyncio.gather(*writing), 20)
            assert await cut_off(clients[2])
            # the Panel says so, and who asks one that does not say so yet is refused all the same
            assert await refused(node, ann, "ann's password")
            after = (folder(node, uuid) / "0").stat().st_mtime_ns  # what the disk was given before the cut has come
            panel.servers[uuid].settings["suspended"] = False
            assert await refused(node, ann, "ann's password")
            panel.servers[uuid].settings["suspended"] = True
            assert (folder(node, uuid) / "0").stat().st_mtime_ns == after
            await asyncio.to_thread(suspend, node, panel, uuid, False)
        async with sftp(node, ann, "ann's password") as client:
            assert "file" in await client.listdir()
        assert await unharmed.listdir() == []


async def test_whoever_wants_to_know_is_told_how_many_were_cut_off(
    node: System, panel: double.Panel, uuid: str, ann: str
) -> None:
    async with sftp(node, ann, "ann's password") as one, sftp(node, ann, "ann's password") as other:
        panel.change(uuid, suspended=True)
        prefer = {"Prefer": "return=representation"}
        answer = await asyncio.to_thread(ask, node, "POST", f"/api/servers/{uuid}/sync", **prefer)
        assert answer.json()["clients_cut"] == 2
        assert await cut_off(one)
        assert await cut_off(other)


async def test_who_is_deauthorized_is_cut_off_and_nobody_else(
    node: System, panel: double.Panel, uuid: str, ann: str
) -> None:
    bob = panel.account(uuid, "bob", "bob's password", "*")
    async with sftp(node, ann, "ann's password") as his, sftp(node, bob, "bob's password") as others:
        assert await his.listdir() == await others.listdir()
        body = {"user": panel.accounts[ann].user, "servers": [uuid]}
        assert ask(node, "POST", "/api/deauthorize-user", body).status == 204
        assert await cut_off(his)
        assert await others.listdir() == ["file"]


async def test_who_is_deauthorized_while_the_panel_is_asked_does_not_come_in(
    node: System, panel: double.Panel, uuid: str, ann: str
) -> None:
    asked, said = threading.Event(), threading.Event()
    login = {"server": uuid, "user": panel.accounts[ann].user, "permissions": ["*"]}

    async def slowly(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/sftp/auth"):
            return None
        asked.set()
        await asyncio.to_thread(said.wait, 20)
        return web.json_response(login)

    panel.trouble = slowly
    coming = asyncio.create_task(refused(node, ann, "ann's password"))
    assert await asyncio.to_thread(asked.wait, 20)
    body = {"user": panel.accounts[ann].user, "servers": [uuid]}
    assert (await asyncio.to_thread(ask, node, "POST", "/api/deauthorize-user", body)).status == 204
    await asyncio.sleep(0.5)  # until the process has heard of it
    said.set()
    assert await coming


async def test_a_deleted_server_is_closed(node: System, uuid: str, ann: str) -> None:
    async with sftp(node, ann, "ann's password") as client:
        assert await client.listdir() == ["file"]
        assert (await asyncio.to_thread(ask, node, "DELETE", f"/api/servers/{uuid}")).status == 204
        assert await cut_off(client)
    assert await refused(node, ann, "ann's password")


async def test_the_panel_is_told_what_was_done(node: System, panel: double.Panel, uuid: str, ann: str) -> None:
    def told() -> list[tuple[str, Any]]:
        return [(one["event"], one["metadata"]["files"]) for one in panel.activities if one["server"] == uuid]

    def away(request: web.Request) -> web.Response | None:
        return web.Response(status=500) if request.path.endswith("/activity") else None

    panel.trouble = away
    async with sftp(node, ann, "ann's password") as client:
        for name in ("a", "b"):
            async with client.open(name, "wb") as file:
                await file.write(b"x")
        async with client.open("file", "ab") as file:
            await file.write(b"x")
        async with client.open("file", "rb") as file:
            await file.read()
        await client.mkdir("folder")
        await client.rename("a", "c")
        await client.remove("b")
        await client.rmdir("folder")
    panel.trouble = None
    expected = {
        "server:sftp.create": ["/a", "/b"],
        "server:sftp.write": ["/file"],
        "server:sftp.create-directory": ["/folder"],
        "server:sftp.rename": [{"from": "/a", "to": "/c"}],
        "server:sftp.delete": ["/b", "/folder"],
    }

    def files() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for event, some in told():
            found.setdefault(event, []).extend(some)
        return found

    assert await asyncio.to_thread(until, lambda: files() == expected, 30) or files() == expected
    one = next(one for one in panel.activities if one["server"] == uuid)
    assert (one["user"], one["ip"]) == (panel.accounts[ann].user, "127.0.0.1")
    assert one["timestamp"].endswith("Z")


async def test_the_host_key_is_kept(node: System, ann: str) -> None:
    host, port = sftp_address(node)
    before = await asyncssh.get_server_host_key(host, port)
    kept = node.directory / "secrets" / "sftp_host_ed25519.key"
    assert kept.stat().st_mode & 0o777 == 0o600
    pid = node.kill("sftp")
    assert await asyncio.to_thread(until, lambda: node.pids.get("sftp", pid) != pid)
    assert await asyncio.to_thread(until, lambda: listens(host, port))
    after = await asyncssh.get_server_host_key(host, port)
    assert before is not None
    assert after is not None
    assert before.export_public_key() == after.export_public_key()
    assert not await refused(node, ann, "ann's password")


def test_who_speaks_something_else_is_sent_away(node: System) -> None:
    connection = http.client.HTTPConnection(*sftp_address(node), timeout=20)
    connection.request("GET", "/")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()


async def test_so_many_channels_on_a_connection_and_no_more(node: System, ann: str) -> None:
    host, port = sftp_address(node)
    options: dict[str, Any] = {"known_hosts": None, "config": None, "client_keys": None, "agent_path": None}
    async with asyncssh.connect(host, port, username=ann, password="ann's password", **options) as connection:
        opened = [await connection.start_sftp_client() for _ in range(4)]
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.start_sftp_client()
        opened[0].exit()
        await opened[0].wait_closed()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(asyncssh.ChannelOpenError):
                    again = await connection.start_sftp_client()
                    break
                await asyncio.sleep(0.02)
        assert await again.listdir() == await opened[1].listdir() == ["file"]
