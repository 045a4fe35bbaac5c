"""Reads `params.yaml` safely, and gives each stage the sections that the stage declares.

Every key is required. `params.yaml` is the single truth, so the code fills in no defaults. What
several sections share is written once. `seed` and `precision` apply to all of them, `training` to
every training and `mix` to every fine-tuning. A training may set its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    ScalarEvent,
)

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.base.values import Section, explain

FILE = Path("params.yaml")
# ruamel.yaml raises these for what is not YAML, and for tags that do not fit their values.
NOT_YAML = (YAMLError, ValueError, TypeError, AttributeError, OverflowError, LookupError)
MAX_BYTES = 2**18  # of the file
MAX_DEPTH = 20  # levels inside each other
MAX_LETTERS = 1000  # of one value
MAX_VALUES = 20_000  # once every anchor is replaced by what it refers to
HANDED_DOWN = ("seed", "precision", "training", "mix")
SHARED = {
    "data": ("seed",),
    "generate": ("seed", "precision"),
    "evaluate": ("seed",),
    "selection": ("seed",),
}

Kind = TypeVar("Kind", bound=Section)


def load(path: Path, kind: type[Kind], keys: Iterable[str]) -> Kind:
    """Return the sections of a params file that `keys` name, checked and frozen.

    `keys` are dotted, as under `params` of a stage in `dvc.yaml`. What they do not name is left
    out. Raises InputError with the dotted key, what was expected and what was found.
    """
    return checked(path, kind, chosen(read(path), keys))


def checked(path: Path, kind: type[Kind], content: Mapping[str, Any]) -> Kind:
    """Return the sections of a params file from their plain values, as `load` does."""
    try:
        sections = inherited(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        return kind.model_validate(
            {
                key: sections[key]
                for key in sections
                if key in kind.model_fields or key not in HANDED_DOWN
            }
        )
    except ValidationError as error:
        lines = dict.fromkeys(
            explain({**detail, "loc": _origin(detail["loc"], content)}, kind)
            for detail in error.errors()
        )
        raise InputError(f"{path}: " + "; ".join(list(lines)[:3])) from error


def entry(section: str, entries: Mapping[str, Kind], name: str) -> Kind:
    """Return the entry that a section has under a name.

    Raises InputError where it has none.
    """
    if name not in entries:
        raise InputError(f"{section}.{name}: expected an entry of that name in {FILE}, found none")
    return entries[name]


def read(path: Path) -> dict[str, Any]:
    """Return the plain values of a params file.

    Raises InputError for what is not YAML.
    """
    try:
        content = YAML(typ="safe", pure=True).load(bounded_text(path))
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not YAML: {error.problem}") from error
    except NOT_YAML as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected sections such as data and model, found {str(content)[:50]!r}"
        )
    for key in content:
        if not isinstance(key, str):
            raise InputError(f"{path}: expected names of sections, found {str(key)[:50]!r}")
    return content


def chosen(content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the part of nested mappings that dotted keys name.

    A key that does not exist is left out; a mapping above it stays, even if it is empty.
    """
    part: dict[str, Any] = {}
    for key in keys:
        source: Any = content
        target = part
        *above, last = key.split(".")
        for name in above:
            source = source.get(name)
            if not isinstance(source, Mapping):
                break
            target = target.setdefault(name, {})
        else:
            if last in source:
                target[last] = source[last]
    return part


