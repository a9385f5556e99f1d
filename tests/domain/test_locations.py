"""What a location is, and that nothing secret of it is kept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import errors, locations

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("System1", "name", "System1"),
        ("server1", "name", "server1"),
        ("bob@host:/data", "name", "bob@host:/data"),
        ("https://other.example/sync", "name", "https://other.example/sync"),
        ("/srv/data", "folder", "/srv/data"),
        ("connection:warehouse", "connection", "connection:warehouse"),
        ("Server=source;Database=db;", "secret", "Server=source;Database=db;"),
        ("server = db.example,1433 ; Pwd=hunter2", "secret", "server=db.example,1433;"),
        ('Host=h;Password="a;Server=hunter2";Port=5432', "secret", "Host=h;Port=5432;"),
        ("Host=h;Password='it''s;Server=hunter2';Port=5432", "secret", "Host=h;Port=5432;"),
        ('Host=h;Password="hunter2', "secret", "***"),
        ('Host=h;Password=a"b;Server=hunter2"', "secret", "***"),
        ("Password=hunter2", "secret", "***"),
        ("host=h dbname=d password=hunter2", "secret", "***"),
        ("Server=tcp:user:hunter2@h;", "secret", "***"),
        ("postgres://u:hunter2@db.example:5432/app?sslmode=x", "secret", "postgres://db.example:5432/app"),
        ("postgres://u:hun/te@r2@db/app", "secret", "postgres://db/app"),
        ("postgres://u:hun?te#r2@db/app", "secret", "postgres://***"),
        ("postgres://[::1]:5432/app", "secret", "postgres://[::1]:5432/app"),
        ("https://x.example/?key=hunter2", "secret", "https://x.example/"),
        ("https://x.example/?key=@hunter2", "secret", "https://***"),
        ("jdbc:postgresql://u:hunter2@db/app", "secret", "jdbc:postgresql://db/app"),
        ("sqlserver://h;user=u;password=hunter2", "secret", "sqlserver://***"),
        ("sa:hunter2@db", "secret", "db"),
    ],
)
def test_what_a_location_is_and_what_is_kept_of_it(text: str, kind: str, shown: str) -> None:
    found = locations.parse(text)
    assert (found.kind, found.shown) == (kind, shown)
    assert SECRET not in found.shown


@pytest.mark.parametrize(
    "text",
    ["", " ", "a\nb", "a\0b", "C:\\source", "c:/source", "D:", "\\\\server\\share", "connection:", "connection:a b"],
)
def test_what_is_no_location_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(errors.Invalid) as refused:
        locations.parse(text)
    assert len(text) < 12 or text not in refused.value.message


_PASSWORD = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'"), max_size=20)


@given(_PASSWORD, _PASSWORD)
@settings(max_examples=300, deadline=None)
def test_no_piece_of_a_quoted_password_is_kept(before: str, after: str) -> None:
    for quote in "\"'":
        secret = f"{before};Server={SECRET}{after}"
        found = locations.parse(f"Host=h;Password={quote}{secret}{quote};Database=d")
        assert found.kind == "secret"
        assert SECRET not in found.shown


@given(_PASSWORD, _PASSWORD)
@settings(max_examples=300, deadline=None)
def test_no_piece_of_a_password_in_an_address_is_kept(before: str, after: str) -> None:
    found = locations.parse(f"postgres://user:{before}{SECRET}{after}@db.example/app")
    assert SECRET not in found.shown
