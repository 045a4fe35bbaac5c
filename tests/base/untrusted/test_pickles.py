"""The steps of pickles and the records that they become; nothing is imported or called."""

import collections
import copyreg
import datetime
import enum
import functools
import io
import itertools
import pickle
import random
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.untrusted import pickle_names, pickles
from pipeline.base.untrusted.pickle_records import Call, Global

PROTOCOLS = [2, 3, 4, 5]


def read(content, max_steps=10_000):
    return pickles.read(io.BytesIO(content), len(content), max_steps)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**59), 2**59) | st.none(), inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_are_read_as_they_are(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_empty_and_long_bytes_are_read(protocol):
    for value in (b"", b"a" * 300, "a" * 300, [b"\xff" * 70_000]):
        assert read(pickle.dumps(value, protocol)) == value
    assert read(pickle.dumps(bytearray(b"ab"), 5)) == b"ab"
    assert read(b"\x80\x02U\x02a\xff.") == "a\xff"
    assert read(b"\x80\x02T\x02\0\0\0ab.") == "ab"


class Kind(enum.Flag):
    A, B = 1, 2


class Own(dict):
    def __init__(self, *, flag):
        self.flag = flag

    def __getnewargs_ex__(self):
        return (1,), {"flag": self.flag}


class Extended(list):
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records(protocol):
    own = Own(flag=True)
    own["a"] = 1
    record = read(pickle.dumps(own, protocol))
    assert record.state == {"flag": True}
    assert record.entries == {"a": 1}
    record = read(pickle.dumps(Extended([1, 2]), protocol))
    assert record.appended == [1, 2]
    assert repr(record) == f"<{record.name}>"
    for kind in (set, frozenset):
        record = read(pickle.dumps(kind([7]), protocol))
        assert re.fullmatch(rf"(builtins|__builtin__)\.{kind.__name__}", record.name)
        assert record.arguments == ([7],)


@pytest.mark.parametrize(
    "value",
    [
        *(Kind.A | Kind.B, Kind, functools.partial(max, 1), random.Random(0), uuid.uuid4()),
        *(datetime.datetime(2020, 1, 1), re.compile("a"), slice(1, 2), 1j, range(3), Ellipsis),
        *(collections.Counter("ab"), collections.deque([1]), [].append, type(None), object()),
        *({(1, (2, 3)): 1, 2**80: 2, Kind.A: 3, b"a": 4, Kind: 5}, itertools.count),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_that_data_may_hold_are_not_refused(value, protocol):
    assert isinstance(read(pickle.dumps(value, protocol)), Call | Global | dict)


def test_dicts_of_the_standard_library_are_dicts():
    default = collections.defaultdict(list, a=1)
    assert read(pickle.dumps(default, 2)) == {"a": 1}
    ordered = collections.OrderedDict(a=1)
    ordered.attribute = 2
    assert read(pickle.dumps(ordered, 4)) == {"a": 1}
    assert read(b"\x80\x02ccollections\nOrderedDict\n](](U\x01aK\x01ee\x85R.") == {"a": 1}
    made = read(b"\x80\x02ccopy_reg\n_reconstructor\n(cx\ny\nc__builtin__\nobject\nNtR.")
    assert made.name == "x.y"
    assert copyreg._reconstructor.__name__ in pickle_names.NEEDED["copyreg"]


def test_values_that_hold_themselves_are_read():
    value = [1]
    value.append(value)
    read_value = read(pickle.dumps(value, 4))
    assert read_value[1] is read_value


def test_calls_of_calls_and_dropped_values_are_read():
    record = read(b"\x80\x02ca\nb\n)R)RN0(K\x011(02.")
    assert record.name == "a.b()"


@pytest.mark.parametrize(
    "name",
    [
        *("os system", "posix system", "nt system", "subprocess Popen", "builtins eval"),
        *("builtins exec", "__builtin__ compile", "builtins __import__", "builtins open"),
        *("importlib import_module", "pty spawn", "socket socket", "commands getoutput"),
        *("pickle loads", "ctypes CDLL", "shutil rmtree", "runpy run_path", "builtins getattr.x"),
        *("torch os.system", "numpy.lib sys.modules", "collections abc.sys", "pathlib os.system"),
        *("operator os", "code interact", "webbrowser open", "sys setprofile", "pathlib x"),
    ],
)
@pytest.mark.parametrize("is_new", [False, True])
def test_functions_that_data_does_not_need_are_refused(name, is_new):
    module, function = name.split()
    old = f"c{module}\n{function}\n".encode()
    new = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split()) + b"\x93"
    message = f"refused: it asks for {module}.{function}, which a file of this kind does not need"
    with pytest.raises(InputError, match=f"^{re.escape(message)}; nothing of it was run$"):
        read(b"\x80\x04" + (new if is_new else old) + b")R.")


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x80\x02N\x85",
        b"\x80\x02\x85.",
        b"\x80\x02N)R.",
        b"\x80\x04\x8c\x01aN\x93.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        b"\x80\x04\x90.",
        b"\x80\x04ca\nb\n)R(K\x01\x90.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02h\x05.",
        b"\x80\x02c_codecs\nencode\n(U\x01aU\x03xyztR.",
        b"\x80\x04X\x02\0\0\0\xff\xff.",
        b"\x80\x02\xfe.",
    ],
)
def test_damaged_pickles_raise_what_is_announced(damaged):
    with pytest.raises(pickles.UNREADABLE) as caught:
        read(damaged)
    assert not isinstance(caught.value, InputError)


def test_what_would_take_too_much_is_refused():
    with pytest.raises(InputError, match="refused: a whole number of 2,000 bytes"):
        read(b"\x80\x02\x8b\xd0\x07\0\0" + b"\1" * 2000 + b".")
    with pytest.raises(InputError, match="refused: expected a pickle of at most 10 steps"):
        read(pickle.dumps(list(range(20))), 10)
    nested = pickle.PROTO + b"\x02)" + b"\x85" * 5000 + b"K\x01s."
    with pytest.raises(pickles.UNREADABLE):
        read(nested)
    deep = read(b"\x80\x02})" + b"\x85" * 9000 + b"K\x01s.", 10_000)
    assert [type(key) for key in deep] == [Call]


def test_the_list_of_needed_names_is_of_the_standard_library():
    for module in pickle_names.NEEDED:
        assert not pickle_names.is_needed(module, "system")
    assert pickle_names.is_needed("my.module", "Outer.Inner")
    assert pickle_names.is_needed("__main__", "TaskDataset")
