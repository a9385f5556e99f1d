"""The Plane double is faithful: the published client works against it unchanged, and it errs as Plane does."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from plane.client import PlaneClient
from plane.errors import HttpError
from plane.models.cycles import CreateCycle
from plane.models.labels import CreateLabel
from plane.models.modules import CreateModule
from plane.models.projects import CreateProject, UpdateProject
from plane.models.query_params import PaginatedQueryParams, RetrieveQueryParams, WorkItemQueryParams
from plane.models.states import CreateState
from plane.models.work_items import CreateWorkItem, UpdateWorkItem
from pydantic import BaseModel

from tests.doubles.plane import Plane

ENVELOPE = {
    "grouped_by",
    "sub_grouped_by",
    "total_count",
    "next_cursor",
    "prev_cursor",
    "next_page_results",
    "prev_page_results",
    "count",
    "total_pages",
    "total_results",
    "extra_stats",
    "results",
}


T = TypeVar("T", bound=BaseModel)


def made(kind: type[T], **fields: Any) -> T:
    """A model of the client's, as it is read from JSON."""
    return kind.model_validate(fields)


@pytest.fixture
def plane() -> Iterator[Plane]:
    with Plane() as running:
        yield running


@pytest.fixture
def client(plane: Plane) -> PlaneClient:
    return PlaneClient(base_url=plane.url, api_key=plane.key.token)


