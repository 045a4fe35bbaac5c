"""Reads the pickles that torch.save writes, without unpickling them.

A pickle is a program for a small stack machine, and its GLOBAL and REDUCE steps can ask for any
function to be run. Here these steps become plain records, so nothing is imported and nothing runs,
whatever the file says. Only the steps of protocols 2 and 3 that torch.save uses are known. All
others are refused by name.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.base.errors import InputError

MAX_LINE = 256  # bytes in the name of a module or class
UNREADABLE = (pickle.UnpicklingError, ValueError, IndexError, KeyError, EOFError, struct.error)


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names, as "module.name"."""

    name: str


@dataclass(slots=True)
class Call:
    """An object that the pickle asks for.

    The fields are what it would call, with which arguments, and the state that it would set.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object outside the pickle, such as a tensor's storage, by its persistent id."""

    key: Any


def read(file: BinaryIO, size: int, allowed: Callable[[str], bool], max_steps: int) -> Any:
    """Return the value that the next pickle in `file` describes.

    Plain values are themselves, `OrderedDict` is a dict and encoded text is bytes. Every other
    object is a `Call`. Raises InputError, without a path, for a name that is not `allowed`, for a
    step that torch.save does not use, and for more than `max_steps` steps. Raises one of UNREADABLE
    for a damaged pickle, which includes one that claims a part of more than `size` bytes.
    """
    machine = _Machine(file, size, allowed)
    for _ in range(max_steps):
        code = file.read(1)
        if code == pickle.STOP:
            return machine.stack.pop()
        step = _STEPS.get(code)
        if step is None:
            known = next(
                (opcode for opcode in pickletools.opcodes if opcode.code == code.decode("latin1")),
                None,
            )
            if known is None:
                raise pickle.UnpicklingError("no such step, or no more of them")
            raise InputError(
                f"refused: it uses {known.name}, which torch.save does not; nothing of it was run"
            )
        step(machine)
    raise InputError(f"refused: expected a pickle of at most {max_steps:,} steps")


class _Machine:
    """The stack machine of a pickle: the stack, the marks in it and the memo.

    The methods are the steps of the pickle and their parts.
    """

    def __init__(self, file: BinaryIO, size: int, allowed: Callable[[str], bool]) -> None:
        self.file, self.size, self.allowed = file, size, allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= self.size or len(content := self.file.read(n_bytes)) < n_bytes:
            raise EOFError("cut short")
        return content

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def after_mark(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError(f"expected a {kind.__name__} on the stack")
        return self.stack[-1]

    def protocol(self) -> None:
        if (version := self.number("<B")) not in (2, 3):
            raise InputError(
                f"refused: expected pickle protocol 2 or 3, found {version}; nothing of it was run"
            )

    def named(self) -> None:
        lines = [self.file.readline(MAX_LINE) for _ in range(2)]
        if not all(line.endswith(b"\n") for line in lines):
            raise pickle.UnpicklingError("a name without an end")
        name = ".".join(line[:-1].decode() for line in lines)
        if not self.allowed(name):
            raise InputError(
                f"refused: it asks for {name}, which a file of this kind does not need; "
                "nothing of it was run"
            )
        self.stack.append(Global(name))

    def text(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def content(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def collect(self, count: int | None) -> None:
        """Make a tuple of the last `count` values, or of those after the mark."""
        if count is None:
            self.stack.append(tuple(self.after_mark()))
        else:
            if len(self.stack) < count:
                raise pickle.UnpicklingError("the stack is too short")
            self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Set items of the dict on the stack.

        Keys must be text or numbers, because a tuple of tuples of … can take forever to hash.
        """
        if len(values) % 2 or not all(
            key is None or isinstance(key, str | int | float) for key in values[::2]
        ):
            raise pickle.UnpicklingError("a dict with keys that are neither text nor numbers")
        self.top(dict).update(zip(values[::2], values[1::2], strict=True))

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no class or function")
        made: Any = Call(called.name, arguments)
        if called.name == "collections.OrderedDict" and not arguments:
            made = {}
        elif called.name == "_codecs.encode":
            made = _encoded(*arguments)
        self.stack.append(made)

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], dict):
            return  # attributes of an OrderedDict, such as the _metadata of a state_dict
        self.top(Call).state = state

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])


def _encoded(text: Any = None, encoding: Any = None) -> bytes:
    """Return bytes, which protocol 2 writes as text to encode."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are no encoded text")
    return text.encode("latin1")


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.GLOBAL: _Machine.named,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: lambda machine: machine.stack.append(Stored(machine.stack.pop())),
    pickle.NONE: lambda machine: machine.stack.append(None),
    pickle.NEWTRUE: lambda machine: machine.stack.append(True),
    pickle.NEWFALSE: lambda machine: machine.stack.append(False),
    pickle.BININT: lambda machine: machine.stack.append(machine.number("<i")),
    pickle.BININT1: lambda machine: machine.stack.append(machine.number("<B")),
    pickle.BININT2: lambda machine: machine.stack.append(machine.number("<H")),
    pickle.LONG1: _Machine.long,
    pickle.BINFLOAT: lambda machine: machine.stack.append(machine.number(">d")),
    pickle.BINUNICODE: lambda machine: machine.text("<I"),
    pickle.SHORT_BINBYTES: lambda machine: machine.content("<B"),
    pickle.BINBYTES: lambda machine: machine.content("<I"),
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append({}),
    pickle.EMPTY_TUPLE: lambda machine: machine.stack.append(()),
    pickle.MARK: lambda machine: machine.marks.append(len(machine.stack)),
    pickle.TUPLE: lambda machine: machine.collect(None),
    pickle.TUPLE1: lambda machine: machine.collect(1),
    pickle.TUPLE2: lambda machine: machine.collect(2),
    pickle.TUPLE3: lambda machine: machine.collect(3),
    pickle.APPEND: lambda machine: machine.append([machine.stack.pop()]),
    pickle.APPENDS: lambda machine: machine.append(machine.after_mark()),
    pickle.SETITEM: lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    pickle.SETITEMS: lambda machine: machine.set_items(machine.after_mark()),
    pickle.BINPUT: lambda machine: machine.remember(machine.number("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number("<I")),
    pickle.BINGET: lambda machine: machine.recall(machine.number("<B")),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number("<I")),
}
