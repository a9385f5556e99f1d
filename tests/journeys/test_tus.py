"""tus 1.0: the published client as it is, each rule of the protocol, and uploads that change their way."""

from __future__ import annotations

import hashlib
import os
import select
import socket
from base64 import b64encode
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from tusclient.client import TusClient

from tests.journeys.libraries import Device, User, sha, user
from tests.journeys.system import Answer, System, at_once, until

BASE = "/api/v1/sync/tus"
CHUNK = 4 << 20
MEDIA = "application/offset+octet-stream"


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


@pytest.fixture
def laptop(ann: User) -> Device:
    return ann.device()


def client(device: Device) -> TusClient:
    return TusClient(f"{device.system.ready['url']}{BASE}", headers={"Authorization": f"Bearer {device.token}"})


def tus(device: Device, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return device.call(method, path, body, headers={"Tus-Resumable": "1.0.0", **named})


def told(**metadata: str) -> str:
    return ",".join(f"{key} {b64encode(value.encode()).decode()}" for key, value in metadata.items())


def opened(device: Device, path: str, size: int, **metadata: str) -> str:
    said = told(target_path=path, **metadata)
    answer = tus(device, "POST", BASE, Upload_Length=str(size), Upload_Metadata=said)
    assert answer.status == 201, answer
    return answer.headers["location"]


def patch(device: Device, where: str, offset: int, data: bytes, **headers: str) -> Answer:
    return tus(device, "PATCH", where, data, Upload_Offset=str(offset), Content_Type=MEDIA, **headers)


def offset(device: Device, where: str) -> int:
    answer = tus(device, "HEAD", where)
    assert answer.status == 200, answer
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def broken(device: Device, where: str, at: int, sent: bytes, length: int, **headers: str) -> socket.socket:
    """A PATCH of which only some is sent."""
    address = urlsplit(device.system.ready["url"])
    named = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(at), "Content-Type": MEDIA, "Content-Length": str(length)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"PATCH {where} HTTP/1.1", f"Host: {address.netloc}", f"Authorization: Bearer {device.token}"]
    lines += [f"{name}: {value}" for name, value in named.items()]
    wire = socket.create_connection((address.hostname, address.port))
    wire.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + sent)
    return wire


def is_open(wire: socket.socket) -> bool:
    """Nothing was answered, and nothing ended it."""
    return not select.select([wire], [], [], 0)[0]


# The published client.


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK * 2 + 17])
def test_tuspy_uploads(laptop: Device, size: int) -> None:
    data = os.urandom(size)
    uploader = client(laptop).uploader(
        file_stream=BytesIO(data), chunk_size=3_000_000, metadata={"filename": f"tuspy/{size}"}, upload_checksum=True
    )
    uploader.upload()
    assert laptop.download(f"tuspy/{size}").body == data
    assert uploader.get_offset() == size


def test_tuspy_goes_on_where_another_stopped(laptop: Device) -> None:
    data = os.urandom(5_000_000)
    first = client(laptop).uploader(
        file_stream=BytesIO(data), chunk_size=1_000_000, metadata={"filename": "goes/on", "sha256": sha(data)}
    )
    first.upload(stop_at=2_000_000)
    second = client(laptop).uploader(file_stream=BytesIO(data), chunk_size=1_500_000, url=first.url)
    assert second.offset == 2_000_000
    second.upload()
    assert laptop.download("goes/on").body == data


def test_tuspy_survives_the_gateways_death(laptop: Device) -> None:
    data = os.urandom(30_000_000)
    system = laptop.system
    uploader = client(laptop).uploader(file_stream=BytesIO(data), chunk_size=3_000_000, metadata={"filename": "killed"})
    uploader.upload(stop_at=12_000_000)
    pid = system.kill("gateway")
    system.replaced("gateway", pid)
    moved = TusClient(f"{system.ready['url']}{BASE}", headers=client(laptop).headers)
    where = urlsplit(str(uploader.url)).path
    assert offset(laptop, where) == 12_000_000
    moved.uploader(file_stream=BytesIO(data), chunk_size=3_000_000, url=f"{system.ready['url']}{where}").upload()
    assert laptop.download("killed").body == data


# Each rule.


