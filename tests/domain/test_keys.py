"""API keys: added once, revoked for good, one of a name."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from domain import errors, keys
from tests.domain.given import given, held

ADD = keys.Add("name", "ab" * 32, ("files:write", "files:read", "files:read"), ("r",), ("c",))
ADDED = keys.Added("name", "ab" * 32, ("files:read", "files:write"), ("r",), ("c",))
REVOKED = keys.Revoked("name")


def test_a_key_is_added_with_its_scopes_in_order() -> None:
    given(keys).when(ADD).then(ADDED)


def test_a_key_that_is_there_stays_as_it_is() -> None:
    given(keys, ADDED).when(replace(ADD, scopes=("admin",))).then()
    given(keys, ADDED, REVOKED).when(ADD).then()


def test_a_key_is_revoked_once() -> None:
    given(keys, ADDED).when(keys.Revoke()).then(REVOKED)
    given(keys, ADDED, REVOKED).when(keys.Revoke()).then()
    given(keys).when(keys.Revoke()).refused(errors.NotFound)


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_wrong_names(name: str) -> None:
    given(keys).when(replace(ADD, name=name)).refused(errors.Invalid)


@pytest.mark.parametrize("scopes", [(), ("files",), ("files:read", "files:delete"), ("*",), ("",)])
def test_wrong_scopes(scopes: tuple[str, ...]) -> None:
    given(keys).when(replace(ADD, scopes=scopes)).refused(errors.Invalid)


def test_every_scope_there_is_can_be_given() -> None:
    given(keys).when(replace(ADD, scopes=tuple(keys.SCOPES))).then(replace(ADDED, scopes=tuple(sorted(keys.SCOPES))))


def test_the_name_is_taken_while_the_key_opens_something() -> None:
    assert held(keys, [ADDED]) == {("keys.name", "name")}
    assert held(keys, [ADDED, REVOKED]) == set()
