import os
from pathlib import Path

import pytest

from pipeline import partial


def test_a_name_depends_on_everything_that_decides_the_content(monkeypatch):
    out = Path("models/robust.pt")
    names = {partial.path_for(out, decides) for decides in ({"lr": 1}, {"lr": 2}, {"lr": 1, "x": ""})}
    assert len(names) == 3
    assert partial.path_for(out, {"a": 1, "b": 2}) == partial.path_for(out, {"b": 2, "a": 1})
    before = partial.path_for(out, {})
    assert before.parent == Path("models")
    assert before.name.startswith(".robust.pt.")
    monkeypatch.setattr(partial, "code_sha256", lambda: "other code")
    assert partial.path_for(out, {}) != before


@pytest.mark.parametrize("nothing", [True, False])
def test_what_was_left_behind_is_found_and_cleared(tmp_path, nothing):
    (tmp_path / "data/clean").mkdir(parents=True)
    (tmp_path / "data/clean/00000.h5").write_bytes(b"x")
    if not nothing:
        (tmp_path / "data/.clean.0123456789abcdef.part").mkdir()
        (tmp_path / "data/.clean.0123456789abcdef.part/00000.h5").write_bytes(b"x")
        (tmp_path / "data/.robust.pt.0123456789abcdef.part").write_bytes(b"x")
    found = partial.left_behind(tmp_path / folder for folder in partial.FOLDERS)
    assert len(found) == (0 if nothing else 2)
    partial.clear(found)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == ["data/clean/00000.h5"]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Makes `dvc.lock` so many seconds younger than everything else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    def record(seconds):
        partial.RECORD.touch()
        now = partial.RECORD.stat().st_mtime_ns
        os.utime(partial.RECORD, ns=(now, now + int(seconds * 1e9)))

    return record


PART = Path("models/.m.pt.0123456789abcdef.part")


@pytest.mark.parametrize("lock", [None, -5])
def test_finished_work_that_was_never_recorded_is_taken_up_again(recorded, lock):
    if lock is not None:
        recorded(lock)
    partial.finished(PART).write_text("work")
    partial.forget_recorded()
    partial.resume(PART)
    assert PART.read_text() == "work"
    assert partial.left_behind() == [PART]


def test_recorded_work_is_forgotten_and_unfinished_work_is_not(recorded):
    other = PART.with_name(".other.pt.0123456789abcdef.part")
    other.write_text("unfinished")
    partial.finished(PART).write_text("work")
    recorded(5)
    partial.resume(PART)
    assert partial.left_behind() == [other]


def test_unfinished_work_goes_before_finished_work_of_the_same_name(recorded):
    PART.write_text("newer")
    partial.finished(PART).write_text("older")
    partial.resume(PART)
    assert PART.read_text() == "newer"


def test_a_folder_is_kept_by_links_where_the_disk_has_them(recorded, monkeypatch):
    PART.mkdir()
    (PART / "00000.h5").write_text("shard")
    partial.finished(PART).mkdir()
    partial.keep_links(PART)
    assert (partial.finished(PART) / "00000.h5").samefile(PART / "00000.h5")

    def refuse(*_, **__):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    partial.keep_links(PART)
    assert not (partial.finished(PART) / "00000.h5").exists()
    assert (PART / "00000.h5").read_text() == "shard"
