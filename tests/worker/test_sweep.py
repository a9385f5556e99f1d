"""The trash is swept by age, whole generations at a time, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

from services.worker.sweep import sweep


def generation(trash: Path, job: str, made: float) -> Path:
    folder = trash / job
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "file").write_text("kept")
    os.utime(folder, (made, made))
    return folder


def test_only_old_generations_go(tmp_path: Path) -> None:
    old, young = generation(tmp_path, "old", 1000.0), generation(tmp_path, "young", 3000.0)
    assert sweep(tmp_path, 2000.0) == ["old"]
    assert not old.exists()
    assert (young / "a" / "file").read_text() == "kept"


def test_a_link_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    trash = tmp_path / "trash"
    inside = generation(trash, "old", 1000.0)
    (inside / "link").symlink_to(outside)
    os.utime(inside, (1000.0, 1000.0))
    (trash / "elsewhere").symlink_to(outside)
    assert sweep(trash, 2000.0) == ["old"]
    assert (outside / "file").read_text() == "mine"
    assert (trash / "elsewhere").is_symlink()


def test_a_trash_that_is_not_there_or_is_a_link(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", 2000.0) == []
    generation(tmp_path / "real", "old", 1000.0)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert sweep(tmp_path / "linked", 2000.0) == []
