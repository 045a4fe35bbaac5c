"""Reads and writes `manifest.json`, which describes an image set.

It holds the set's attributes, and the rows and SHA-256 of each of its shards.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import InputError, discarding
from pipeline.base.untrusted import limits

NAME = "manifest.json"
SCHEMA = 2
MAX_BYTES = 2**24
KEYS = {"schema", "fingerprint", "attributes", "shards"}

Value = str | int | float | bool
Attributes = dict[str, Value]
Run = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One shard: its first and past-the-last row, and the SHA-256 of its file."""

    rows: Run
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A set's attributes and its shards by file name.

    `digest` is the SHA-256 of the manifest itself.
    """

    attributes: Attributes
    shards: dict[str, Entry]
    digest: str


def write(folder: Path, attributes: Attributes, shards: Mapping[str, Entry]) -> None:
    """Write the manifest of a folder, with the entries in the order of the file names."""
    entries = {
        name: {"rows": entry.rows, "sha256": entry.sha256} for name, entry in sorted(shards.items())
    }
    about = {"schema": SCHEMA, "fingerprint": fingerprint(attributes), "attributes": attributes}
    files.write_json(folder / NAME, {**about, "shards": entries})


def read(folder: Path) -> Manifest:
    """Return a folder's manifest.

    Raises InputError for anything except an unchanged manifest of this schema.
    """
    path, remedy = folder / NAME, discarding(folder)
    if limits.regular(path, remedy) > MAX_BYTES:
        raise InputError(f"{path}: expected at most {MAX_BYTES:,} bytes, found more; {remedy}")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON, perhaps cut short; {remedy}") from error
    if problem := _problem(content):
        raise InputError(f"{path}: {problem}; {remedy}")
    entries = {
        name: Entry(rows=tuple(entry["rows"]), sha256=entry["sha256"])
        for name, entry in content["shards"].items()
    }
    return Manifest(
        attributes=content["attributes"], shards=entries, digest=hashlib.sha256(raw).hexdigest()
    )


def fingerprint(attributes: Mapping[str, Value]) -> str:
    """Return a SHA-256 over all attributes of a set."""
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _problem(content: Any) -> str | None:
    """Return the reason why JSON is not a manifest, or None if it is one."""
    if not isinstance(content, dict) or content.keys() != KEYS or content["schema"] != SCHEMA:
        return f"not the manifest of an image set of schema {SCHEMA}"
    attributes, shards = content["attributes"], content["shards"]
    if not isinstance(attributes, dict) or not isinstance(shards, dict):
        return "expected attributes and shards by name, found something else"
    for key, value in attributes.items():
        if not isinstance(value, Value) or not str(value).isprintable():
            return (
                f"attribute {key}: expected a plain value, "
                f"found {type(value).__name__} {str(value)[:50]!a}"
            )
    if fingerprint(attributes) != content["fingerprint"]:
        return "its attributes do not match their fingerprint, so it was changed after it was made"
    if type(attributes.get("rows")) is not int:
        return f"attribute rows: expected a whole number, found {attributes.get('rows')!r}"
    wrong = next((name for name, entry in shards.items() if not _is_entry(entry)), None)
    return (
        None
        if wrong is None
        else f"shards: {wrong}: expected rows and a SHA-256, found something else"
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"rows", "sha256"}:
        return False
    rows, sha256 = entry["rows"], entry["sha256"]
    if not isinstance(rows, list) or [type(row) for row in rows] != [int, int]:
        return False
    return isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
