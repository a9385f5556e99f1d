"""Downloads by the letter of RFC 9110, and never of two versions mixed."""

from __future__ import annotations

import email
import hashlib
import os
import subprocess
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.journeys.libraries import Device, user
from tests.journeys.system import System

SIZE = 100_000
DATA = os.urandom(SIZE)


@pytest.fixture(scope="module")
def laptop(system: System) -> Device:
    device = user(system).device()
    device.upload("dir/file.bin", DATA)
    return device


def test_the_whole_file_says_what_it_is(laptop: Device) -> None:
    answer = laptop.download("dir/file.bin")
    assert (answer.status, answer.body) == (200, DATA)
    digest = f"sha-256=:{b64encode(hashlib.sha256(DATA).digest()).decode()}:"
    assert (answer.headers["repr-digest"], answer.headers["content-digest"]) == (digest, digest)
    assert answer.headers["accept-ranges"] == "bytes"
    head = laptop.call("HEAD", "/api/v1/sync/download/dir/file.bin")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(SIZE)
    assert head.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=99990-", 99_990, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        ("bytes=-999999", 0, SIZE - 1),
        ("bytes=99990-200000", 99_990, SIZE - 1),
        ("bytes=0-9,5-14", 0, 14),
        ("bytes=0-9, 10-19", 0, 19),
        ("BYTES=1-2", 1, 2),
    ],
)
def test_one_range(laptop: Device, wanted: str, first: int, last: int) -> None:
    answer = laptop.download("dir/file.bin", Range=wanted)
    assert (answer.status, answer.body) == (206, DATA[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"


@pytest.mark.parametrize(
    "wanted",
    ["bytes=9-1", "bytes=a-b", "bytes", "lines=1-2", "bytes=", "bytes=-", "bytes=" + "1-2,4-5," * 9, "x" * 999],
)
def test_what_is_no_range_is_as_if_it_were_not_said(laptop: Device, wanted: str) -> None:
    answer = laptop.download("dir/file.bin", Range=wanted)
    assert (answer.status, len(answer.body)) == (200, SIZE)


@pytest.mark.parametrize("wanted", ["bytes=100000-", "bytes=-0", "bytes=200000-300000", "bytes=100000-,-0"])
def test_no_byte_of_the_file(laptop: Device, wanted: str) -> None:
    answer = laptop.download("dir/file.bin", Range=wanted)
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert list(answer.json()) == ["error"]


def test_several_ranges(laptop: Device) -> None:
    answer = laptop.download("dir/file.bin", Range="bytes=0-9,100-109,-5")
    assert answer.status == 206
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.body).get_payload()
    assert isinstance(parts, list)
    assert [part["content-range"] for part in parts] == [
        f"bytes 0-9/{SIZE}",
        f"bytes 100-109/{SIZE}",
        f"bytes 99995-99999/{SIZE}",
    ]
    assert int(answer.headers["content-length"]) == len(answer.body)
    for expected in (DATA[:10], DATA[100:110], DATA[-5:]):
        assert expected in answer.body


def test_conditions(laptop: Device) -> None:
    whole = laptop.download("dir/file.bin")
    etag, modified = whole.headers["etag"], whole.headers["last-modified"]
    for name, value in (("If-None-Match", etag), ("If-None-Match", f'"x", W/{etag}'), ("If-None-Match", "*")):
        answer = laptop.download("dir/file.bin", **{name: value})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert laptop.download("dir/file.bin", **{"If-Modified-Since": modified}).status == 304
    assert laptop.download("dir/file.bin", **{"If-None-Match": '"other"'}).status == 200
    for condition, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200), (modified, 206), ("garbage", 200)):
        assert laptop.download("dir/file.bin", Range="bytes=0-9", **{"If-Range": condition}).status == status


@pytest.mark.parametrize("path", ["nothing", "dir", "../../etc/passwd", "%2e%2e/x", "dir/file.bin/x", "a%00b"])
def test_what_is_not_there(laptop: Device, path: str) -> None:
    assert laptop.download(path).status in (400, 404)


def test_names_of_any_kind(laptop: Device) -> None:
    laptop.upload("日本/100% ?#[x].txt", b"named")
    assert laptop.download("%E6%97%A5%E6%9C%AC/100%25%20%3F%23%5Bx%5D.txt").body == b"named"


def test_one_etag_is_one_version_while_it_is_replaced(laptop: Device) -> None:
    versions = [bytes([number]) * 300_000 for number in range(12)]
    laptop.upload("busy", versions[0])
    by_etag: dict[str, set[int]] = {}

    def read(_: int) -> None:
        answer = laptop.download("busy")
        assert len(answer.body) == 300_000
        by_etag.setdefault(answer.headers["etag"], set()).update(set(answer.body))

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read, number) for number in range(80)]
        for data in versions[1:]:
            laptop.upload("busy", data)
        for one in reading:
            one.result()
    assert all(len(found) == 1 for found in by_etag.values())
    assert len(by_etag) > 1


def test_curl_resumes_and_notices_that_the_file_has_changed(laptop: Device, tmp_path: Path) -> None:
    laptop.upload("resumed", DATA)
    target = tmp_path / "file"
    url = f"{laptop.system.ready['url']}/api/v1/sync/download/resumed"
    config = tmp_path / "curl.conf"
    config.write_text(f'header = "Authorization: Bearer {laptop.token}"\n')
    curl = ["curl", "--silent", "--show-error", "--fail", "--config", str(config)]
    subprocess.run([*curl, "--range", "0-49999", "-o", str(target), url], check=True)
    assert target.read_bytes() == DATA[:50_000]
    subprocess.run([*curl, "-C", "-", "-o", str(target), url], check=True)
    assert target.read_bytes() == DATA
    etag = laptop.download("resumed").headers["etag"]
    laptop.upload("resumed", b"new" * 1000)
    target.write_bytes(DATA[:100])
    subprocess.run([*curl, "-C", "100", "-H", f"If-Range: {etag}", "-o", str(tmp_path / "new"), url], check=False)
    whole = laptop.download("resumed", Range="bytes=100-", **{"If-Range": etag})
    assert (whole.status, whole.body) == (200, b"new" * 1000)
    many = [f"{tmp_path}/p{number}" for number in range(3)]
    arguments = [part for one in many for part in ("-o", one, url)]
    subprocess.run([*curl, "--parallel", *arguments], check=True)
    assert {Path(one).read_bytes() for one in many} == {b"new" * 1000}
