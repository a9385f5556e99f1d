"""Two runs side by side over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.journeys.system import ADMIN, System


def diff(system: System, job: str, other: str, **query: Any) -> Any:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return system.ok(
        "GET",
        f"/api/sync/jobs/{job}/diff/{other}?{asked}",
        headers={"Undrift-Min-Position": str(system.wrote)},
        token=ADMIN,
    )


@pytest.fixture(scope="module")
def runs(system: System) -> tuple[str, str]:
    """Two runs into one folder: the second meets what was changed, added and taken away since the first."""
    source, target = system.folder(kept="1", changed="1", d__gone="1", d__left="1"), system.place()
    system.integration("diff", source, target, deleteMissingInTarget=True)
    first = system.queue("diff")
    system.wait(first, "completed")
    (source / "changed").write_text("larger")
    (source / "d" / "gone").unlink()
    (source / "added").write_text("1")
    (target / "kept").unlink()
    second = system.queue("diff")
    system.wait(second, "completed")
    return first, second


def test_what_both_did_and_what_only_one_did(system: System, runs: tuple[str, str]) -> None:
    found = diff(system, *runs)
    assert (found["job"]["id"], found["other"]["id"]) == runs
    shown = {
        one["name"]: tuple(one[side]["op"] if side in one else None for side in ("job", "other"))
        for one in found["differences"]
    }
    assert shown == {
        ".": ("created", None),
        "added": (None, "created"),
        "changed": ("created", "updated"),
        "d": ("created", None),
        "d/gone": ("created", "deleted"),
        "d/left": ("created", None),
    }
    counts = {name: found[name] for name in ("same", "different", "onlyJob", "onlyOther")}
    assert counts == {"same": 1, "different": 2, "onlyJob": 3, "onlyOther": 1}  # `kept` was made twice
    assert found["nextCursor"] is None
    [changed] = [one for one in found["differences"] if one["name"] == "changed"]
    assert (changed["job"]["size"], changed["other"]["size"]) == (1, 6)


def test_page_by_page_it_is_the_same(system: System, runs: tuple[str, str]) -> None:
    every = diff(system, *runs)["differences"]
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = diff(system, *runs, limit=2, cursor=cursor)
        assert len(page["differences"]) <= 2
        found += page["differences"]
        cursor = page["nextCursor"]
    assert found == every


def test_seen_from_the_other_run_it_is_mirrored(system: System, runs: tuple[str, str]) -> None:
    ours, theirs = diff(system, *runs), diff(system, *reversed(runs))
    assert (ours["onlyJob"], ours["onlyOther"]) == (theirs["onlyOther"], theirs["onlyJob"])
    assert [(one.get("job"), one.get("other")) for one in ours["differences"]] == [
        (one.get("other"), one.get("job")) for one in theirs["differences"]
    ]
    same = diff(system, runs[0], runs[0])
    assert (same["differences"], same["different"], same["onlyJob"]) == ([], 0, 0)


def test_what_cannot_be_compared_says_why(system: System, runs: tuple[str, str]) -> None:
    def refused(job: str, other: str) -> tuple[int, str]:
        answer = system.get(f"/api/sync/jobs/{job}/diff/{other}", token=ADMIN)
        return answer.status, answer.json()["error"]

    for pair in ((runs[0], "nothing"), ("nothing", runs[0])):
        assert refused(*pair) == (404, "There is no such job")
    with system.idle():
        waiting = system.queue("diff")
        assert system.job(waiting)["status"] == "queued"
        status, text = refused(runs[0], waiting)
        assert (status, "queued" in text, "ended" in text) == (409, True, True)
        system.post(f"/api/sync/jobs/{waiting}/stop")
        assert system.wait(waiting)["status"] == "stopped"
    status, text = refused(waiting, runs[0])
    assert (status, "not completed" in text) == (409, True)
    answer = system.get(f"/api/sync/jobs/{runs[0]}/diff/{runs[1]}?cursor=x", token=ADMIN)
    assert answer.status == 400


def test_runs_of_different_kinds_are_not_compared(system: System, runs: tuple[str, str]) -> None:
    reverted = system.ok("POST", f"/api/sync/jobs/{runs[1]}/revert", token=ADMIN)["jobId"]
    system.wait(reverted)
    answer = system.get(f"/api/sync/jobs/{runs[0]}/diff/{reverted}", token=ADMIN)
    assert (answer.status, answer.json()["code"]) == (400, "VALIDATION_ERROR")
    assert "files and revert" in answer.json()["error"]


def test_another_tenant_sees_nothing(system: System, runs: tuple[str, str]) -> None:
    system.undrift("tenants", "add", "diff-other")
    token = system.key("diff-stranger", "jobs:read", tenant="diff-other")
    assert system.get(f"/api/sync/jobs/{runs[0]}/diff/{runs[1]}", token=token).status == 404
    plain = system.key("diff-writer", "jobs:write")
    assert system.get(f"/api/sync/jobs/{runs[0]}/diff/{runs[1]}", token=plain).status == 403