def test_options_say_what_is_spoken(laptop: Device) -> None:
    for path in (BASE, f"{BASE}/any"):
        answer = laptop.system.call("OPTIONS", path)
        assert (answer.status, answer.headers["tus-version"], answer.headers["tus-resumable"]) == (
            204,
            "1.0.0",
            "1.0.0",
        )
        extensions = set(answer.headers["tus-extension"].split(","))
        assert extensions >= {"creation", "expiration", "checksum", "termination", "concatenation"}
        assert answer.headers["tus-checksum-algorithm"].split(",") == ["sha1", "sha256"]
        assert int(answer.headers["tus-max-size"]) > 1 << 40


def test_a_browser_may(laptop: Device) -> None:
    asked = {"Origin": "http://localhost:5173", "Access-Control-Request-Method": "PATCH"}
    answer = laptop.system.call("OPTIONS", f"{BASE}/any", headers=asked)
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert {"Upload-Offset", "Tus-Resumable"} <= set(answer.headers["access-control-allow-headers"].split(", "))
    where = opened(laptop, "browser", 1)
    shown = tus(laptop, "HEAD", where, Origin="http://localhost:5173").headers["access-control-expose-headers"]
    assert {"Location", "Upload-Offset", "Upload-Length"} <= set(shown.split(", "))


def test_one_upload_by_hand(laptop: Device) -> None:
    data = os.urandom(100_000)
    where = opened(laptop, "by/hand", len(data), note="grüße")
    shown = tus(laptop, "HEAD", where)
    assert (shown.headers["upload-offset"], shown.headers["upload-length"]) == ("0", "100000")
    assert shown.headers["upload-metadata"] == told(target_path="by/hand", note="grüße")
    assert "upload-expires" in shown.headers
    answer = patch(laptop, where, 0, data[:30_000])
    assert (answer.status, answer.headers["upload-offset"]) == (204, "30000")
    assert "upload-expires" in answer.headers
    assert laptop.ok("GET", f"/api/v1/sync/upload/{where.rpartition('/')[2]}")["received_bytes"] == 30_000
    done = patch(laptop, where, 30_000, data[30_000:])
    assert (done.status, done.headers["upload-offset"], done.body) == (204, "100000", b"")
    assert int(done.headers["undrift-sequence"]) > 0
    assert laptop.download("by/hand").body == data
    assert offset(laptop, where) == 100_000
    assert patch(laptop, where, 100_000, b"").status == 204


def test_what_is_wrong_is_refused_and_changes_nothing(laptop: Device) -> None:
    where = opened(laptop, "strict", 100)
    assert patch(laptop, where, 0, b"x" * 10).status == 204
    assert patch(laptop, where, 0, b"y" * 10).status == 409
    assert patch(laptop, where, 11, b"y" * 10).status == 409
    assert patch(laptop, where, 10, b"y" * 91).status == 413
    assert tus(laptop, "PATCH", where, b"y", Upload_Offset="10", Content_Type="text/plain").status == 415
    assert tus(laptop, "PATCH", where, b"y", Content_Type=MEDIA).status == 400
    for number in ("-1", "x", "1.0", ""):
        assert tus(laptop, "PATCH", where, b"y", Upload_Offset=number, Content_Type=MEDIA).status == 400
    for version in ({}, {"Tus-Resumable": "0.2.2"}):
        answer = laptop.call("PATCH", where, b"y", headers={"Upload-Offset": "10", "Content-Type": MEDIA, **version})
        assert (answer.status, answer.headers["tus-version"]) == (412, "1.0.0")
    assert offset(laptop, where) == 10
    assert tus(laptop, "HEAD", f"{BASE}/unknown").status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Length": "1"},
        {"Upload-Length": "-1", "Upload-Metadata": told(filename="a")},
        {"Upload-Length": "x", "Upload-Metadata": told(filename="a")},
        {"Upload-Defer-Length": "1", "Upload-Metadata": told(filename="a")},
        {"Upload-Length": "1", "Upload-Metadata": told(filename="../a")},
        {"Upload-Length": "1", "Upload-Metadata": "filename ????"},
        {"Upload-Length": "1", "Upload-Metadata": told(filename="a", sha256="abc")},
        {"Upload-Length": "1", "Upload-Metadata": told(filename="a", mtime="yesterday")},
        {"Upload-Length": "1", "Upload-Concat": "whole"},
        {"Upload-Concat": "final;"},
    ],
)
def test_what_is_no_upload_is_refused(laptop: Device, headers: dict[str, str]) -> None:
    answer = laptop.call("POST", BASE, headers={"Tus-Resumable": "1.0.0", **headers})
    assert (answer.status, answer.headers["tus-resumable"]) == (400, "1.0.0")


