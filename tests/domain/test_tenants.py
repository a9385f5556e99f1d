"""Tenants: added once, under a name that fits into a stream and a subject."""

from __future__ import annotations

import pytest

from domain import errors, tenants
from tests.domain.given import given, held

ADDED = tenants.Added("acme")


def test_a_tenant_is_added_once() -> None:
    given(tenants).when(tenants.Add("acme")).then(ADDED)
    given(tenants, ADDED).when(tenants.Add("acme")).then()
    assert held(tenants, [ADDED]) == set()


@pytest.mark.parametrize("name", ["main", "a", "0", "a-1", "x" * 63])
def test_names(name: str) -> None:
    given(tenants).when(tenants.Add(name)).then(tenants.Added(name))


@pytest.mark.parametrize("name", ["", "-a", "A", "a.b", "a/b", "a b", "*", ">", "_", "é", "x" * 64, "a\n"])
def test_wrong_names(name: str) -> None:
    given(tenants).when(tenants.Add(name)).refused(errors.Invalid)
