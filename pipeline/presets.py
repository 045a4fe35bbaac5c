"""Write presets, which are whole settings for known jobs.

The preset `quickstart` is complete, and so is every preset that has all of its sections. The others
contain only what differs from it, or from the preset that `based_on` names.
"""

import copy
import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.scalarstring import PlainScalarString

from pipeline import place
from pipeline.base import files, params
from pipeline.base.errors import InputError
from pipeline.document import Document

FOLDER = Path("presets")
BASE = "quickstart"
BASED_ON = "based_on"


def names(project: Path = Path()) -> list[str]:
    """Return the names of all presets of a project, sorted."""
    return sorted(path.stem for path in (project / FOLDER).glob("*.yaml"))


def complete(name: str) -> str:
    """Return the whole text of `params.yaml` for a preset.

    That of a complete preset is its own. Otherwise it is the text of the preset that it is based
    on, including comments and anchors, with its own values inserted. A value that an anchor marks
    changes wherever the anchor is used. Raises InputError for a preset that cannot be read, and for
    one that is based on no preset or on itself.
    """
    *changes, text = _texts(name)
    if not changes:
        return text
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None),
        lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"),
    )
    content = yaml.load(text.removeprefix(_head(text)).lstrip("\n"))
    for own in reversed(changes):
        values = yaml.load(own)
        values.pop(BASED_ON, None)
        _merge(content, values, content)
    written = io.StringIO()
    yaml.dump(content, written)
    return f"{_head(changes[0])}\n\n{written.getvalue()}"


def _texts(name: str) -> list[str]:
    """Return the text of a preset, of the one that it is based on, and so on to a complete one."""
    sections = set(params.read(_path(BASE)))
    found: dict[str, str] = {}
    while True:
        values = params.read(_path(name))
        found[name] = _path(name).read_text(encoding="utf-8")
        if sections <= values.keys():
            return list(found.values())
        where, name = f"{_path(name)}: {BASED_ON}", values.get(BASED_ON, BASE)
        _expect(name, where)
        if name in found:
            raise InputError(f"{where}: expected a preset that is not based on it, found {name}")


def _path(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def use(name: str) -> str:
    """Write a preset as `params.yaml`, and return a message about it.

    A previous `params.yaml` that is not itself a preset is kept beside it as a backup. Raises
    InputError for a name that no preset has, for a preset that cannot be read, and while a `repro`
    is running.
    """
    _expect(name, f"NAME={name}")
    if place.DVC.is_dir():  # else nothing can be running
        with place.only_one(Path()):
            return _use(name)
    return _use(name)


def _use(name: str) -> str:
    text, kept = complete(name), ""
    if params.FILE.exists() and params.FILE.read_bytes() not in _readable():
        endings = (f".yaml.bak{number}" for number in chain([""], count(2)))
        named = (params.FILE.with_suffix(ending) for ending in endings)
        backup = next(path for path in named if not path.exists())
        shutil.copyfile(params.FILE, backup)
        kept = f"; your own is kept as {backup}"
    files.write_bytes(params.FILE, text.encode())
    return f"{params.FILE} is now the preset {name}{kept}"


def _readable() -> Iterator[bytes]:
    """Yield what each preset writes to `params.yaml`, without presets that cannot be read."""
    for name in names():
        with suppress(InputError):
            yield complete(name).encode()


def settings(name: str) -> Document:
    """Return the checked values of a preset, without writing `params.yaml`.

    Raises InputError for a name that no preset has, and for a preset that cannot be used.
    """
    _expect(name, f"plan {name}")
    return params.checked(_path(name), Document, values(name))


def values(name: str) -> dict[str, Any]:
    """Return the values that a preset writes to `params.yaml`, unchecked.

    Raises InputError for a preset that cannot be read.
    """
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(complete(name))
    return found


def _expect(name: str, where: str) -> None:
    if not names():
        raise InputError(
            f"{Path().absolute()}: not the project folder: no {FOLDER}; "
            "change to the folder that holds them"
        )
    if name not in names():
        raise InputError(f"{where}: no such preset; there are {', '.join(names())}")


def _head(text: str) -> str:
    """Return the comment that a file begins with."""
    return "\n".join(takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _merge(target: CommentedMap, changes: CommentedMap, whole: CommentedMap) -> None:
    """Write every value of nested `changes` into `target`, which is part of `whole`."""
    for key, value in changes.items():
        old = target.get(key)
        if isinstance(value, CommentedMap) and isinstance(old, CommentedMap) and old:
            _merge(old, value, whole)
        elif (anchor := getattr(getattr(old, "anchor", None), "value", None)) and _is_first(
            whole, target, key
        ):
            new = _anchored(value, anchor)
            for above, name, _ in [each for each in _places(whole) if each[2] is old]:
                above[name] = new
        elif key in target:
            target[key] = copy.deepcopy(value)
        else:  # before the last key, which carries the empty line below the section
            target.insert(len(target) - 1, key, copy.deepcopy(value))


def _is_first(whole: CommentedMap, target: CommentedMap, key: str) -> bool:
    """Return whether an anchored value is defined here, and only used in other places.

    A value that `<<` inherits is defined elsewhere, also where that was replaced before.
    """
    found = (place for place in _places(whole) if place[2] is target[key])
    above, name, _ = next(found, (None, "", None))
    return above is target and name == key


def _places(mapping: CommentedMap) -> list[tuple[CommentedMap, str, Any]]:
    """Return every value that is not a mapping, in the order of the file.

    Each comes with the mapping that directly contains it, and with its key.
    """
    found: list[tuple[CommentedMap, str, Any]] = []
    for name, value in mapping.non_merged_items():
        found += _places(value) if isinstance(value, CommentedMap) else [(mapping, name, value)]
    return found


def _anchored(value: Any, anchor: str) -> Any:
    """Return the same value, marked by an anchor if it is of a kind that can be marked."""
    if isinstance(value, str):
        return PlainScalarString(value, anchor=anchor)
    if hasattr(value, "yaml_set_anchor"):
        value.yaml_set_anchor(anchor, always_dump=True)
    elif isinstance(value, int) and not isinstance(value, bool):
        return ScalarInt(value, anchor=anchor)
    return value
