"""Uploads: any order, more than once, broken off, resumed, raced; what is complete is right."""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from typing import Any
from urllib.parse import urlsplit

import blake3
import pytest

from tests.journeys.libraries import Device, User, sha, user
from tests.journeys.system import System, at_once, until

CHUNK = 65536


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


@pytest.fixture
def laptop(ann: User) -> Device:
    return ann.device()


def complete(device: Device, upload: dict[str, Any]) -> Any:
    return device.call("POST", f"/api/v1/sync/upload/{upload['id']}/complete")


def test_chunks_come_in_any_order_and_more_than_once(laptop: Device) -> None:
    data = os.urandom(CHUNK * 4 + 17)
    opened = laptop.open("any/order", data)
    assert (opened["status"], opened["chunk_count"], opened["received_chunks"]) == ("pending", 5, [])
    for index in (4, 0, 2, 0, 3):
        assert laptop.chunk(opened, index, data).json() == {"chunk_index": index, "received": True}
    shown = laptop.ok("GET", f"/api/v1/sync/upload/{opened['id']}")
    assert (shown["status"], shown["received_chunks"]) == ("in_progress", [0, 2, 3, 4])
    assert shown["received_bytes"] == CHUNK * 3 + 17
    early = complete(laptop, opened)
    assert (early.status, "1 chunks are missing: 1" in early.json()["error"]) == (400, True)
    laptop.chunk(opened, 1, data)
    answers = at_once(32, lambda _: complete(laptop, opened))
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    done = answers[0].json()
    assert (done["status"], done["content_hash"]) == ("completed", blake3.blake3(data).hexdigest())
    assert laptop.download("any/order").body == data
    assert [one["type"] for one in laptop.system.events() if one["subject"].endswith(opened["id"])] == [
        "uploads.opened",
        "uploads.completed",
    ]
    assert laptop.chunk(opened, 1, data).status == 400
    left = laptop.system.directory / "uploads"
    assert not any(path.name.startswith(opened["id"]) for path in left.iterdir())


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_any_size(laptop: Device, size: int) -> None:
    data = os.urandom(size)
    laptop.upload(f"size/{size}", data)
    assert laptop.download(f"size/{size}").body == data


def test_bytes_of_another_hash_never_become_a_file(laptop: Device) -> None:
    data = os.urandom(CHUNK * 2)
    opened = laptop.open("wrong", data)
    for index in (0, 1):
        laptop.chunk(opened, index, data if index else b"x" * CHUNK)
    answer = complete(laptop, opened)
    assert (answer.status, list(answer.json())) == (400, ["error"])
    assert laptop.ok("GET", f"/api/v1/sync/upload/{opened['id']}")["status"] == "failed"
    assert laptop.download("wrong").status == 404


def test_a_chunk_may_be_replaced_until_all_is_complete(laptop: Device) -> None:
    data = os.urandom(CHUNK)
    opened = laptop.open("replaced", data)
    laptop.chunk(opened, 0, b"y" * CHUNK)
    laptop.chunk(opened, 0, data)
    assert complete(laptop, opened).status == 200


def test_chunks_of_a_wrong_length_or_index_or_digest_are_refused(laptop: Device) -> None:
    data = os.urandom(CHUNK + 10)
    opened = laptop.open("strict", data)
    put = f"/api/v1/sync/upload/{opened['id']}/chunks"
    for path, body in ((f"{put}/0", data), (f"{put}/0", data[:10]), (f"{put}/1", data[:11]), (f"{put}/2", b"")):
        assert laptop.call("PUT", path, body).status == 400
    for index in ("-1", "x", "9" * 30, "1.0"):
        assert laptop.call("PUT", f"{put}/{index}", data[:CHUNK]).status == 400
    wrong = b64encode(b"0" * 32).decode()
    assert laptop.chunk(opened, 0, data, **{"Content-Digest": f"sha-256=:{wrong}:"}).status == 400
    assert laptop.chunk(opened, 0, data, **{"X-Chunk-Hash": "0" * 64}).status == 400
    assert laptop.ok("GET", f"/api/v1/sync/upload/{opened['id']}")["received_chunks"] == []
    right = b64encode(bytes.fromhex(sha(data[:CHUNK]))).decode()
    assert laptop.chunk(opened, 0, data, **{"Content-Digest": f"sha-256=:{right}:"}).status == 200
    assert laptop.chunk(opened, 1, data, **{"X-Chunk-Hash": blake3.blake3(data[CHUNK:]).hexdigest()}).status == 200
    assert complete(laptop, opened).status == 200


def test_a_body_that_breaks_off_damages_nothing(laptop: Device) -> None:
    data = os.urandom(CHUNK)
    opened = laptop.open("broken", data)
    laptop.chunk(opened, 0, data)
    address = urlsplit(laptop.system.ready["url"])
    head = f"PUT /api/v1/sync/upload/{opened['id']}/chunks/0 HTTP/1.1\r\nHost: {address.netloc}\r\n"
    head += f"Authorization: Bearer {laptop.token}\r\nContent-Length: {CHUNK}\r\n\r\n"
    for sent in (b"", b"z" * 100, b"z" * (CHUNK - 1)):
        with socket.create_connection((address.hostname, address.port)) as wire:
            wire.sendall(head.encode() + sent)
    assert complete(laptop, opened).status == 200
    assert laptop.download("broken").body == data


