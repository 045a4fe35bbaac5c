"""The real DVC in a tiny project: `discard` and `dvc repro` restore a damaged result."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from dvc import cli

from pipeline import discard, place
from pipeline.audit import lineage
from pipeline.base.errors import InputError
from tests import tiny_project
from tests.conftest import ROOT

MAKE = """
import pathlib, sys
log, out = pathlib.Path("ran"), pathlib.Path(sys.argv[1])
log.write_text(log.read_text() + sys.argv[1] + "\\n" if log.exists() else sys.argv[1] + "\\n")
for part in [out] if out.suffix else [out / "00000.h5", out / "more" / "00001.h5"]:
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(str(part).encode() * 1000)
"""
STAGES = """
stages:
  prepare: {cmd: python make.py data/clean, deps: [raw], outs: [data/clean]}
  train: {cmd: python make.py models/clean.safetensors, deps: [data/clean], \
outs: [models/clean.safetensors]}
  evaluate: {cmd: python make.py metrics/clean.json, deps: [models/clean.safetensors], \
metrics: [metrics/clean.json: {cache: false}]}
"""
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
)
SET, SHARD, MODEL = "data/clean", "data/clean/more/00001.h5", "models/clean.safetensors"


def dvc(*arguments):
    """DVC's command line, in this process: it is imported only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert cli.main(list(arguments)) == 0


def repro():
    """The stages' outputs that were made, and not brought back from the cache."""
    Path("ran").unlink(missing_ok=True)
    dvc("repro")
    return Path("ran").read_text().split() if Path("ran").exists() else []


