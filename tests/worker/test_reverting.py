"""Undoing what a job did, to a collection and to a folder: all of it, or what has not moved since."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import items, jobs
from domain.plans import files, reverts
from tests.worker.workshop import Workshop, many, pages, rows, until


def result(job: jobs.Job) -> reverts.Result:
    assert isinstance(job.ended, jobs.Completed), job.ended
    return msgspec.json.decode(job.ended.result, type=reverts.Result)


# Collections.


async def brought(workshop: Workshop, id: str, pages: list[Any]) -> str:
    workshop.world(id, pages)
    job = await workshop.queue(id, force=True)
    assert (await workshop.end(job)).status == "completed"
    return job


async def put(workshop: Workshop, id: str, name: str, value: Any) -> None:
    """By somebody else than a job."""
    content = items.canonical(value)
    command = items.Put(id, "things", name, Raw(content), items.digest(content), None, "hook")
    await workshop.process.store.execute(items, items.stream_id(id, "things", name), command)


async def test_a_collection_is_as_it_was(workshop: Workshop) -> None:
    id = await workshop.integration()
    await brought(workshop, id, [rows("a", "b", "c"), rows("x", entity="people")])
    before = await workshop.holds(id)
    job = await brought(workshop, id, [rows("a"), rows("b", value="2"), rows("d"), rows("x", entity="people")])
    ended = await workshop.revert(job, collection=id)
    assert result(ended) == reverts.Result(3)
    assert (ended.counters.created, ended.counters.updated, ended.counters.deleted) == (1, 1, 1)
    assert await workshop.holds(id) == before
    again = await workshop.revert(job, collection=id)
    assert result(again) == reverts.Result()
    assert await workshop.holds(id) == before


async def test_a_revert_can_be_reverted(workshop: Workshop) -> None:
    id = await workshop.integration()
    job = await brought(workshop, id, [rows("a", "b")])
    revert = await workshop.say("revert", reverts.Spec(job, collection=id))
    assert result(await workshop.end(revert)).reverted == 2
    assert await workshop.holds(id) == {}
    assert result(await workshop.revert(revert, collection=id)).reverted == 2
    assert set(await workshop.holds(id)) == {("things", "a"), ("things", "b")}


async def test_items_that_moved_since_are_left_alone(workshop: Workshop) -> None:
    id = await workshop.integration()
    await brought(workshop, id, [rows("a", "b", "c", "same")])
    job = await brought(workshop, id, [rows("a", "b", "c", "same", "new", value="2")])
    await put(workshop, id, "b", {"mine": True})
    await put(workshop, id, "new", {"mine": True})
    await put(workshop, id, "same", {"name": "same", "value": "1"})
    found = result(await workshop.revert(job, collection=id))
    assert (found.reverted, found.conflict_count) == (2, 2)
    assert {one.path for one in found.conflicts} == {"things/b", "things/new"}
    assert all("changed since" in one.reason for one in found.conflicts)
    holds = {name: content for (_, name), content in (await workshop.holds(id)).items()}
    assert holds == {
        "a": {"name": "a", "value": "1"},
        "b": {"mine": True},
        "c": {"name": "c", "value": "1"},
        "same": {"name": "same", "value": "1"},
        "new": {"mine": True},
    }


async def test_a_long_revert_stops_and_a_resumed_one_counts_on(workshop: Workshop) -> None:
    id = await workshop.integration()
    job = await brought(workshop, id, pages(many(3000), 1000))
    revert = await workshop.say("revert", reverts.Spec(job, collection=id))

    async def begun() -> bool:
        return (await workshop.job(revert)).cursor is not None

    await until(begun)
    await workshop.process.store.execute(jobs, revert, jobs.Stop())
    stopped = await workshop.end(revert)
    left = 3000 - stopped.counters.deleted
    assert len(await workshop.holds(id)) == left
    if stopped.status == "stopped":
        assert result(await workshop.revert(job, collection=id)).reverted == left
    assert await workshop.holds(id) == {}


async def test_a_job_that_changed_nothing_has_nothing_to_revert(workshop: Workshop) -> None:
    id = await workshop.integration()
    await brought(workshop, id, [rows("a")])
    job = await brought(workshop, id, [rows("a")])
    assert result(await workshop.revert(job, collection=id)) == reverts.Result()


async def test_two_reverts_at_once_undo_once(workshop: Workshop) -> None:
    id = await workshop.integration()
    job = await brought(workshop, id, pages(many(600), 300))
    both = await asyncio.gather(*(workshop.revert(job, collection=id) for _ in range(2)))
    assert sum(result(one).reverted for one in both) == 600
    assert await workshop.holds(id) == {}
    log = await workshop.log_of(id)
    assert len(log) == 1200


# Folders.


class Folders:
    """A source and a target below the root."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        base = workshop.folder / f"folders-{next(workshop.numbers)}" / "at"
        self.source, self.target = base / "source", base / "target"
        self.source.mkdir(parents=True)
        self.job = ""

    def write(self, **texts: str | None) -> None:
        """Into the source; None removes."""
        _write(self.source, texts)

    def meddle(self, **texts: str | None) -> None:
        """Into the target."""
        _write(self.target, texts)

    async def sync(self, **more: Any) -> jobs.Job:
        spec = files.Spec(
            source_directory=str(self.source),
            target_directory=str(self.target),
            delete_missing_in_target=True,
            force=True,
            **more,
        )
        self.job = await self._workshop.say("files", spec)
        ended = await self._workshop.end(self.job)
        assert isinstance(ended.ended, jobs.Completed), ended.ended
        self.plan = msgspec.json.decode(ended.ended.result, type=files.Result).plan_hash
        return ended

    async def revert(self) -> jobs.Job:
        return await self._workshop.revert(self.job, target_directory=str(self.target), plan=self.plan)

    def tree(self) -> dict[str, bytes | None]:
        """Of the target: files with their bytes, folders with none."""
        return {
            str(path.relative_to(self.target)): path.read_bytes() if path.is_file() else None
            for path in self.target.rglob("*")
        }


