import os
from pathlib import Path

import pytest

from pipeline.base import unfinished


def test_a_name_depends_on_everything_that_decides_the_content(monkeypatch):
    out = Path("models/robust.pt")
    names = {unfinished.path_for(out, decides) for decides in ({"lr": 1}, {"lr": 2}, {"lr": 1, "x": ""})}
    assert len(names) == 3
    assert unfinished.path_for(out, {"a": 1, "b": 2}) == unfinished.path_for(out, {"b": 2, "a": 1})
    before = unfinished.path_for(out, {})
    assert before.parent == Path("models")
    assert before.name.startswith(".robust.pt.")
    monkeypatch.setattr(unfinished, "code_sha256", lambda: "other code")
    assert unfinished.path_for(out, {}) != before


@pytest.mark.parametrize("nothing", [True, False])
def test_what_was_left_behind_is_found_and_cleared(tmp_path, nothing):
    (tmp_path / "data/clean").mkdir(parents=True)
    (tmp_path / "data/clean/00000.h5").write_bytes(b"x")
    if not nothing:
        (tmp_path / "data/.clean.0123456789abcdef.part").mkdir()
        (tmp_path / "data/.clean.0123456789abcdef.part/00000.h5").write_bytes(b"x")
        (tmp_path / "data/.robust.pt.0123456789abcdef.part").write_bytes(b"x")
    found = unfinished.left_behind(tmp_path / folder for folder in unfinished.FOLDERS)
    assert len(found) == (0 if nothing else 2)
    unfinished.clear(found)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == ["data/clean/00000.h5"]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Makes `dvc.lock` so many seconds younger than everything else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    def record(seconds):
        unfinished.RECORD.touch()
        now = unfinished.RECORD.stat().st_mtime_ns
        os.utime(unfinished.RECORD, ns=(now, now + int(seconds * 1e9)))

    return record


PART = Path("models/.m.pt.0123456789abcdef.part")


@pytest.mark.parametrize("lock", [None, -5])
def test_finished_work_that_was_never_recorded_is_taken_up_again(recorded, lock):
    if lock is not None:
        recorded(lock)
    unfinished.finished(PART).write_text("work")
    unfinished.forget_recorded()
    unfinished.resume(PART)
    assert PART.read_text() == "work"
    assert unfinished.left_behind() == [PART]


def test_recorded_work_is_forgotten_and_unfinished_work_is_not(recorded):
    other = PART.with_name(".other.pt.0123456789abcdef.part")
    other.write_text("unfinished")
    unfinished.finished(PART).write_text("work")
    recorded(5)
    unfinished.resume(PART)
    assert unfinished.left_behind() == [other]


def test_unfinished_work_goes_before_finished_work_of_the_same_name(recorded):
    PART.write_text("newer")
    unfinished.finished(PART).write_text("older")
    unfinished.resume(PART)
    assert PART.read_text() == "newer"


def test_a_folder_is_kept_by_links_where_the_disk_has_them(recorded, monkeypatch):
    PART.mkdir()
    (PART / "00000.h5").write_text("shard")
    unfinished.finished(PART).mkdir()
    unfinished.keep_links(PART)
    assert (unfinished.finished(PART) / "00000.h5").samefile(PART / "00000.h5")

    def refuse(*_, **__):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    unfinished.keep_links(PART)
    assert not (unfinished.finished(PART) / "00000.h5").exists()
    assert (PART / "00000.h5").read_text() == "shard"
