"""Read what `dvc.yaml` and `dvc.lock` say about a project, and compute the hashes that they use.

`dvc.yaml` and `params.yaml` together declare the stages, and DVC itself reads them. `dvc.lock`
records what each stage read, ran and wrote. It is read here as a plain file, and hashes are
computed here. An audit therefore does not rely on DVC's own record of the disk.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.base.errors import InputError

DECLARED, RECORDED = "dvc.yaml", "dvc.lock"
REMEDY = (
    f"`git checkout {RECORDED}` brings back the committed one; once it is deleted, `dvc repro`"
    " runs everything and writes it"
)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A stage as `dvc.yaml` and `params.yaml` declare it, with every value filled in.

    `params` are dotted keys.
    """

    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A stage as it was last run.

    `deps` and `outs` map each path that it read or wrote to its MD5. `params` maps dotted keys to
    values, with one key for each plain value. `declared` maps the keys that `dvc.yaml` declares to
    values, which may be nested.
    """

    cmd: str
    deps: dict[str, str]
    params: dict[str, Any]
    declared: dict[str, Any]
    outs: dict[str, str]


def declared(root: Path) -> dict[str, Declared]:
    """Return the stages of a project folder by name, as DVC reads them.

    An example of a name is `generate@clean-pgd`. Raises InputError for a folder that is not a DVC
    project, and for stages that DVC cannot read.
    """
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    try:
        with Repo(str(root)) as repo:
            repo.index.check_graph()
            stages = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]
    except DvcException as error:
        reason = " ".join(str(error).split()).partition(" Use `dvc")[0][:300]
        if RECORDED in reason:
            raise InputError(
                f"{root / RECORDED}: not as DVC writes it: {reason}; {REMEDY}"
            ) from error
        raise InputError(f"{root / DECLARED}: DVC cannot read the stages: {reason}") from error
    return {
        stage.name: Declared(
            cmd=stage.cmd,
            deps=tuple(dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)),
            params=tuple(
                key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params
            ),
            outs=tuple(out.def_path for out in stage.outs),
        )
        for stage in stages
    }


def recorded(root: Path) -> dict[str, Recorded]:
    """Return the stages of a project folder's `dvc.lock` by name.

    Raises InputError where the file is missing or is not a lock file.
    """
    path = root / RECORDED
    try:
        return {
            name: Recorded(
                cmd=entry["cmd"],
                deps={item["path"]: str(item["md5"]) for item in entry.get("deps", [])},
                params={
                    key: value
                    for content in entry.get("params", {}).values()
                    for key, value in flatten(content).items()
                },
                declared={
                    key: value
                    for content in entry.get("params", {}).values()
                    for key, value in content.items()
                },
                outs={item["path"]: str(item["md5"]) for item in entry.get("outs", [])},
            )
            for name, entry in read_yaml(path)["stages"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a lock file of DVC 3: {error}; {REMEDY}") from error


def overlap(one: str, other: str) -> bool:
    """Return whether two paths are the same, or one is inside the other."""
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def upstream(stage: str, stages: Mapping[str, Declared | Recorded]) -> list[str]:
    """Return the stages whose outputs a stage reads, and then those that they need."""
    found: list[str] = []
    for name in chain([stage], found):  # which grows
        found += [
            other
            for other, entry in stages.items()
            if other not in (stage, *found)
            and any(overlap(dep, out) for dep in stages[name].deps for out in entry.outs)
        ]
    return found


def nearest(folder: Path, name: str) -> Path | None:
    """Return the nearest folder, at or above an absolute one, that holds a file or folder."""
    return next((each for each in (folder, *folder.parents) if (each / name).exists()), None)


def output_folders(root: Path) -> list[Path]:
    """Return the folders above all outputs that DVC caches, outermost first.

    Folders are named as in `dvc.yaml`, without the values of `params.yaml`. Raises InputError for a
    `dvc.yaml` that is missing or has no stages.
    """
    path = root / DECLARED
    try:
        outs = [
            out
            for entry in read_yaml(path)["stages"].values()
            for out in entry.get("do", entry).get("outs", [])
        ]
        folders = {folder for out in outs for folder in Path(out).parents}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: a stage cannot be read: {error}") from error
    return sorted(folder for folder in folders if folder.name and "$" not in str(folder))


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Raises InputError where the file cannot be read or is not YAML.
    """
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); "
            "an audit needs a project folder after `dvc repro`"
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        remedy = f"; {REMEDY}" if path.name == RECORDED else ""
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}{remedy}") from error


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def md5(path: Path, *, inside: bool = True) -> str:
    """Return the MD5 that DVC 3 records for a file or a folder.

    A folder's MD5 is that of the JSON list of its files' MD5s and names, followed by `.dir`. The
    list omits what DVC ignores. `inside` says whether the path is in the project folder, for DVC
    ignores nothing elsewhere. Raises InputError where the path does not exist, and OSError for what
    cannot be read.
    """
    if path.is_file():
        return _file_md5(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = (file for file in files(path, inside=inside) if file.is_file())
    names = {file.relative_to(path).as_posix(): file for file in found}
    entries = [{"md5": _file_md5(names[name]), "relpath": name} for name in sorted(names)]
    return (
        hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        + ".dir"
    )


def files(folder: Path, *, inside: bool = True) -> Iterator[Path]:
    """Yield everything in a folder, at any depth, that is not a folder and that DVC tracks.

    `inside` is that of `md5`. Raises OSError where a folder cannot be listed; `rglob` would skip it
    silently.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        if inside:
            folders[:] = [name for name in folders if not _is_ignored_folder(Path(parent, name))]
        yield from (Path(parent, name) for name in names if not inside or not _is_ignored(name))


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_ignored(name: str) -> bool:
    """Return whether DVC ignores files and folders of a name, by itself or by `.dvcignore`."""
    return name in (".git", "__pycache__", ".gitkeep") or (
        name.startswith(".") and name.endswith(".part")
    )


def _is_ignored_folder(folder: Path) -> bool:
    """Return whether DVC ignores a folder; another project of DVC is one."""
    named = folder.name in (".hg", ".dvc") or _is_ignored(folder.name)
    return named or (folder / ".dvc").exists()