def _write(base: Path, texts: dict[str, str | None]) -> None:
    for name, text in texts.items():
        path = base / name.replace("__", "/")
        if text is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def folders(workshop: Workshop) -> Folders:
    return Folders(workshop)


async def test_what_a_sync_deleted_and_created_is_as_it_was(folders: Folders) -> None:
    folders.write(kept="1", gone="2", deep__er__gone="3", deep__kept="4", empty__x="5")
    await folders.sync()
    before = folders.tree()
    folders.write(gone=None, deep__er=None, empty=None, new="6", newer__still__file="7")
    assert (await folders.sync()).counters.deleted == 3
    ended = await folders.revert()
    assert result(ended) == reverts.Result(5)
    assert folders.tree() == before
    assert result(await folders.revert()) == reverts.Result()
    assert folders.tree() == before


async def test_what_was_replaced_comes_back_where_the_trash_holds_it(folders: Folders) -> None:
    folders.write(a="1", b="1")
    await folders.sync()
    folders.meddle(a="mine")  # so that the next sync keeps it in the trash
    folders.write(a="22", b="22")
    await folders.sync()
    found = result(await folders.revert())
    assert (found.reverted, [(one.path, one.reason) for one in found.conflicts]) == (
        1,
        [("b", "what was there before is not in the trash")],
    )
    assert folders.tree() == {"a": b"mine", "b": b"22"}


async def test_what_moved_since_is_left_alone(folders: Folders) -> None:
    folders.write(a="1", b="2", c="3", gone="4")
    await folders.sync()
    folders.write(gone=None, d="5", e="6", f__g="7")
    await folders.sync()
    folders.meddle(d="mine", gone="mine", f__mine="mine")
    found = result(await folders.revert())
    assert {one.path for one in found.conflicts} == {"d", "gone"}
    assert found.reverted == 2
    assert folders.tree() == {
        "a": b"1",
        "b": b"2",
        "c": b"3",
        "d": b"mine",
        "gone": b"mine",
        "f": None,
        "f/mine": b"mine",
    }


async def test_a_folder_that_became_a_file_and_one_that_was_a_file(folders: Folders) -> None:
    folders.write(was_folder__a="1", was_folder__b="2")
    await folders.sync()
    before = folders.tree()
    folders.write(was_folder=None)
    folders.write(was_folder="file")
    await folders.sync()
    assert folders.tree() == {"was_folder": b"file"}
    assert result(await folders.revert()).conflict_count == 0
    assert folders.tree() == before


async def test_without_its_trash_nothing_is_undone(folders: Folders, workshop: Workshop) -> None:
    folders.write(a="1", b="2")
    await folders.sync()
    folders.write(b=None, c="3")
    await folders.sync()
    after = folders.tree()
    for trash in (workshop.folder / ".undrift" / "trash", workshop.process.settings.directory / "trash"):
        shutil.rmtree(trash / folders.job, ignore_errors=True)
    ended = await folders.revert()
    assert isinstance(ended.ended, jobs.Failed)
    assert "The trash of that job is gone" in ended.ended.message
    assert folders.tree() == after


async def test_without_its_plan_nothing_is_undone(folders: Folders, workshop: Workshop) -> None:
    folders.write(a="1")
    await folders.sync()
    workshop.process.blobs.path(folders.plan).unlink()
    ended = await folders.revert()
    assert isinstance(ended.ended, jobs.Failed)
    assert ended.ended.message == "The plan of that job is not kept any more, so it cannot be undone"
    assert folders.tree() == {"a": b"1"}


async def test_what_was_made_goes_to_the_trash_of_the_revert(folders: Folders, workshop: Workshop) -> None:
    folders.write(a__b="precious")
    await folders.sync()
    assert result(await folders.revert()).reverted == 1
    assert folders.tree() == {}
    kept = [path for path in (workshop.folder / ".undrift" / "trash").rglob("b") if path.read_text() == "precious"]
    assert kept


async def test_links_times_and_modes_come_back(folders: Folders) -> None:
    folders.write(script="#!")
    (folders.source / "script").chmod(0o755)
    (folders.source / "link").symlink_to("nowhere")
    await folders.sync()
    before = [(path.name, path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted(folders.target.iterdir())]
    folders.write(script=None, link=None)
    await folders.sync()
    assert folders.tree() == {}
    assert result(await folders.revert()).reverted == 2
    after = [(path.name, path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted(folders.target.iterdir())]
    assert before == after


async def test_an_empty_sync_has_nothing_to_revert(folders: Folders) -> None:
    folders.write(a="1")
    await folders.sync()
    await folders.sync()
    assert result(await folders.revert()) == reverts.Result()