def contents():
    return {
        str(path): path.read_bytes()
        for folder in ("data", "models", "metrics")
        for path in Path(folder).rglob("*.*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name, text in (("make.py", MAKE), ("dvc.yaml", STAGES), ("raw", "raw")):
        (folder / name).write_text(text)
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text(
        (ROOT / ".dvc/config").read_text().replace("[core]", "[core]\n    no_scm = true")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repro()
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of the project with its results as hard links into its cache.

    DVC makes such links where it can.
    """
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(place, "ask_dvc", tiny_project.ask_dvc)
    for name in [*lineage.files(Path("data")), *lineage.files(Path("models"))]:
        cached = object_of(lineage.md5(name))
        name.unlink()
        os.link(cached, name)
    return tmp_path / "project"


def object_of(md5):
    return Path(".dvc/cache/files/md5", md5[:2], md5[2:])


def damage(path, quietly=False):
    """Change a byte in place; quietly: and leave size and time as they were, as a bad disk does."""
    path, before = Path(path), Path(path).stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"!")
    path.chmod(before.st_mode)
    if quietly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unlink_from_cache(path):
    content = Path(path).read_bytes()
    Path(path).unlink()
    Path(path).write_bytes(content)


@pytest.mark.parametrize(
    ("out", "part", "quietly"), [(SET, SHARD, False), (SET, SHARD, True), (MODEL, MODEL, True)]
)
def test_a_result_damaged_through_its_hard_link_is_made_again(folder, out, part, quietly, capsys):
    before, cached = contents(), object_of(lineage.md5(folder / part))
    damage(part, quietly)
    shutil.rmtree(out) if out == SET else Path(out).unlink()
    assert repro() == [], "without discard DVC brings the damaged one back"
    assert contents() != before
    assert (
        discard.discard(Path(out))
        == f"{out}: deleted what was damaged: 2 of the above; `dvc repro` makes it again"
    )
    assert f"{Path.cwd() / cached}\n{Path.cwd() / out}\n" in capsys.readouterr().out
    assert repro() == [out], "nothing before or after it"
    assert contents() == before
    assert not discard_finds_damage(out)


def discard_finds_damage(out):
    try:
        discard.discard(Path(out))
    except InputError as error:
        assert (
            f"{out}: not damaged: it is as dvc.lock records it; `dvc repro --force --single-item"
            in str(error)
        )
        return False
    return True


def test_a_damaged_copy_comes_back_from_the_whole_cache(folder):
    before = contents()
    unlink_from_cache(SHARD)
    damage(SHARD, quietly=True)
    assert "1 of the above" in discard.discard(Path(SHARD)), "a part of a result names the result"
    assert not Path(SET).exists()
    assert repro() == []
    assert contents() == before


def test_a_whole_result_is_kept_and_its_damaged_object_deleted(folder):
    before, cached = contents(), object_of(lineage.md5(folder / MODEL))
    unlink_from_cache(MODEL)
    damage(cached, quietly=True)
    assert discard.discard(Path(MODEL)).endswith(
        "1 of the above; the result itself is whole and was kept; `dvc repro` makes it again"
    )
    assert not cached.exists()
    assert contents() == before
    repro()
    assert contents() == before
    assert cached.read_bytes() == before[MODEL]


@pytest.mark.parametrize("lost", ["deleted", "damaged"])
def test_the_list_of_a_sets_files_may_be_lost_too(folder, lost):
    before, listed, cached = (
        contents(),
        object_of(lineage.md5(folder / SET)),
        object_of(lineage.md5(folder / SHARD)),
    )
    foreign = cached.with_name("someone-elses.tmp")
    foreign.write_bytes(b"x")
    damage(SHARD)
    listed.unlink() if lost == "deleted" else damage(listed)
    discard.discard(Path(SET))
    assert not listed.exists()
    assert not cached.exists()
    assert foreign.exists()
    assert object_of(lineage.md5(Path(MODEL))).exists(), "whole"
    assert repro() == [SET]
    assert contents() == before


def test_recorded_damage_is_repaired_by_the_command_named(folder):
    before = contents()
    unlink_from_cache(MODEL)
    damage(MODEL)
    dvc("commit", "-f", "train")
    assert not discard_finds_damage(MODEL)
    dvc("repro", "--force", "--single-item", "train")
    assert contents() == before


def test_a_result_that_is_gone_and_whole_in_the_cache(folder):
    before = contents()
    shutil.rmtree(SET)
    with pytest.raises(
        InputError,
        match=(
            "data/clean: not there, and nothing of it in DVC's cache is damaged; `dvc "
            "repro` brings it back"
        ),
    ):
        discard.discard(Path(SET))
    assert repro() == []
    assert contents() == before


def test_results_may_be_links_into_a_cache_on_another_disk(folder, tmp_path):
    before = contents()
    shutil.move(".dvc/cache", tmp_path / "elsewhere")
    dvc("config", "--local", "cache.dir", str(tmp_path / "elsewhere"))
    dvc("config", "--local", "cache.type", "symlink")
    dvc("checkout", "--relink")
    assert Path(MODEL).is_symlink()
    damage(Path(MODEL).resolve())
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    with pytest.raises(
        InputError, match=r"a link to .*elsewhere/.*, where there is no file; is its disk mounted\?"
    ):
        discard.discard(Path(MODEL))
    (tmp_path / "unmounted").rename(tmp_path / "elsewhere")
    discard.discard(Path(MODEL))
    assert repro() == [MODEL]
    assert contents() == before


@pytest.mark.parametrize(
    "path", ["metrics/clean.json", "raw", "data", ".", "data/clean2", "data/../raw", ".dvc/cache"]
)
def test_what_is_no_recorded_result_is_refused(folder, path):
    before = contents()
    with pytest.raises(
        InputError,
        match=(
            r": no image set or model that dvc.lock records; there are data/clean, "
            r"models/clean.safetensors"
        ),
    ):
        discard.discard(Path(path))
    assert contents() == before


def test_a_path_in_no_project_is_refused(tmp_path):
    with pytest.raises(InputError, match="not within a project folder: no dvc.lock there or above"):
        discard.discard(tmp_path / "data/clean")


def test_nothing_is_deleted_where_something_cannot_be_read(folder, monkeypatch):
    damage(SHARD)
    before, md5 = contents(), lineage.md5

    def unreadable(path):
        if path.name == "clean":
            raise PermissionError(13, "Permission denied", str(path))
        return md5(path)

    monkeypatch.setattr(lineage, "md5", unreadable)
    with pytest.raises(PermissionError):
        discard.discard(Path(SET))
    assert contents() == before


def test_discard_waits_for_no_repro_and_disturbs_none(folder):
    damage(SHARD)
    with (
        place.only_one(folder),
        pytest.raises(InputError, match="another `repro` is running in this folder"),
    ):
        discard.discard(Path(SET))
    assert Path(SHARD).exists()
