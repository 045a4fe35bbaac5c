"""Says which names of Python's standard library a pickle of data may contain.

No name is ever looked up or called. A pickle that asks for `os.system` is refused all the same,
because it is not data, and the user should know.
"""

import sys

_BUILTINS = """
    Ellipsis NotImplemented abs all any bool bytearray bytes complex dict enumerate filter float
    frozenset getattr int len list map max min object range reversed round set slice sorted str sum
    tuple type zip long unicode xrange
"""
_OPERATORS = """
    add and_ attrgetter contains eq floordiv ge getitem gt invert itemgetter le lt matmul
    methodcaller mod mul ne neg not_ or_ pos pow sub truediv xor
"""
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_NEEDED = {
    "_codecs": "encode",
    "_io": "BytesIO StringIO",
    "_random": "Random",
    "argparse": "Namespace",
    "array": "array _array_reconstructor",
    "builtins": _BUILTINS,
    "collections": "ChainMap Counter OrderedDict UserDict UserList defaultdict deque",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "enum": "Enum EnumMeta EnumType Flag IntEnum IntFlag StrEnum",
    "fractions": "Fraction",
    "functools": "partial partialmethod",
    "io": "BytesIO StringIO",
    "itertools": "chain count cycle repeat",
    "logging": "Logger getLogger",
    "math": "ceil cos exp floor log log10 log2 pow sin sqrt tan tanh",
    "operator": _OPERATORS,
    "_operator": _OPERATORS,
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "random": "Random betavariate gauss randint random uniform",
    "re": "Pattern RegexFlag _compile compile",
    "time": "struct_time",
    "types": "NoneType SimpleNamespace",
    "uuid": "SafeUUID UUID",
    "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
}
NEEDED = {module: frozenset(names.split()) for module, names in _NEEDED.items()}
# As Python 2 wrote them.
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# In the standard library of older versions of Python; this one may not list them.
_OLD_MODULES = {"commands", "distutils", "imp", "nt", "pipes", "popen2", "posix", *OLD_NAMES}
_STANDARD = sys.stdlib_module_names | _OLD_MODULES


def is_needed(module: str, name: str) -> bool:
    """Return whether data may contain this name.

    Everything outside the standard library may, because it is only recorded. A name that reaches
    the standard library through another module, as in `torch.serialization` and `os.system`, may
    not.
    """
    module = OLD_NAMES.get(module, module)
    if module.partition(".")[0] in _STANDARD:
        return name in NEEDED.get(module, ())
    return "." not in name or not _STANDARD.intersection(name.split(".")[:-1])