def inherited(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections, with what they share written into each of them.

    The module's text says what they share. Raises InputError for a section that sets a key which
    applies to all sections and may not be overridden.
    """
    sections = dict(content)
    common = {key: content[key] for key in ("seed", "precision") if key in content}
    for name, keys in SHARED.items():
        for key in keys:
            if isinstance(content.get(name), Mapping) and key in content[name]:
                raise InputError(
                    f"{name}.{key}: expected no such key, {key} alone holds for it, found one"
                )
        sections[name] = _over(
            {key: common[key] for key in keys if key in common}, content.get(name)
        )
    shared = content.get("training")
    training = _over(common, shared) if isinstance(shared, Mapping) else common
    mix = {"mix": content["mix"]} if "mix" in content else {}
    sections["clean"] = _over(training, content.get("clean"))
    for name, defaults in (("finetuned", {**training, **mix}), ("online", training)):
        if isinstance(entries := content.get(name), Mapping):
            sections[name] = {key: _over(defaults, entry) for key, entry in entries.items()}
    return {name: section for name, section in sections.items() if name in content}


def _over(defaults: Mapping[str, Any], entry: Any) -> Any:
    return {**defaults, **entry} if isinstance(entry, Mapping) else entry


def _origin(where: Sequence[Any], content: Mapping[str, Any]) -> Sequence[Any]:
    """Return where an inherited value is written, or should be.

    Other values are written at `where` itself.
    """
    found: Any = content
    for depth, key in enumerate(where):
        if isinstance(found, Mapping) and key in found:
            found = found[key]
            continue
        rest = where[depth:]
        if key in ("seed", "precision", "mix") and key in content:
            return rest
        training = content.get("training")
        # What `clean` has or needs applies to every training, so it belongs there.
        others = where[0] in ("finetuned", "online") and any(
            isinstance(section, Mapping) and key in section
            for section in (training, content.get("clean"))
        )
        if isinstance(training, Mapping) and (where[0] == "clean" or others):
            return ("training", *rest)
        return where
    return where


def bounded_text(path: Path) -> str:
    """Return the text of a YAML file that is safe to load.

    It is small, it is not nested deeply, and it has no value of endless digits. It stays small when
    its anchors are replaced by what they refer to. Raises InputError with the line, and
    ruamel.yaml's errors for what is not YAML.
    """
    try:
        size = limits.regular(path, remedy(path))
        if size > MAX_BYTES:
            raise InputError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {size:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    _check_events(path, text)
    return text


def remedy(path: Path) -> str:
    """Return how to get a file of parameters that is missing."""
    if path.parent.name == "presets":
        return f"`git checkout {path}` brings it back"
    return f"`cp presets/quickstart.yaml {path}` gives one to start from"


def _check_events(path: Path, text: str) -> None:
    """Raise InputError for YAML that is deep, or large once every anchor is written out."""
    budget = _Budget()
    for event in YAML(typ="safe", pure=True).parse(text):
        try:
            budget.spend(event)
        except InputError as error:
            raise InputError(f"{path}:{event.start_mark.line + 1}: {error}") from error


class _Budget:
    """A count of a YAML file's values, as if every anchor were written out."""

    def __init__(self) -> None:
        self._total = 0
        self._sizes: dict[str, int] = {}  # values, by anchor
        self._collections: set[str] = set()  # the anchors of mappings and lists
        # The anchor of each open mapping or list, and the number of values before it.
        self._begun: list[tuple[str | None, int]] = []

    def spend(self, event: Event) -> None:
        """Count one event.

        Raises InputError for a file that is too deep or too large.
        """
        match event:
            case CollectionStartEvent():
                self._begun.append((event.anchor, self._total))
                self._total += 1
            case CollectionEndEvent():
                self._end()
            case ScalarEvent():
                if len(event.value) > MAX_LETTERS:
                    raise InputError(
                        f"expected values of at most {MAX_LETTERS:,} letters, "
                        f"found one of {len(event.value):,}"
                    )
                self._total += 1
                self._sizes[event.anchor] = 1
            case AliasEvent():
                self._repeat(event.anchor)
        if len(self._begun) > MAX_DEPTH:
            raise InputError(f"expected at most {MAX_DEPTH} levels inside each other, found more")
        if self._total > MAX_VALUES:
            raise InputError(
                f"expected at most {MAX_VALUES:,} values with every anchor written out, found more"
            )

    def _end(self) -> None:
        anchor, before = self._begun.pop()
        if anchor:
            self._sizes[anchor] = self._total - before
            self._collections.add(anchor)

    def _repeat(self, anchor: str) -> None:
        if anchor not in self._sizes:
            raise InputError(f"expected a value above that &{anchor} marks, found none")
        if anchor in self._collections and any(above for above, _ in self._begun):
            raise InputError(
                f"expected single values in what an anchor marks, found *{anchor}, which is several"
            )
        self._total += self._sizes[anchor]
