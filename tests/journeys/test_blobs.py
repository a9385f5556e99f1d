"""Libraries whose bytes are in a store elsewhere: the same files, ranges and memory; it may be away for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.doubles.s3 import S3, serving
from tests.journeys.libraries import Device, user
from tests.journeys.system import System
from tests.journeys.test_tus import opened, patch
from tests.journeys.test_uploads import peak

MIB = 1 << 20


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def far(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    base = tmp_path_factory.mktemp("far")
    system = System(base, System(base).settings + '[blobs]\nurl = "s3://bucket/libraries"\n', s3.environment)
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture(scope="module")
def laptop(far: System) -> Device:
    return user(far).device()


def test_files_are_there_and_nowhere_else(laptop: Device, s3: S3) -> None:
    data = os.urandom(9 * MIB + 5)
    done = laptop.upload("far/away", data)
    digest = done["content_hash"]
    assert s3.objects[f"libraries/{digest[:2]}/{digest[2:]}"] == data
    assert laptop.download("far/away").body == data
    for first, last in ((0, 0), (MIB - 1, 5 * MIB), (9 * MIB, 9 * MIB + 4)):
        answer = laptop.download("far/away", Range=f"bytes={first}-{last}")
        assert (answer.status, answer.body) == (206, data[first : last + 1])
    parts = laptop.download("far/away", Range="bytes=0-3,5000000-5000005")
    assert data[:4] in parts.body
    assert data[5_000_000:5_000_006] in parts.body
    assert laptop.download("far/away", **{"If-None-Match": f'"{digest}"'}).status == 304
    assert not list((laptop.system.directory / "blobs").rglob(digest[2:]))
    assert not list((laptop.system.directory / "uploads").iterdir())


def test_over_tus_too(laptop: Device) -> None:
    data = os.urandom(5 * MIB)
    assert patch(laptop, opened(laptop, "far/tus", len(data)), 0, data).status == 204
    assert laptop.download("far/tus").body == data


def test_a_store_that_is_away_loses_nothing(laptop: Device, s3: S3) -> None:
    data = os.urandom(MIB)
    opened = laptop.open("later", data)
    for index in range(opened["chunk_count"]):
        laptop.chunk(opened, index, data)
    complete = f"/api/v1/sync/upload/{opened['id']}/complete"
    s3.refusing = 403
    try:
        refused = laptop.call("POST", complete)
        assert refused.status == 503
        assert "retry-after" in refused.headers
        assert laptop.download("far/away").status == 503
        assert s3.secret not in laptop.system.said() + refused.body.decode()
    finally:
        s3.refusing = 0
    assert laptop.ok("POST", complete)["status"] == "completed"
    assert laptop.download("later").body == data


def test_memory_stays_flat(laptop: Device) -> None:
    data = os.urandom(MIB) * 96
    laptop.upload("warm", data[:MIB])
    laptop.download("warm")
    where = opened(laptop, "large", len(data))
    before = peak(laptop.system)
    assert patch(laptop, where, 0, data).status == 204
    assert laptop.download("large").body == data
    assert peak(laptop.system) - before < 64_000  # kB
