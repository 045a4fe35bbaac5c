"""Reads pickles, such as those that torch.save writes, without unpickling them.

A pickle is a program for a small stack machine, and its GLOBAL and REDUCE steps can ask for any
function to be run. Here these steps become plain records, so nothing is imported and nothing runs,
whatever the file says. The steps of protocols 2 to 5 are known. All others are refused by name.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from pipeline.base.errors import InputError
from pipeline.base.untrusted import pickle_names
from pipeline.base.untrusted.pickle_records import Call, Global, Stored, key_of, made

MAX_LINE = 256  # bytes in the name of a module or class
MAX_INTEGER = 1024  # bytes; Python prints no more than 4,300 digits
UNREADABLE = (pickle.UnpicklingError, ValueError, IndexError, KeyError, EOFError, struct.error)


def read(
    file: BinaryIO, size: int, max_steps: int, persistent: Callable[[Any], Any] = Stored
) -> Any:
    """Return the value that the next pickle in `file` describes.

    Plain values are themselves, `OrderedDict` and `defaultdict` are dicts, encoded text is bytes.
    Python 2's text has one letter per byte. Every other object is a `Call`, or what `persistent`
    makes of an id. Raises InputError, without a path, for a function that data does not need, for
    an unknown step, and for more than `max_steps`. Raises one of UNREADABLE for a damaged pickle,
    which includes one that claims a part of more than `size` bytes.
    """
    machine = _Machine(file, size, persistent)
    for _ in range(max_steps):
        code = file.read(1)
        if code == pickle.STOP:
            return machine.stack.pop()
        step = _STEPS.get(code)
        if step is None:
            raise _unknown(code)
        step(machine)
    raise InputError(f"refused: expected a pickle of at most {max_steps:,} steps")


def _unknown(code: bytes) -> Exception:
    for opcode in pickletools.opcodes:
        if opcode.code.encode("latin1") == code:
            problem = f"it uses {opcode.name}, which pickles of protocol 2 to 5 do not"
            return InputError(f"refused: {problem}; nothing of it was run")
    return pickle.UnpicklingError("no such step, or no more of them")


class _Machine:
    """The stack machine of a pickle, whose methods are the steps and their parts."""

    def __init__(self, file: BinaryIO, size: int, persistent: Callable[[Any], Any]) -> None:
        self.file, self.size, self.persistent = file, size, persistent
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

    def top(self, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError(f"expected {kind} on the stack")
        return self.stack[-1]

    def protocol(self) -> None:
        if (version := self.number("<B")) not in (2, 3, 4, 5):
            raise InputError(
                f"refused: expected pickle protocol 2 to 5, found {version}; nothing of it was run"
            )

    def named(self) -> None:
        lines = [self.file.readline(MAX_LINE) for _ in range(2)]
        if not all(line.endswith(b"\n") for line in lines):
            raise pickle.UnpicklingError("a name without an end")
        self.add_global(*(line[:-1].decode() for line in lines))

    def named_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not all(isinstance(part, str) and len(part) < MAX_LINE for part in (module, name)):
            raise pickle.UnpicklingError("a name that is no text, or a very long one")
        self.add_global(module, name)

    def add_global(self, module: str, name: str) -> None:
        if not pickle_names.is_needed(module, name):
            raise InputError(
                f"refused: it asks for {module}.{name}, which a file of this kind does not need; "
                "nothing of it was run"
            )
        self.stack.append(Global(f"{module}.{name}"))

    def text(self, form: str, encoding: str = "utf-8") -> None:
        self.stack.append(self.take(self.number(form)).decode(encoding, "surrogatepass"))

    def content(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)))

    def long(self, form: str) -> None:
        if (n_bytes := self.number(form)) > MAX_INTEGER:
            raise InputError(f"refused: a whole number of {n_bytes:,} bytes")
        self.stack.append(int.from_bytes(self.take(n_bytes), "little", signed=True))

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def collect(self, count: int | None) -> None:
        """Make a tuple of the last `count` values, or of those after the mark."""
        if count is None:
            self.stack.append(tuple(self.after_mark()))
        else:
            if len(self.stack) < count:
                raise pickle.UnpicklingError("the stack is too short")
            self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        target = self.top((list, Call))
        if isinstance(target, Call):
            target.appended = target.appended or []
            target = target.appended
        target.extend(values)

    def add_items(self) -> None:
        """Add to a set, whose values stay a list, because hashing them can take forever."""
        values = self.after_mark()
        if not (arguments := self.top(Call).arguments) or not isinstance(arguments[0], list):
            raise pickle.UnpicklingError("expected a set on the stack")
        arguments[0].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise pickle.UnpicklingError("a key without a value")
        target = self.top((dict, Call))
        if isinstance(target, Call):
            target.entries = target.entries or {}
            target = target.entries
        target.update(zip(map(key_of, values[::2]), values[1::2], strict=True))

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global | Call) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no class or function")
        if isinstance(called, Call):
            self.stack.append(Call(f"{called.name[:MAX_LINE]}()", arguments))
        else:
            self.stack.append(made(called.name, arguments))

    def call_with_keywords(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], dict):
            return  # attributes of an OrderedDict, such as the _metadata of a state_dict
        self.top(Call).state = state

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.GLOBAL: _Machine.named,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.NEWOBJ_EX: _Machine.call_with_keywords,
    pickle.STACK_GLOBAL: _Machine.named_on_stack,
    pickle.FRAME: lambda machine: machine.number("<Q"),
    pickle.POP: _Machine.pop,
    pickle.POP_MARK: lambda machine: machine.after_mark().clear(),
    pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: lambda machine: machine.stack.append(machine.persistent(machine.stack.pop())),
    pickle.NONE: lambda machine: machine.stack.append(None),
    pickle.NEWTRUE: lambda machine: machine.stack.append(True),
    pickle.NEWFALSE: lambda machine: machine.stack.append(False),
    pickle.BININT: lambda machine: machine.stack.append(machine.number("<i")),
    pickle.BININT1: lambda machine: machine.stack.append(machine.number("<B")),
    pickle.BININT2: lambda machine: machine.stack.append(machine.number("<H")),
    pickle.LONG1: lambda machine: machine.long("<B"),
    pickle.LONG4: lambda machine: machine.long("<I"),
    pickle.BINFLOAT: lambda machine: machine.stack.append(machine.number(">d")),
    pickle.SHORT_BINUNICODE: lambda machine: machine.text("<B"),
    pickle.BINUNICODE: lambda machine: machine.text("<I"),
    pickle.BINUNICODE8: lambda machine: machine.text("<Q"),
    pickle.SHORT_BINSTRING: lambda machine: machine.text("<B", "latin1"),
    pickle.BINSTRING: lambda machine: machine.text("<I", "latin1"),
    pickle.SHORT_BINBYTES: lambda machine: machine.content("<B"),
    pickle.BINBYTES: lambda machine: machine.content("<I"),
    pickle.BINBYTES8: lambda machine: machine.content("<Q"),
    pickle.BYTEARRAY8: lambda machine: machine.content("<Q"),
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append({}),
    pickle.EMPTY_TUPLE: lambda machine: machine.stack.append(()),
    pickle.EMPTY_SET: lambda machine: machine.stack.append(Call("builtins.set", ([],))),
    pickle.ADDITEMS: _Machine.add_items,
    pickle.FROZENSET: lambda machine: machine.stack.append(
        Call("builtins.frozenset", (machine.after_mark(),))
    ),
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
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number("<I")),
    pickle.BINGET: lambda machine: machine.recall(machine.number("<B")),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number("<I")),
}
