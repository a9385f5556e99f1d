"""Blobs: the same here and in a store elsewhere, whole or not at all, and nothing of a secret in what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest

from domain import errors
from infra import blobs, blobs_remote
from infra.blobs import Contents, Missing
from infra.config import InvalidSetting
from tests.doubles.s3 import S3, serving

MIB = 1 << 20
NONE = "0" * 64


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["local", "file", "s3"])
def contents(request: pytest.FixtureRequest, tmp_path: Path) -> Contents:
    match request.param:
        case "local":
            return blobs_remote.contents("", tmp_path / "blobs")
        case "file":
            return blobs_remote.contents(f"file://{tmp_path}/elsewhere", tmp_path / "unused")
        case _:
            request.getfixturevalue("s3")
            return blobs_remote.contents("s3://bucket/some/prefix", tmp_path / "unused")


def digest(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()


def pieces(contents: Contents, data: bytes, first: int, last: int) -> list[bytes]:
    opened = contents.open(digest(data), len(data))
    try:
        return list(opened.pieces(first, last))
    finally:
        opened.close()


def test_what_was_put_is_there(contents: Contents) -> None:
    for data in (b"", b"1", os.urandom(MIB + 1)):
        assert not contents.exists(digest(data))
        assert [contents.put(data) for _ in range(2)] == [digest(data)] * 2
        assert contents.exists(digest(data))
        assert contents.read(digest(data)) == data


def test_a_file_is_adopted(contents: Contents, tmp_path: Path) -> None:
    data = os.urandom(20 * MIB + 5)
    for given in (None, digest(data)):
        source = tmp_path / "source"
        source.write_bytes(data)
        assert contents.adopt(source, given) == digest(data)
        assert not source.exists()
    assert contents.read(digest(data)) == data


def test_any_range_comes_in_pieces(contents: Contents) -> None:
    data = os.urandom(9 * MIB + 3)
    contents.put(data)
    for first, last in (
        (0, len(data) - 1),
        (0, 0),
        (5, 5 + MIB),
        (4 * MIB - 1, 8 * MIB + 1),
        (len(data) - 1,) * 2,
        (0, -1),
    ):
        found = pieces(contents, data, first, last)
        assert b"".join(found) == data[first : last + 1]
        assert max(map(len, found), default=0) <= MIB


def test_what_is_not_there_is_missing(contents: Contents) -> None:
    contents.put(b"1")
    with pytest.raises(Missing):
        contents.read(NONE)
    for name, size in ((NONE, 1), (digest(b"1"), 2), ("../x", 1), ("A" * 64, 1), ("", 0)):
        with pytest.raises(Missing):
            contents.open(name, size)


def test_what_is_deleted_is_gone(contents: Contents) -> None:
    contents.put(b"1")
    contents.put(b"2")
    for _ in range(2):
        contents.delete(digest(b"1"))
        assert not contents.exists(digest(b"1"))
    assert contents.read(digest(b"2")) == b"2"


def test_what_is_being_read_outlasts_its_name(tmp_path: Path) -> None:
    contents = blobs.Blobs(tmp_path)
    contents.put(b"123")
    opened = contents.open(digest(b"123"), 3)
    contents.delete(digest(b"123"))
    assert list(opened.pieces(0, 2)) == [b"123"]
    opened.close()


def test_bytes_that_changed_are_missing(contents: Contents, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    contents.put(b"right")
    name = blobs.key(digest(b"right"))
    if "s3" in request.node.callspec.params.values():
        server: S3 = request.getfixturevalue("s3")
        server.objects[f"some/prefix/{name}"] = b"wrong"
    else:
        [path] = tmp_path.glob(f"*/{name}")
        path.write_bytes(b"wrong")
    with pytest.raises(Missing):
        contents.read(digest(b"right"))


def test_a_large_file_goes_up_in_parts(s3: S3, tmp_path: Path) -> None:
    data = os.urandom(33 * MIB)
    (tmp_path / "source").write_bytes(data)
    blobs_remote.Remote("s3://bucket").adopt(tmp_path / "source")
    assert s3.largest <= 9 * MIB
    assert s3.objects[blobs.key(digest(data))] == data
    assert s3.open_uploads == 0


def test_an_upload_that_fails_keeps_the_file(s3: S3, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 * MIB))
    s3.refusing = 403
    with pytest.raises(errors.Unavailable):
        blobs_remote.Remote("s3://bucket").adopt(source, digest(source.read_bytes()))
    assert source.exists()
    assert s3.objects == {}


def test_a_store_that_cannot_be_reached_tells_no_secret(s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    s3.refusing = 403
    remote = blobs_remote.Remote("s3://bucket")
    for call in (lambda: remote.exists(NONE), lambda: remote.put(b"1"), lambda: remote.delete(NONE)):
        with pytest.raises(errors.Unavailable) as caught:
            call()
        said = f"{caught.value!r} {caught.value.details} {caught.value.__cause__} {caplog.text}"
        assert not any(secret in said for secret in s3.environment.values())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "bucket",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?secret=1",
        "s3:///x",
        "file://host/x",
        "https://bucket.s3.amazonaws.com",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting) as caught:
        blobs_remote.contents(url, tmp_path)
    assert "secret" not in str(caught.value)