def test_bodies_have_their_checksum_or_count_for_nothing(laptop: Device) -> None:
    data = os.urandom(CHUNK + 1000)
    where = opened(laptop, "checked", len(data))

    def digest(name: str, body: bytes) -> str:
        return f"{name} {b64encode(hashlib.new(name, body).digest()).decode()}"

    assert patch(laptop, where, 0, data[:10], Upload_Checksum=digest("sha1", data[:10])).status == 204
    wrong = patch(laptop, where, 10, b"z" * CHUNK, Upload_Checksum=digest("sha256", data[10:]))
    assert (wrong.status, offset(laptop, where)) == (460, 10)
    for bad in ("md5 AAAA", "sha1", "sha1 AAAA", "sha1 ????"):
        assert patch(laptop, where, 10, data[10:], Upload_Checksum=bad).status == 400
    broken(laptop, where, 10, data[10:5000], len(data) - 10, Upload_Checksum=digest("sha1", data[10:])).close()
    assert patch(laptop, where, 10, data[10:], Upload_Checksum=digest("sha256", data[10:])).status == 204
    assert laptop.download("checked").body == data


def test_another_whole_than_declared_never_becomes_a_file(laptop: Device) -> None:
    where = opened(laptop, "declared", 3, sha256=sha(b"abc"))
    assert patch(laptop, where, 0, b"abx").status == 400
    assert tus(laptop, "HEAD", where).status == 410
    assert laptop.download("declared").status == 404


def test_termination(laptop: Device) -> None:
    where = opened(laptop, "ended", 100)
    patch(laptop, where, 0, b"x" * 10)
    assert tus(laptop, "DELETE", where).status == 204
    assert tus(laptop, "HEAD", where).status == 410
    assert patch(laptop, where, 10, b"y").status == 410
    done = opened(laptop, "kept", 1)
    patch(laptop, done, 0, b"1")
    assert tus(laptop, "DELETE", done).status == 409
    assert laptop.download("kept").body == b"1"


def test_the_first_bytes_come_with_the_opening(laptop: Device) -> None:
    said = {"Upload_Length": "10", "Upload_Metadata": told(filename="with"), "Content_Type": MEDIA}
    answer = tus(laptop, "POST", BASE, b"01234", **said)
    assert (answer.status, answer.headers["upload-offset"]) == (201, "5")
    assert patch(laptop, answer.headers["location"], 5, b"56789").status == 204
    assert laptop.download("with").body == b"0123456789"
    whole = tus(laptop, "POST", BASE, b"0123456789", **(said | {"Upload_Metadata": told(filename="whole")}))
    assert (whole.status, whole.headers["upload-offset"]) == (201, "10")
    assert laptop.download("whole").body == b"0123456789"


def test_the_same_key_opens_one_upload(laptop: Device) -> None:
    said = {"Upload_Length": "10", "Upload_Metadata": told(filename="once"), "Idempotency_Key": os.urandom(8).hex()}
    answers = [tus(laptop, "POST", BASE, **said) for _ in range(2)]
    assert {answer.headers["location"] for answer in answers} == {answers[0].headers["location"]}
    assert tus(laptop, "POST", BASE, **(said | {"Upload_Length": "11"})).status == 422


def test_post_stands_for_other_methods(laptop: Device) -> None:
    where = opened(laptop, "post", 5)
    more = {"Upload_Offset": "0", "Content_Type": MEDIA, "X_HTTP_Method_Override": "PATCH"}
    assert tus(laptop, "POST", where, b"01", **more).status == 204
    assert tus(laptop, "POST", where, X_HTTP_Method_Override="HEAD").headers["upload-offset"] == "2"
    assert tus(laptop, "POST", where, X_HTTP_Method_Override="PUT").status == 400
    assert tus(laptop, "POST", where, X_HTTP_Method_Override="DELETE").status == 204
    assert tus(laptop, "HEAD", where).status == 410


