"""What a server is started with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from domain import errors, server_config
from domain.server_config import Mount
from infra import config
from infra.volumes import Volumes
from services.node import launching
from tests.domain.test_servers_plan import read


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("/mnt/a", True),
        ("/mnt/a/b", True),
        ("/mnt/a/../a", True),
        ("/mnt/ab", False),
        ("/mnt/a/../b", False),
        ("/mnt", False),
        ("mnt/a", False),
        ("", False),
    ],
)
def test_only_what_lies_below_an_allowed_folder_is_mounted(source: str, allowed: bool) -> None:
    mount = Mount(source, "/data", True)
    good, refused = launching.mounts([mount], ["/srv", "/mnt/a/"])
    assert (good, list(refused)) == (((mount,), []) if allowed else ((), [mount]))


async def test_it_gets_its_folder_its_limits_and_its_environment(tmp_path: Path) -> None:
    settings = config.Settings(data_dir=str(tmp_path))
    one = read()
    launch, said = await launching.prepared(settings, Volumes(settings), one, "172.18.0.1")
    assert launch.folder == str(tmp_path / "servers" / one.uuid)
    assert os.path.isdir(launch.folder)
    assert launch.limits == server_config.limits(one.build)
    assert launch.environment["STARTUP"] == one.startup.invocation
    assert said == ["/mnt/a may not be mounted here"]
    assert os.listdir(launch.folder) == ["server.properties"]
    shutil.rmtree(launch.folder)
    (tmp_path / "servers" / one.uuid).write_text("in the way")
    with pytest.raises(errors.SyncFailed):
        await launching.prepared(settings, Volumes(settings), one, "172.18.0.1")