def get(plane: Plane, path: str, key: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(plane.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers={} if key is None else {"x-api-key": key})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, dict(answer.getheaders()), json.loads(body) if body else None
    finally:
        connection.close()


def test_the_published_client_reads_and_writes_everything_we_sync(client: PlaneClient, plane: Plane) -> None:
    assert client.users.get_me().display_name == "ada"
    project = client.projects.create("acme", made(CreateProject, name="Rockets", identifier="ROCK"))
    id = project.id or ""
    states = client.states.list("acme", id)
    assert [state.group for state in states.results] == ["backlog", "unstarted", "started", "completed", "cancelled"]
    client.states.create("acme", id, made(CreateState, name="Review", color="#fff", group="started"))
    label = client.labels.create("acme", id, made(CreateLabel, name="bug", color="#f00"))
    cycle = client.cycles.create("acme", id, made(CreateCycle, name="One", owned_by=plane.owner, project_id=id))
    module = client.modules.create("acme", id, made(CreateModule, name="Engine"))
    flight = client.work_items.create(
        "acme", id, made(CreateWorkItem, name="Fly", priority="high", labels=[label.id or ""], assignees=[plane.owner])
    )
    assert (flight.name, flight.priority, flight.sequence_id) == ("Fly", "high", 1)
    assert client.work_items.retrieve_by_identifier("acme", "ROCK", 1).id == flight.id
    changed = client.work_items.update("acme", id, flight.id or "", made(UpdateWorkItem, priority="low"))
    assert (changed.priority, changed.updated_at != flight.updated_at) == ("low", True)
    members: Any = client.projects.get_members("acme", id)
    assert [one.display_name for one in members] == ["ada"]
    cycles: Any = client.cycles.list("acme", id)
    assert [one.id for one in cycles.results] == [cycle.id]
    assert [one.id for one in client.modules.list("acme", id).results] == [module.id]
    assert [one.name for one in client.labels.list("acme", id).results] == ["bug"]
    client.work_items.delete("acme", id, flight.id or "")
    with pytest.raises(HttpError) as gone:
        client.work_items.retrieve("acme", id, flight.id or "")
    assert (gone.value.status_code, gone.value.response) == (
        404,
        {"error": "The requested resource does not exist."},
    )


def test_the_client_pages_with_cursors_until_it_is_told_to_stop(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("Paged", plane.owner)
    wanted = plane.world.items(project, plane.owner, 250)
    cursor, found, cursors = None, [], []
    while True:
        page = client.work_items.list("acme", project, made(WorkItemQueryParams, per_page=100, cursor=cursor))
        found += [one.id for one in page.results]
        cursors.append(page.next_cursor)
        assert (page.total_count, page.total_pages, page.count) == (250, 3, len(page.results))
        if not page.next_page_results:
            break
        cursor = page.next_cursor
    assert cursors == ["100:1:0", "100:2:0", "100:3:0"]
    assert found == wanted[::-1]  # the newest first
    _, _, body = get(plane, f"/api/v1/workspaces/acme/projects/{project}/issues/?per_page=2", plane.key.token)
    assert body.keys() == ENVELOPE
    assert (body["prev_cursor"], body["prev_page_results"]) == ("2:-1:1", False)


def test_lists_order_select_and_expand(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("Ordered", plane.owner)
    first, second, third = plane.world.items(project, plane.owner, 3)
    plane.world.change("work_items", first, priority="urgent")
    label = plane.world.add("labels", project, plane.owner, name="bug", color="#f00")
    plane.world.change("work_items", second, labels=[label], priority="low")

    def ids(order: str) -> list[str | None]:
        page = client.work_items.list("acme", project, made(WorkItemQueryParams, order_by=order))
        return [one.id for one in page.results]

    assert ids("-updated_at") == [second, first, third]
    assert ids("created_at") == [first, second, third]
    assert ids("priority") == [first, second, third]
    assert ids("no such column") == [third, second, first]
    chosen = made(RetrieveQueryParams, fields="id,labels", expand="labels")
    few = client.work_items.retrieve("acme", project, second, chosen)
    assert [one.name for one in few.labels if not isinstance(one, str)] == ["bug"]
    assert few.name is None


def test_an_external_id_is_found_and_taken_once(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("External", plane.owner)
    create = made(CreateWorkItem, name="Issue", external_id="42", external_source="github")
    first = client.work_items.create("acme", project, create)
    with pytest.raises(HttpError) as taken:
        client.work_items.create("acme", project, create)
    said = "Issue with the same external id and external source already exists"
    assert (taken.value.status_code, taken.value.response) == (409, {"error": said, "id": first.id})
    path = f"/api/v1/workspaces/acme/projects/{project}/work-items/?external_source=github&external_id="
    status, _, body = get(plane, path + "42", plane.key.token)
    assert (status, body["id"], "results" in body) == (200, first.id, False)
    assert get(plane, path + "43", plane.key.token)[0] == 404


def test_what_is_not_valid_is_named_field_by_field(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("Invalid", plane.owner)
    with pytest.raises(HttpError) as blank:
        client.work_items.create("acme", project, made(CreateWorkItem, name=""))
    assert (blank.value.status_code, blank.value.response) == (400, {"name": ["This field may not be blank."]})
    with pytest.raises(HttpError) as missing:
        client.work_items._post(f"acme/projects/{project}/work-items", {"priority": "huge"})
    assert missing.value.response == {
        "name": ["This field is required."],
        "priority": ['"huge" is not a valid choice.'],
    }


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("plane_api_wrong", 403)])
def test_who_may_not_is_told_so(plane: Plane, key: str | None, status: int) -> None:
    found, headers, body = get(plane, "/api/v1/users/me/", key)
    assert (found, "detail" in body, "X-RateLimit-Remaining" in headers) == (status, True, False)


def test_foreign_and_unknown_places_are_forbidden(plane: Plane) -> None:
    stranger = plane.world.key(plane.world.user("Eve"))
    project = plane.world.project("Private", plane.owner)
    for path in ("/api/v1/workspaces/other/projects/", f"/api/v1/workspaces/acme/projects/{project}/states/"):
        assert get(plane, path, stranger.token)[0] == 403


def test_a_path_without_its_slash_is_elsewhere(plane: Plane) -> None:
    status, headers, _ = get(plane, "/api/v1/users/me", plane.key.token)
    assert (status, headers["Location"]) == (301, "/api/v1/users/me/")


def test_a_key_may_ask_so_often(plane: Plane) -> None:
    plane.key.per_minute = 3
    allowed = [get(plane, "/api/v1/users/me/", plane.key.token) for _ in range(3)]
    assert [one[1]["X-RateLimit-Remaining"] for one in allowed] == ["2", "1", "0"]
    assert all(int(one[1]["X-RateLimit-Reset"]) > datetime.now(UTC).timestamp() for one in allowed)
    status, headers, body = get(plane, "/api/v1/users/me/", plane.key.token)
    assert (status, body) == (429, {"error_code": 5900, "error_message": "RATE_LIMIT_EXCEEDED"})
    assert 0 < int(headers["Retry-After"]) <= 61
    assert "X-RateLimit-Remaining" not in headers


def test_times_are_in_the_zone_of_the_keys_owner(plane: Plane) -> None:
    project = plane.world.project("Zoned", plane.owner)
    (item,) = plane.world.items(project, plane.owner, 1)
    far = plane.world.key(plane.owner, timezone="Asia/Kolkata")
    path = f"/api/v1/workspaces/acme/projects/{project}/work-items/{item}/"
    here, there = (get(plane, path, key)[2]["updated_at"] for key in (plane.key.token, far.token))
    assert here.endswith("Z")
    assert there.endswith("+05:30")
    assert datetime.fromisoformat(here) == datetime.fromisoformat(there)


def test_lists_hide_what_is_archived_or_a_draft(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("Hidden", plane.owner)
    shown, archived, draft = plane.world.items(project, plane.owner, 3)
    plane.world.archive("work_items", archived)
    plane.world.change("work_items", draft, is_draft=True)
    assert [one.id for one in client.work_items.list("acme", project).results] == [shown]
    assert client.work_items.retrieve("acme", project, archived).archived_at is not None
    plane.archived_by_id = False  # as newer versions have it
    with pytest.raises(HttpError):
        client.work_items.retrieve("acme", project, archived)
    client.projects.archive("acme", project)
    assert client.work_items.list("acme", project).results == []
    listed = client.projects.list("acme", made(PaginatedQueryParams, per_page=10)).results
    assert [one.archived_at is None for one in listed] == [False]


def test_a_default_state_stays_and_a_project_changes(client: PlaneClient, plane: Plane) -> None:
    project = plane.world.project("Stateful", plane.owner)
    default = next(one for one in plane.world.of("states", project) if one["default"])
    with pytest.raises(HttpError) as kept:
        client.states.delete("acme", project, default["id"])
    assert kept.value.response == {"error": "Default state cannot be deleted"}
    assert client.projects.update("acme", project, made(UpdateProject, name="Renamed")).name == "Renamed"


def test_a_webhook_is_signed_over_the_bytes_that_are_sent(plane: Plane) -> None:
    project = plane.world.project("Hooked", plane.owner)
    item = plane.world.add("work_items", project, plane.owner, name="\u00fcber", assignees=[plane.owner])
    record = plane.world.records["work_items"][item]
    headers, body = plane.webhook("work_items", "updated", record, "plane_wh_secret")
    assert headers["X-Plane-Signature"] == hmac.new(b"plane_wh_secret", body, hashlib.sha256).hexdigest()
    assert re.fullmatch(r"[0-9a-f-]{36}", headers["X-Plane-Delivery"])
    assert (headers["X-Plane-Event"], headers["User-Agent"]) == ("issue", "Autopilot")
    payload = json.loads(body)
    assert body == json.dumps(payload).encode()  # Python's own separators and escapes
    assert payload.keys() == {"event", "action", "webhook_id", "workspace_id", "data", "activity"}
    assert payload["data"]["assignees"][0]["id"] == plane.owner
    assert json.loads(plane.webhook("work_items", "deleted", record, "s")[1])["data"] == {"id": item}


def test_faults_strike_as_often_as_they_are_told(client: PlaneClient, plane: Plane) -> None:
    plane.storm(1, "7")
    with pytest.raises(HttpError) as busy:
        client.users.get_me()
    assert busy.value.status_code == 429
    assert client.users.get_me().display_name == "ada"
    plane.fault("users/me", drop=True)
    with pytest.raises((http.client.HTTPException, OSError)):
        get(plane, "/api/v1/users/me/", plane.key.token)
    plane.fault("/projects/", edit=lambda page: {**page, "total_count": -1})
    assert client.projects.list("acme").total_count == -1
    plane.fault("/projects/", cut=10)
    with pytest.raises((http.client.HTTPException, OSError)):
        get(plane, "/api/v1/workspaces/acme/projects/", plane.key.token)
    assert len(plane.asked("GET /api/v1/users/me/")) == 3


def test_time_goes_on_for_every_record(plane: Plane) -> None:
    moments = [plane.world.now() for _ in range(1000)]
    assert moments == sorted(set(moments))
    assert moments[-1] - moments[0] < timedelta(seconds=10)
