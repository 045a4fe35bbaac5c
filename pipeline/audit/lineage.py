"""What `dvc.yaml` and `dvc.lock` say about a project, and the hashes they say it with, without DVC.

`dvc.yaml` and `params.yaml` together declare the stages; `dvc.lock` records what each of them read, ran and wrote. Both are plain files, so
they can be held against each other, and against what lies on the disk, wherever the project's files are.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.base.errors import InputError

DECLARED, RECORDED = "dvc.yaml", "dvc.lock"
OUTS = ("outs", "metrics", "plots")
_TEMPLATE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A stage as `dvc.yaml` and `params.yaml` want it, every value filled in; `params` are dotted keys."""

    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A stage as it was last run: MD5 by path of what it read and wrote, and its parameters by dotted key, one for each plain value."""

    cmd: str
    deps: dict[str, str]
    params: dict[str, Any]
    outs: dict[str, str]


def declared(root: Path, params: Mapping[str, Any]) -> dict[str, Declared]:
    """The stages of a project folder by name, such as `generate@clean-pgd`.

    Raises InputError for a `dvc.yaml` that is missing or uses what is not read here (`vars`, functions, `wdir`).
    """
    path = root / DECLARED
    try:
        expanded = [parts for name, entry in read_yaml(path)["stages"].items() for parts in _expand(name, entry, params)]
        return {name: _declared(entry, values) for name, entry, values in expanded}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: a stage cannot be read: {' '.join(str(error).split())}") from error


def recorded(root: Path) -> dict[str, Recorded]:
    """The stages of a project folder's `dvc.lock` by name; raises InputError where it is missing or no lock file."""
    path = root / RECORDED
    try:
        return {
            name: Recorded(
                cmd=entry["cmd"],
                deps={item["path"]: str(item["md5"]) for item in entry.get("deps", [])},
                params={key: value for content in entry.get("params", {}).values() for key, value in flatten(content).items()},
                outs={item["path"]: str(item["md5"]) for item in entry.get("outs", [])},
            )
            for name, entry in read_yaml(path)["stages"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a lock file of DVC 3: {error}; `dvc repro` writes it") from error


def output_folders(root: Path) -> list[Path]:
    """Return the folders above all outputs that DVC caches, as `dvc.yaml` names them without the values of `params.yaml`, outermost first.

    Raises InputError for a `dvc.yaml` that is missing or has no stages.
    """
    path = root / DECLARED
    try:
        outs = [out for entry in read_yaml(path)["stages"].values() for out in entry.get("do", entry).get("outs", [])]
        folders = {folder for out in outs for folder in Path(out).parents}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: a stage cannot be read: {error}") from error
    return sorted(folder for folder in folders if folder.name and not _TEMPLATE.search(str(folder)))


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; raises InputError where there is none."""
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); an audit needs a project folder after `dvc repro`") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def md5(path: Path) -> str:
    """The MD5 that DVC 3 records: a file's, or for a folder that of the JSON list of its files' MD5s and names, followed by `.dir`.

    What `.dvcignore` leaves out in this project, unfinished parts and bytecode, is left out. Raises InputError where there is nothing, and
    OSError for what cannot be read.
    """
    if path.is_file():
        return _file_md5(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    names = {file.relative_to(path).as_posix(): file for file in files(path) if file.is_file()}
    entries = [{"md5": _file_md5(names[name]), "relpath": name} for name in sorted(names) if not _is_ignored(name)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def files(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder at any depth and is no folder; raises OSError where one cannot be listed, which `rglob` passes over."""

    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_ignored(name: str) -> bool:
    return any(part == "__pycache__" or (part.startswith(".") and part.endswith(".part")) for part in name.split("/"))


def _expand(name: str, entry: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The stages that one entry stands for, each with the values for its templates."""
    if "foreach" in entry:
        items = _value(entry["foreach"], params)
        for key, item in items.items() if isinstance(items, dict) else zip(items, items, strict=True):
            yield f"{name}@{key}", entry["do"], {**params, "key": key, "item": item}
    elif "matrix" in entry:
        axes = {axis: list(_value(values, params)) for axis, values in entry["matrix"].items()}
        for chosen in product(*axes.values()):
            key = "-".join(map(str, chosen))
            yield f"{name}@{key}", entry, {**params, "key": key, "item": dict(zip(axes, chosen, strict=True))}
    else:
        yield name, entry, params


def _declared(entry: Mapping[str, Any], values: Mapping[str, Any]) -> Declared:
    paths = {kind: [next(iter(item)) if isinstance(item, dict) else item for item in entry.get(kind, [])] for kind in (*OUTS, "deps")}
    return Declared(
        cmd=_filled(entry["cmd"], values),
        deps=tuple(dict.fromkeys(_filled(path, values) for path in paths["deps"])),
        params=tuple(_filled(key, values) for key in entry.get("params", [])),
        outs=tuple(_filled(path, values) for kind in OUTS for path in paths[kind]),
    )


def _filled(text: str, values: Mapping[str, Any]) -> str:
    return _TEMPLATE.sub(lambda match: str(_at(values, match[1])), text).strip()


def _value(text: Any, values: Mapping[str, Any]) -> Any:
    """What a template that is a whole value stands for; anything else is itself."""
    match = _TEMPLATE.fullmatch(text) if isinstance(text, str) else None
    return _at(values, match[1]) if match else text


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.strip().split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"${{{key}}} is not in params.yaml")
        found = found[part]
    return found