# Parts.


def test_parts_sent_at_once_become_one_file(laptop: Device) -> None:
    data = [os.urandom(size) for size in (CHUNK + 5, 70_000, 0, 3)]

    def send(number: int) -> str:
        length = str(len(data[number]))
        answer = tus(laptop, "POST", BASE, Upload_Length=length, Upload_Concat="partial")
        where = answer.headers["location"]
        assert answer.status == 201
        if data[number]:
            assert patch(laptop, where, 0, data[number]).status == 204
        return where

    parts = at_once(4, send)
    shown = tus(laptop, "HEAD", parts[0]).headers
    assert (shown["upload-concat"], shown["upload-offset"]) == ("partial", str(CHUNK + 5))
    assert laptop.call("POST", f"/api/v1/sync/upload/{parts[0].rpartition('/')[2]}/complete").status == 400
    said = {"Upload_Concat": f"final;{' '.join(parts)}", "Upload_Metadata": told(filename="joined")}
    answer = tus(laptop, "POST", BASE, **said)
    assert answer.status == 201, answer
    assert laptop.download("joined").body == b"".join(data)
    where = answer.headers["location"]
    shown = tus(laptop, "HEAD", where).headers
    assert shown["upload-concat"] == f"final;{' '.join(parts)}"
    assert patch(laptop, where, 0, b"x").status == 403
    assert tus(laptop, "POST", BASE, **said).headers["location"] == where
    left = laptop.system.directory / "uploads"
    assert not any(path.name.startswith(part.rpartition("/")[2]) for part in parts for path in left.iterdir())


def test_parts_that_have_not_come_whole_are_not_joined(laptop: Device) -> None:
    part = tus(laptop, "POST", BASE, Upload_Length="10", Upload_Concat="partial").headers["location"]
    said = {"Upload_Concat": f"final;{part}", "Upload_Metadata": told(filename="early")}
    assert tus(laptop, "POST", BASE, **said).status == 409
    whole = opened(laptop, "no/part", 1)
    assert tus(laptop, "POST", BASE, **(said | {"Upload_Concat": f"final;{whole}"})).status == 400
    patch(laptop, part, 0, b"0123456789")
    assert tus(laptop, "POST", BASE, **said).status == 201
    assert laptop.download("early").body == b"0123456789"


# What breaks off.


@pytest.mark.parametrize("came", [1, 100_000, CHUNK + 1, CHUNK * 2])
def test_what_came_before_a_connection_broke_counts(laptop: Device, came: int) -> None:
    data = os.urandom(CHUNK * 2 + 100)
    where = opened(laptop, f"broken/{came}", len(data))
    wire = broken(laptop, where, 0, data[:came], len(data))
    assert until(lambda: offset(laptop, where) == came), offset(laptop, where)
    assert is_open(wire)
    wire.close()
    assert patch(laptop, where, came, data[came:]).status == 204
    assert laptop.download(f"broken/{came}").body == data


def test_what_came_before_the_gateway_died_counts(laptop: Device) -> None:
    data = os.urandom(CHUNK + 200_000)
    where = opened(laptop, "died", len(data))
    wire = broken(laptop, where, 0, data[:-1000], len(data))
    assert until(lambda: offset(laptop, where) == len(data) - 1000)
    system = laptop.system
    system.replaced("gateway", system.kill("gateway"))
    wire.close()
    assert offset(laptop, where) == len(data) - 1000
    assert patch(laptop, where, len(data) - 1000, data[-1000:]).status == 204
    assert laptop.download("died").body == data


def test_two_that_send_at_once_do_not_mix(laptop: Device) -> None:
    for number in range(5):
        size = 3 * CHUNK
        where = opened(laptop, f"two/{number}", size)
        bodies = [bytes([65 + one]) * size for one in range(4)]
        answers = at_once(4, lambda one, where=where, bodies=bodies: patch(laptop, where, 0, bodies[one]).status)  # type: ignore[misc]
        assert set(answers) <= {204, 409, 423}
        at = offset(laptop, where)
        if at < size:
            assert patch(laptop, where, at, b"z" * (size - at)).status == 204
        found = laptop.download(f"two/{number}").body
        came = found.rstrip(b"z")
        assert len(set(came)) <= 1, (answers, at)
        assert len(came) == at


