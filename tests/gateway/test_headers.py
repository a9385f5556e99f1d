"""What requests say in their headers."""

from __future__ import annotations

import pytest

from domain import errors
from services.gateway import headers


def test_names_sent_twice_are_joined_and_the_dictionary_is_kept() -> None:
    scope = {"headers": [(b"accept", b"a"), (b"host", b"x"), (b"accept", b"b")]}

    assert headers.of(scope) == {b"accept": b"a, b", b"host": b"x"}
    assert headers.of(scope) is headers.of(scope)


@pytest.mark.parametrize("key", ["a", "x" * 255, "1c1ab2a4-7b0e-4f64-8e1c", "key:/+=~!"])
def test_an_idempotency_key_is_visible_ascii(key: str) -> None:
    assert key == headers.idempotency_key({b"idempotency-key": key.encode()})


@pytest.mark.parametrize("raw", [b"", b"x" * 256, b"a b", b"a\tb", "ä".encode(), b"\x7f", b"one, two"])
def test_other_idempotency_keys_are_refused(raw: bytes) -> None:
    with pytest.raises(errors.Invalid):
        headers.idempotency_key({b"idempotency-key": raw})


def test_without_an_idempotency_key_there_is_none() -> None:
    assert headers.idempotency_key({}) is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"return=plan", headers.Prefer(plan=True)),
        (b'Return="representation"', headers.Prefer(representation=True)),
        (b"respond-async, wait=10", headers.Prefer(respond_async=True, wait=10)),
        (b"respond-async;x=1,  WAIT = 3 , foo", headers.Prefer(respond_async=True, wait=3)),
        (b"return=plan, return=representation", headers.Prefer(plan=True)),
        (b"wait=-1", headers.NO_PREFERENCE),
        (b"wait=99999999999999999999999", headers.NO_PREFERENCE),
        (b"\xff\xfe;;==,,", headers.NO_PREFERENCE),
    ],
)
def test_preferences_are_read_and_nonsense_is_ignored(raw: bytes, expected: headers.Prefer) -> None:
    assert expected == headers.prefer({b"prefer": raw})


@pytest.mark.parametrize(("raw", "expected"), [(b'"3fab09"', "3fab09"), (b"3fab09", "3fab09"), (b"*", None)])
def test_if_match_holds_a_hash(raw: bytes, expected: str | None) -> None:
    assert expected == headers.if_match({b"if-match": raw})


@pytest.mark.parametrize("raw", [b"", b'W/"a"', b'"a", "b"', b'"' + b"a" * 129 + b'"', b'"\xe4"'])
def test_if_match_refuses_what_is_no_single_hash(raw: bytes) -> None:
    with pytest.raises(errors.Invalid):
        headers.if_match({b"if-match": raw})


def test_positions_are_64_bit() -> None:
    assert headers.min_position({}) is None
    assert headers.min_position({b"undrift-min-position": b"9223372036854775807"}) == 2**63 - 1
    assert headers.position(12) == (b"undrift-position", b"12")
    for raw in (b"", b"-1", b"1.0", b"9223372036854775808", b"9" * 5000, "\uff11".encode()):
        with pytest.raises(errors.Invalid):
            headers.min_position({b"undrift-min-position": raw})
