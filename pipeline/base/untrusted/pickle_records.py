"""Defines the records that a pickle is read into: what it would call, and what with."""

import pickle
from dataclasses import dataclass
from typing import Any

SMALL = 2**60  # different whole numbers below it have different hashes


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names, as "module.name"."""

    name: str


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """An object that the pickle asks for.

    The fields are what it would call, with which arguments, and what it would set and add.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None
    appended: list[Any] | None = None
    entries: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        """Return the name alone: what is inside can be nested without end."""
        return f"<{self.name}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stored:
    """An object outside the pickle, by its persistent id."""

    key: Any


def made(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a call makes: a plain value where it is one, else a record."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),) if all(map(_is_pair, pairs)):
            return {key_of(key): value for key, value in pairs}  # as Python 2 wrote it
        case "collections.defaultdict", _:
            return {}
        case "_codecs.encode", (str(text), "latin1"):  # bytes, as protocol 2 writes them
            return text.encode("latin1")
        case (("__builtin__.bytes" | "builtins.bytes"), ()):
            return b""
        case "_codecs.encode", _:
            raise pickle.UnpicklingError("bytes that are no encoded text")
        case (
            "copyreg._reconstructor" | "copy_reg._reconstructor" | "copyreg.__newobj__",
            (Global(kind), *rest),
        ):
            return Call(kind, tuple(rest))
    return Call(name, arguments)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def key_of(key: Any) -> Any:
    """Return the key of a dict.

    A tuple of tuples of … can take forever to hash, and so can very large numbers of one hash. Such
    a key becomes a record, which equals only itself.
    """
    plain = key is None or isinstance(key, str | bytes | float | Global | Call)
    if plain or (isinstance(key, int) and abs(key) < SMALL):
        return key
    return Call("key", (key,))