def test_an_upload_goes_on_after_the_gateways_death(laptop: Device) -> None:
    data = os.urandom(CHUNK * 3)
    opened = laptop.open("survives", data)
    laptop.chunk(opened, 0, data)
    system = laptop.system
    system.replaced("gateway", system.kill("gateway"))
    assert laptop.ok("GET", f"/api/v1/sync/upload/{opened['id']}")["received_chunks"] == [0]
    for index in (1, 2):
        assert laptop.chunk(opened, index, data).status == 200
    assert complete(laptop, opened).status == 200
    assert laptop.download("survives").body == data


def test_chunks_that_were_damaged_are_asked_for_again(laptop: Device) -> None:
    data = os.urandom(CHUNK * 2)
    opened = laptop.open("damaged", data)
    for index in (0, 1):
        laptop.chunk(opened, index, data)
    path = laptop.system.directory / "uploads" / opened["id"]
    with path.open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"\0" * 100)
    assert complete(laptop, opened).status == 400
    assert laptop.ok("GET", f"/api/v1/sync/upload/{opened['id']}")["received_chunks"] == [0]
    laptop.chunk(opened, 1, data)
    assert complete(laptop, opened).status == 200


def test_of_completing_and_cancelling_at_once_one_wins(laptop: Device) -> None:
    for number in range(6):
        data = os.urandom(100)
        opened = laptop.open(f"race/{number}", data)
        laptop.chunk(opened, 0, data)
        one = f"/api/v1/sync/upload/{opened['id']}"
        answers = at_once(
            4,
            lambda n, one=one, opened=opened: laptop.call("DELETE", one) if n % 2 else complete(laptop, opened),  # type: ignore[misc]
        )
        won = {answer.status for answer in answers[::2]}, {answer.status for answer in answers[1::2]}
        assert won in (({200}, {400}), ({400}, {204}))
        assert (laptop.download(f"race/{number}").status == 200) is (won[0] == {200})


def test_somebody_elses_upload_is_unknown(system: System, laptop: Device) -> None:
    opened = laptop.open("mine", b"1")
    bob = user(system)
    one = f"/api/v1/sync/upload/{opened['id']}"
    for method, path in (("GET", one), ("PUT", f"{one}/chunks/0"), ("POST", f"{one}/complete"), ("DELETE", one)):
        foreign = bob.call(method, path, b"1" if method == "PUT" else None)
        unknown = bob.call(method, path.replace(opened["id"], "0" * 36), b"1" if method == "PUT" else None)
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
        assert foreign.status == 404


@pytest.mark.parametrize(
    "change",
    [
        {"target_path": "../x"},
        {"target_path": ""},
        {"expected_hash": "abc"},
        {"expected_size": -1},
        {"chunk_size": 1},
        {"chunk_size": 64 * 1024 * 1024},
        {"expected_size": "many"},
    ],
)
def test_what_is_no_upload_is_refused(laptop: Device, change: dict[str, Any]) -> None:
    body = {"target_path": "a", "expected_hash": sha(b""), "expected_size": 0} | change
    assert laptop.call("POST", "/api/v1/sync/upload", body).status == 400


def test_more_than_the_disk_holds_is_refused_at_once(laptop: Device) -> None:
    body = {"target_path": "huge", "expected_hash": sha(b""), "expected_size": 2**50}
    answer = laptop.call("POST", "/api/v1/sync/upload", body)
    assert answer.status == 507
    assert laptop.upload("small", b"still works")["status"] == "completed"


def test_memory_stays_flat(laptop: Device) -> None:
    data = os.urandom(1 << 20) * 32
    wanted = {"target_path": "large", "expected_hash": sha(data), "expected_size": len(data)}
    opened = laptop.ok("POST", "/api/v1/sync/upload", wanted | {"chunk_size": 32 << 20})
    before = peak(laptop.system)
    assert laptop.chunk(opened, 0, data).status == 200
    assert complete(laptop, opened).status == 200
    assert laptop.download("large").body == data
    assert peak(laptop.system) - before < 40_000  # kB


def peak(system: System) -> int:
    pid = system.pids["gateway"]
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def test_an_upload_that_is_forgotten_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("expiry")
    with_hours = System(base, System(base).settings + "[library]\nupload_hours = 0.0003\nsweep_s = 0.2\n")
    with_hours.start()
    try:
        device = user(with_hours).device()
        opened = device.open("late", b"1")
        path = f"/api/v1/sync/upload/{opened['id']}"
        assert until(lambda: device.ok("GET", path)["status"] == "expired")
        assert device.chunk(opened, 0, b"1").status == 400
        assert until(lambda: not list((with_hours.directory / "uploads").iterdir()))
    finally:
        with_hours.stop()
