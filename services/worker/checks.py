"""Tests of an integration: whether its address, its credentials and its rights are good, in words for a person."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from msgspec import Struct

from domain import errors, jobs
from domain.plans import files, network, plane
from infra import paths
from services.worker import child, remote

_TIMEOUT_S = 8.0
_LOOKED_AT = 10


class Check(Struct, frozen=True):
    name: str
    ok: bool
    message: str


class Checks(Struct, frozen=True):
    """`success` when a run could work."""

    success: bool
    checks: tuple[Check, ...]


def _done(checks: Iterable[Check], success: bool | None = None) -> child.Done:
    """Without a word on success every check must be good."""
    found = tuple(checks)
    good = all(one.ok for one in found) if success is None else success
    return child.Done(msgspec.json.encode(Checks(good, found)), jobs.Counters())


# Plane.


def check_plane(told: child.Task, parent: child.Parent) -> child.Done:
    spec = msgspec.json.decode(told.spec, type=plane.Spec)
    key = told.collect.secrets["apiKey"] if told.collect is not None else ""
    with remote.Http(connect_s=_TIMEOUT_S, total_s=min(_TIMEOUT_S, spec.timeout)) as http:
        return _done(_plane(spec, key, http))


def _plane(spec: plane.Spec, key: str, http: remote.Http) -> Iterator[Check]:
    """Each only where the one before was good."""
    headers, host = {"X-Api-Key": key, "Accept": "application/json"}, remote.place(spec.base_url)
    try:
        me = http.get(plane.me_url(spec), headers)
    except errors.Error as error:
        yield Check("address", False, f"{error.message}; check config.baseUrl")
        return
    fault = _address_fault(me, host)
    yield Check("address", fault is None, fault or f"Plane answers at {host}")
    if fault is not None:
        return
    good = me.status == 200
    yield Check(
        "credentials", good, _whose(me) if good else f"{host} does not accept the API key; set a valid config.apiKey"
    )
    if not good:
        return
    try:
        yield from _plane_rights(spec, headers, http)
    except errors.Error as error:
        yield Check("workspace", False, error.message)


def _address_fault(me: remote.Response, host: str) -> str | None:
    if me.status == 429:
        wait = me.headers.get("retry-after", "some")
        return f"{host} allows no more requests for now; try again in {wait} s"
    if me.status >= 500:
        return f"{host} has trouble of its own (HTTP {me.status}); try again later"
    if me.status not in (200, 401, 403) or not isinstance(_json(me), dict):
        return f"There is no Plane API at {host} (HTTP {me.status}); check config.baseUrl"
    return None


def _whose(me: remote.Response) -> str:
    name = (_json(me) or {}).get("display_name")
    return f"The API key is {name:.100}'s" if isinstance(name, str) and name.isprintable() else "The API key is good"


def _plane_rights(spec: plane.Spec, headers: dict[str, str], http: remote.Http) -> Iterator[Check]:
    answer = http.get(plane.paged(plane.projects_url(spec), plane.PER_PAGE, None), headers)
    page = _page(answer)
    if page is None:
        said = f"The API key may not read the workspace {spec.workspace}, or there is none of that name"
        yield Check("workspace", False, f"{said} (HTTP {answer.status}); check config.workspace")
        return
    shown = [row for row in page.rows if spec.wants_project(row) and not plane.is_archived(row)]
    yield Check("workspace", True, f"The workspace {spec.workspace} shows {page.total or len(page.rows)} projects")
    absent = [name for name in spec.within if not any(plane.is_named(row, (name,)) for row in page.rows)]
    if absent and page.next is None:
        yield Check("projects", False, f"There is no project {absent[0]:.80}; check config.projects")
    yield _plane_items(spec, shown, headers, http)


def _plane_items(spec: plane.Spec, shown: list[plane.Row], headers: dict[str, str], http: remote.Http) -> Check:
    """Whether work items of the first projects can be listed: a public project may be seen and still be closed."""
    looked = shown[:_LOOKED_AT]
    closed = [
        str(row.get("name"))
        for row in looked
        if _page(http.get(plane.paged(plane.inner_url(spec, str(row.get("id")), plane.WORK_ITEMS), 1, None), headers))
        is None
    ]
    if closed:
        whose = f"{len(closed)} of {len(looked)} projects looked at, such as {closed[0]:.80}"
        return Check("permissions", False, f"The API key may not read {whose}; make its owner a member")
    return Check("permissions", True, f"The items of {len(looked)} projects can be read")


def _json(answer: remote.Response) -> Any:
    try:
        return msgspec.json.decode(answer.body)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


def _page(answer: remote.Response) -> plane.Envelope | None:
    try:
        return plane.envelope(_json(answer)) if answer.status == 200 else None
    except ValueError:
        return None


# The RAIDA network.


def check_network(told: child.Task, parent: child.Parent) -> child.Done:
    spec = msgspec.json.decode(told.spec, type=network.Spec)
    with ThreadPoolExecutor(len(spec.directories)) as pool:
        found = list(pool.map(_directory, spec.directories))
    good, needed = sum(one.ok for one in found), len(found) // 2 + 1
    said = f"{good} of {len(found)} directories answer; {needed} must agree"
    return _done([Check("quorum", good >= needed, said), *found], success=good >= needed)


def _directory(address: str) -> Check:
    host = remote.place(address)
    try:
        with remote.Http(connect_s=_TIMEOUT_S, total_s=_TIMEOUT_S) as http:
            answers = [http.get(address.rstrip("/") + path) for path in network.PATHS.values()]
    except errors.Error as error:
        return Check(host, False, error.message)
    bad = next((one for one in answers if one.status != 200), None)
    return Check(host, bad is None, f"{host} serves its lists" if bad is None else f"{host} answers HTTP {bad.status}")


# Folders.


def check_files(told: child.Task, parent: child.Parent) -> child.Done:
    return _done(_folders(msgspec.json.decode(told.spec, type=files.Spec), paths.Roots(told.roots)))


def _folders(spec: files.Spec, roots: paths.Roots) -> Iterator[Check]:
    try:
        source = roots.place(spec.source_directory).open()
        try:
            count = len(os.listdir(source))
            yield Check("source", True, f"The source folder can be read; it holds {count} entries")
        finally:
            os.close(source)
    except (OSError, errors.Error) as error:
        yield Check("source", False, f"The source folder cannot be read: {_reason(error)}")
    try:
        target = paths.nearest(roots.place(spec.target_directory))
        try:
            good = os.access(b".", os.W_OK | os.X_OK, dir_fd=target)
            yield Check("target", good, f"The target folder {'can' if good else 'cannot'} be written")
        finally:
            os.close(target)
    except (OSError, errors.Error) as error:
        yield Check("target", False, f"The target folder cannot be reached: {_reason(error)}")


def _reason(error: OSError | errors.Error) -> str:
    return error.message if isinstance(error, errors.Error) else error.strerror or type(error).__name__
