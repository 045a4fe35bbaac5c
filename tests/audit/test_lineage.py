"""Hashes of folders, as DVC computes them."""

import shutil
from pathlib import Path

import pytest
import torch
from dvc.dependency import loads_from
from dvc.repo import Repo
from dvc.stage import Stage

from pipeline.audit import lineage
from pipeline.audit.project import Project
from tests.conftest import ROOT

DATA = ("a/1.png", "b/2.png", "b/.2.png.part", "b/.gitkeep", "__pycache__/x.pyc", "b/.hidden")
CLONE = (".git/HEAD", ".git/objects/1", ".hg/store", "b/module/.git", "b/.hg", "b/module/3.png")


@pytest.fixture
def root(tmp_path):
    Repo.init(str(tmp_path / "project"), no_scm=True).close()
    shutil.copy(ROOT / ".dvcignore", tmp_path / "project")
    return tmp_path / "project"


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def md5_of_dvc(root, path):
    with Repo(str(root)) as repo:
        (dependency,) = loads_from(Stage(repo), [str(root / path)])
        dependency.save()
        return dependency.hash_info.value


@pytest.mark.parametrize("path", ["data/raw", "../raw"])
@pytest.mark.parametrize(
    "names",
    [DATA, (*DATA, *CLONE), (*DATA, "b/.dvc/config"), (*DATA, ".dvc/config")],
    ids=["data", "clone", "with a project", "project"],
)
def test_the_hash_of_a_folder_is_that_of_dvc(root, path, names):
    write(root / path, names)
    assert Project(root, torch.device("cpu")).md5(path) == md5_of_dvc(root, path)


def test_files_that_dvc_ignores_are_not_listed(tmp_path):
    write(tmp_path, ("a", *CLONE))
    listed = {file.relative_to(tmp_path).as_posix() for file in lineage.files(tmp_path)}
    assert listed == {"a", "b/.hg", "b/module/3.png"}
    assert {*lineage.files(tmp_path, inside=False)} == {
        tmp_path / Path(name) for name in ("a", *CLONE)
    }
