"""No input may pass that a later reader would choke on, and none may be more than the client's error."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any, Literal

import aiohttp
import msgspec
import pytest
from litestar import Litestar
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from domain import errors
from infra import config
from services.gateway import bodies, dialects
from services.gateway.cors import Cors
from services.gateway.edge import Edge


class Order(msgspec.Struct):
    name: str = ""
    count: int = 0
    share: float = 0.0
    colour: Literal["red", "blue"] = "red"
    rest: Any = None


def refusal(raw: bytes) -> str:
    with pytest.raises(errors.Invalid) as caught:
        bodies.decode(raw, Order)
    return caught.value.message


def test_a_body_becomes_its_struct_and_the_last_of_two_keys_counts() -> None:
    assert Order(name="b", count=3) == bodies.decode(b'{"name":"a","count":3,"name":"b"}', Order)


def test_an_error_names_the_place() -> None:
    assert refusal(b'{"count":"x"}') == "Expected `int`, got `str` - at `$.count`"


@pytest.mark.parametrize("secret", ["hunter2", "hunter2 - at `$.x`", "hun'ter2", 'hun"ter2\n'])
def test_an_error_does_not_repeat_the_value(secret: str) -> None:
    said = refusal(json.dumps({"colour": secret}).encode())

    assert said == "Invalid enum value - at `$.colour`"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_ends_at_64(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    deep = b'{"rest":' + opening * 63 + b"1" + closing * 63 + b"}"
    too_deep = b'{"rest":' + opening * 64 + b"1" + closing * 64 + b"}"

    assert bodies.decode(deep, Order).rest is not None
    assert refusal(too_deep) == "The body is nested deeper than 64"
    assert "nested deeper" in refusal(b'{"unknown":' + opening * 100_000)


def test_brackets_in_strings_and_beside_each_other_are_not_depth() -> None:
    wide = {"rest": [[] for _ in range(500)], "name": '[{"\\' * 200}

    assert bodies.decode(json.dumps(wide).encode(), Order).name == '[{"\\' * 200


@pytest.mark.parametrize("raw", [rb'{"name":"\u0000"}', rb'{"\u0000":1}', rb'{"name":"a\\\u0000"}', b'{"name":"\0"}'])
def test_nul_is_refused(raw: bytes) -> None:
    assert refusal(raw)


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert bodies.decode(rb'{"name":"\\u0000"}', Order).name == r"\u0000"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"name":"\xff"}',
        b'{"unknown":"\xff"}',
        b'{"name":"\xed\xa0\x80"}',
        rb'{"name":"\ud800"}',
        rb'{"name":"\udc00"}',
        rb'{"name":"\udc00 \ud800"}',
        rb'{"name":"\ud800 x\udc00"}',
        rb'{"unknown":"\ud800x"}',
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_utf8_or_half_a_surrogate_pair_is_refused(raw: bytes) -> None:
    assert refusal(raw)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert bodies.decode(rb'{"name":"\ud83d\ude00"}', Order).name == "\U0001f600"


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), "9" * 30, "9" * 5000, "-" + "1" * 20])
@pytest.mark.parametrize("field", ["count", "rest", "unknown"])
def test_integers_end_at_64_bits(field: str, number: str) -> None:
    assert refusal(f'{{"{field}":{number}}}'.encode())
    if field != "count":
        assert refusal(f'{{"{field}":[{{"a":[{number}]}}]}}'.encode())


def test_the_largest_integers_and_long_fractions_pass() -> None:
    assert bodies.decode(b'{"count":9223372036854775807}', Order).count == 2**63 - 1
    assert bodies.decode(b'{"count":-9223372036854775808}', Order).count == -(2**63)
    assert bodies.decode(b'{"share":0.1234567890123456789012345}', Order).share == 0.12345678901234568
    assert bodies.decode(b'{"name":"99999999999999999999999"}', Order).name == "9" * 23


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 400])
def test_floats_are_finite(number: str) -> None:
    assert refusal(f'{{"share":{number}}}'.encode())


def test_queries_are_clean_text() -> None:
    def query(raw: bytes) -> dict[str, str]:
        return bodies.query({"query_string": raw, "raw_path": b"/"})

    assert query(b"") == {}
    assert query(b"a=1&a=2&b=%C3%A4+%2B") == {"a": "2", "b": "ä +"}
    for raw in (b"a=%00", b"a=%0a", b"%1b=1", b"a=%ff", b"a=\xff", b"a=%ed%a0%80", b"&".join([b"a=1"] * 2000)):
        with pytest.raises(errors.Invalid):
            query(raw)


def test_integers_of_a_query_are_clamped() -> None:
    assert bodies.integer({}, "limit", 20, 1, 100) == 20
    assert bodies.integer({"limit": "1000"}, "limit", 20, 1, 100) == 100
    assert bodies.integer({"limit": "-5"}, "limit", 20, 1, 100) == 1
    assert bodies.integer({"limit": "9" * 5000}, "limit", 20, 1, 100) == 100
    assert bodies.integer({"limit": "-" + "9" * 5000}, "limit", 20, 1, 100) == 1
    for text in ("", "x", "1.5", "-", "\uff11", "1_0", " 1"):
        with pytest.raises(errors.Invalid):
            bodies.integer({"limit": text}, "limit", 20, 1, 100)


@asgi(["/api/sync/jobs", "/api/v1/sync/files", "/api/admin/sync"], copy_scope=False)
async def take(scope: Scope, receive: Receive, send: Send) -> None:
    raw = await bodies.raw_json(scope, receive, limit=2 * 1024 * 1024)
    order = await bodies.parse(raw, Order) if raw else None
    await dialects.Reply(200, msgspec.json.encode(order))(scope, receive, send)


@pytest.fixture
def app() -> Edge:
    made = Litestar([take], exception_handlers={Exception: dialects.handle}, openapi_config=None, logging_config=None)
    return Edge(made, Cors(config.Gateway()))


@pytest.mark.parametrize(
    ("media", "encoding", "status"),
    [
        (None, None, 200),
        ("application/json", "identity", 200),
        ("application/json; charset=utf-8", None, 200),
        ('application/json;charset="UTF-8"', None, 200),
        ("application/vnd.x+json", None, 200),
        ("application/x-www-form-urlencoded", None, 200),
        ("application/json; charset=utf-16", None, 415),
        ("text/plain", None, 415),
        ("multipart/form-data; boundary=x", None, 415),
        ("application/json", "gzip", 415),
        ("application/json", "identity, br", 415),
    ],
)
async def test_what_claims_not_to_be_json_is_415(
    serve: Any, app: Edge, media: str | None, encoding: str | None, status: int
) -> None:
    sent = {"Content-Type": media} if media else {}
    if encoding:
        sent["Content-Encoding"] = encoding
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        url = await serve(app)
        async with session.post(f"{url}/api/sync/jobs", data=b'{"name":"x"}', headers=sent) as answer:
            assert status == answer.status
            assert isinstance(await answer.json(), dict)


async def test_an_empty_body_is_none_and_its_content_type_does_not_matter(serve: Any, app: Edge) -> None:
    url = await serve(app)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/sync/jobs", headers={"Content-Type": "text/plain"}) as answer,
    ):
        assert (answer.status, await answer.json()) == (200, None)


async def test_more_than_the_limit_is_413_announced_or_not(serve: Any, app: Edge) -> None:
    async def pieces() -> Any:
        for _ in range(48):
            yield b" " * 65_536

    url = await serve(app)
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        for data in (io.BytesIO(b" " * (3 * 1024 * 1024)), pieces()):
            async with session.post(f"{url}/api/v1/sync/files", data=data) as answer:
                assert answer.status == 413
                assert (await answer.json())["errorCode"] == "INVALID_REQUEST"


def malformed(count: int) -> Iterator[bytes]:
    """Documents broken in as many ways as there are: by hand, by cutting, by flipping, by repeating."""
    seeds = [
        b'{"name":"x","count":1,"share":1.5,"colour":"red","rest":{"a":[1,2,{"b":null}]}}',
        rb'{"name":"\u00e4\ud83d\ude00\n","rest":[true,false,null,-1e10,"\\"]}',
        "{'name': \"ä€😀\"}".encode(),
    ]
    yield from (b"[" * 100_000, b'{"a":' * 100_000, b'"' + b"x" * 1_000_000, b"9" * 5000, b"-", b"nul", b"\0", b"\\")
    yield from (b"NaN", b"Infinity", b"{}x", b"\xff\xfe", b"[]", b"1", b'""', b"{" + b'"a":1,' * 1000)
    yield from ("{}".encode("utf-16"), b"\xef\xbb\xbf{}", b'{"rest":' + b"[]," * 10_000, b'"\\' * 5000)
    rng = random.Random(20)
    alphabet = [
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
        b"\0",
        b"9" * 40,
        b"e999",
    ]
    for _ in range(count):
        raw = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw) + 1)
            match rng.randrange(4):
                case 0:
                    del raw[at : at + rng.randint(1, 10)]
                case 1:
                    raw[at:at] = rng.choice(alphabet)
                case 2:
                    raw[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 5)))
                case _:
                    raw[at:at] = raw[: rng.randint(1, 20)]
        yield bytes(raw)


async def test_no_malformed_body_is_answered_with_500(serve: Any, app: Edge) -> None:
    statuses: dict[int, int] = {}
    url = await serve(app)
    paths = ["/api/sync/jobs", "/api/v1/sync/files", "/api/admin/sync"]
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        for number, raw in enumerate(malformed(2000)):
            async with session.post(f"{url}{paths[number % 3]}", data=raw) as answer:
                body = await answer.json()
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status == 200 and body is not None:
                json.dumps(body, allow_nan=False).encode()  # what was accepted can be written again
                assert "\0" not in json.dumps(body, ensure_ascii=False)

    assert {200, 400} == set(statuses)
    assert statuses[400] > 1500