def test_whoever_comes_back_need_not_wait_for_a_dead_connection(laptop: Device) -> None:
    where = opened(laptop, "stuck", 1000)
    wire = broken(laptop, where, 0, b"x" * 300, 1000)
    assert until(lambda: offset(laptop, where) == 300)
    assert is_open(wire)
    assert patch(laptop, where, 300, b"y" * 700).status == 204
    wire.close()
    assert laptop.download("stuck").body == b"x" * 300 + b"y" * 700


def test_what_was_damaged_is_asked_for_again(laptop: Device) -> None:
    data = os.urandom(CHUNK + 1000)
    where = opened(laptop, "damaged", len(data))
    patch(laptop, where, 0, data[: CHUNK + 500])
    path = laptop.system.directory / "uploads" / where.rpartition("/")[2]
    for at, left in ((CHUNK + 100, CHUNK), (100, 0)):
        before = offset(laptop, where)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\0" * 50)
        answer = patch(laptop, where, before, data[before:])
        assert (answer.status, offset(laptop, where)) == (409, left)
    assert patch(laptop, where, 0, data[:CHUNK]).status == 204
    assert laptop.download("damaged").body == data


# Two faces of one thing.


def test_chunks_go_on_over_tus(laptop: Device) -> None:
    size = 65536
    data = os.urandom(size * 4 + 10)
    upload = laptop.open("both/one", data)
    for index in (0, 2):
        assert laptop.chunk(upload, index, data).status == 200
    where = f"{BASE}/{upload['id']}"
    shown = tus(laptop, "HEAD", where).headers
    assert (shown["upload-offset"], shown["upload-metadata"]) == (str(size), told(target_path="both/one"))
    answer = patch(laptop, where, size, data[size : size * 2])
    assert answer.headers["upload-offset"] == str(size * 3)
    uploader = client(laptop).uploader(
        file_stream=BytesIO(data), chunk_size=100_000, url=f"{laptop.system.ready['url']}{where}"
    )
    uploader.upload()
    assert laptop.download("both/one").body == data


def test_tus_goes_on_in_chunks(laptop: Device) -> None:
    data = os.urandom(CHUNK * 2 + 10)
    where = opened(laptop, "both/two", len(data))
    patch(laptop, where, 0, data[: CHUNK + 1000])
    upload = laptop.ok("GET", f"/api/v1/sync/upload/{where.rpartition('/')[2]}")
    assert (upload["expected_hash"], upload["received_chunks"]) == (None, [0])
    assert upload["received_bytes"] == CHUNK + 1000
    laptop.chunk(upload, 2, data)
    assert offset(laptop, where) == CHUNK + 1000
    laptop.chunk(upload, 1, data)
    assert offset(laptop, where) == len(data)
    done = laptop.ok("POST", f"/api/v1/sync/upload/{upload['id']}/complete")
    assert done["path"] == "both/two"
    assert laptop.download("both/two").body == data


def test_a_conflict_is_told_in_a_header(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("fought/over", b"one")
    phone.follow()
    laptop.upload("fought/over", b"two")
    where = opened(phone, "fought/over", 5)
    answer = patch(phone, where, 0, b"three")
    assert answer.status == 204
    assert [one["id"] for one in phone.conflicts()] == [answer.headers["undrift-conflict"]]
    assert tus(phone, "HEAD", where).headers["undrift-conflict"] == answer.headers["undrift-conflict"]


def test_somebody_elses_upload_is_unknown(system: System, laptop: Device) -> None:
    where, bob = opened(laptop, "mine", 5), user(system).device()
    calls: list[tuple[str, dict[str, Any]]] = [("HEAD", {}), ("DELETE", {})]
    calls.append(("PATCH", {"body": b"x", "Upload_Offset": "0", "Content_Type": MEDIA}))
    for method, more in calls:
        foreign = tus(bob, method, where, **more)
        unknown = tus(bob, method, f"{BASE}/{'0' * 36}", **more)
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
        assert foreign.status == 404
