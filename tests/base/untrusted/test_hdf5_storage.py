"""How the datasets of an HDF5 file are stored: filters, text, numbers and sizes."""

import importlib.util
import subprocess
import sys

import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, hdf5_storage
from tests.conftest import ROOT

PIXELS = np.random.default_rng(0).integers(0, 40, (20, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 3
REMEDY = "save it again"
HAS_PLUGIN = importlib.util.find_spec("hdf5plugin") is not None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


@pytest.fixture
def check(path):
    """Write the dataset `x` with a function or from its values, check it and return its content."""

    def run(data=PIXELS, write=None, **options):
        with h5py.File(path, "w") as file:
            if write is None:
                file.create_dataset("x", data=data, **options)
            else:
                write(file)
        hdf5.check_source(path, ["x"], REMEDY, texts=["x"])
        with hdf5.reading(path, "damaged") as file:
            return file["x"][...]

    return run


def with_filter(number, values=(), kind=h5py.h5t.NATIVE_UINT8, data=PIXELS):
    """Write the dataset `x` with a filter that h5py's own interface does not have."""

    def write(file):
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((8, *data.shape[1:]))
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
        made = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple(data.shape), plan)
        if h5py.h5z.filter_avail(number):
            h5py.Dataset(made)[...] = data

    return write


@pytest.mark.parametrize("chunks", [(8, 3, 8, 8), (1, 3, 8, 8), (7, 2, 8, 5)])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"compression": "lzf", "shuffle": True},
        {"compression": "szip"},
        {"scaleoffset": 0},
        {"scaleoffset": 0, "compression": "gzip"},
        {"scaleoffset": 0, "fillvalue": 7},
    ],
    ids=str,
)
def test_built_in_filters_are_read(check, chunks, options):
    number = {"lzf": 32000, "szip": 4}.get(options.get("compression"), 6)
    if not h5py.h5z.filter_avail(number):
        pytest.skip(f"this h5py has no filter {number}")
    assert (check(chunks=chunks, **options) == PIXELS).all()


@pytest.mark.parametrize("kind", ["u1", ">i4", "f4", "f8"])
def test_numbers_of_every_size_are_read_scaled(check, kind):
    found = check(LABELS.astype(kind), chunks=(8,), scaleoffset=2 if kind[0] == "f" else 0)
    assert np.allclose(found, LABELS, atol=0.01)


def test_nbit_is_read(check):
    kind = h5py.h5t.NATIVE_UINT8.copy()
    kind.set_precision(6)
    assert (check(write=with_filter(5, kind=kind)) == PIXELS).all()
    assert (check(write=with_filter(5)) == PIXELS).all()


def test_chunks_that_skip_a_filter_are_read(check, path):
    noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, dtype=np.uint8)
    noise[:8] = 3
    assert (check(noise, chunks=(8, 3, 8, 8), compression="lzf", shuffle=True) == noise).all()
    masks = set()
    with h5py.File(path) as file:
        file["x"].id.chunk_iter(lambda info: masks.add(info.filter_mask))
    assert masks == {0, 2}


@pytest.mark.parametrize("options", [{}, {"chunks": (8,), "compression": "gzip"}], ids=str)
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.array([b"cat", b"dog", b"a bird"] * 7), None),
        (["cat", "dog", "a bird", "", "ä" * 3000] * 4, h5py.string_dtype()),
        (["cat", "dog"] * 9, h5py.string_dtype("ascii", 5)),
        (np.array([True, False] * 9), None),
        (LABELS, h5py.enum_dtype({"a": 0, "b": 1, "c": 2}, basetype="i1")),
    ],
)
def test_text_and_flags_are_read_as_labels(check, data, kind, options):
    expected = [text.encode() if isinstance(text, str) else text for text in data]
    assert check(data, dtype=kind, **options).tolist() == expected


def test_text_that_was_not_written_is_empty(check):
    def write(file):
        file.create_dataset("x", (4,), h5py.string_dtype(), track_times=False)
        file["x"][:2] = ["a", "b"]

    assert check(write=write).tolist() == [b"a", b"b", b"", b""]


def replaced(*arguments, **options):
    return lambda file: file.create_dataset("x", *arguments, **options)


def virtual(file):
    layout = h5py.VirtualLayout((6,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6,))
    file.create_virtual_dataset("x", layout)


def many_filters(file):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((6,))
    for _ in range(9):
        plan.set_shuffle()
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((6,)), plan)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (virtual, "/x is a virtual dataset, of parts of other files"),
        (
            replaced((6,), "u1", external=[("/etc/passwd", 0, 6)]),
            "/x has external storage, in other files",
        ),
        (replaced((6,), h5py.ref_dtype), "/x holds object references"),
        (replaced((6,), [("a", h5py.ref_dtype)]), "/x holds object references"),
        (replaced((6,), [("a", "u1")]), "/x is no array of numbers or text"),
        (replaced((6,), h5py.vlen_dtype("u1")), "/x is no array of numbers or text"),
        (replaced(data=7), "/x is no array of numbers or text"),
        (replaced(data=h5py.Empty("f4")), "/x is no array of numbers or text"),
        (replaced(data=np.array([[b"a"]])), "/x is text in 2 dimensions, not in one"),
        (with_filter(300), r"/x needs the filter without a name \(number 300\)"),
        (many_filters, "/x has 9 filters, more than 8"),
        (
            replaced((10**12,), "i8"),
            "/x claims 8,000,000,000,000 bytes, but the file holds fewer of it",
        ),
        (
            replaced((10**12,), h5py.string_dtype()),
            "/x claims 16,000,000,000,000 bytes, but the file holds fewer of it",
        ),
        (
            replaced((10**12,), "i8", chunks=(10**6,)),
            "/x has 0 chunks of the 1000000 that its shape asks for",
        ),
        (
            replaced((10**12,), "i8", chunks=(2**28,)),
            "/x has chunks of 2,147,483,648 bytes, more than 67,108,864",
        ),
    ],
)
def test_storage_of_another_kind_is_refused(check, write, message):
    with pytest.raises(InputError, match=f"x.h5: refused: {message}; save it again$"):
        check(write=write)


def test_text_is_refused_where_numbers_are_wanted(path):
    with h5py.File(path, "w") as file:
        file["x"] = ["a", "b"]
    with pytest.raises(InputError, match="x.h5: refused: /x is no array of numbers; save it"):
        hdf5.check_source(path, ["x"], REMEDY)


@pytest.mark.skipif(HAS_PLUGIN, reason="hdf5plugin is installed")
def test_filters_of_a_missing_plugin_name_the_package(check):
    with pytest.raises(
        InputError,
        match=(
            r"x.h5: /x needs the filter .+ \(number 32015\), which is not installed; "
            r"install hdf5plugin \(a package\)$"
        ),
    ):
        check(write=with_filter(32015))


def test_a_filter_that_cannot_unpack_is_refused(check, monkeypatch):
    monkeypatch.setattr(h5py.h5z, "get_filter_info", lambda _: 1)
    assert not hdf5_storage._can_decode(32000)


@pytest.mark.skipif(not HAS_PLUGIN, reason="hdf5plugin is not installed")
@pytest.mark.parametrize(
    "name", ["Zstd", "Blosc", "Blosc2", "LZ4", "Bitshuffle", "BZip2", "Zfp", "SZ3", "Sperr"]
)
def test_filters_of_hdf5plugin_are_read(check, name):
    import hdf5plugin

    data = PIXELS if name not in ("Zfp", "SZ3", "Sperr") else PIXELS[:, 0].astype("f4")
    options = {"Zfp": {"reversible": True}, "SZ3": {"absolute": 0.1}}.get(name, {})
    chunks = (8, *data.shape[1:])
    found = check(data, chunks=chunks, **getattr(hdf5plugin, name)(**options))
    assert np.allclose(found, data, atol=40 if name == "Sperr" else 0.1)


@pytest.mark.skipif(not HAS_PLUGIN, reason="hdf5plugin is not installed")
def test_hdf5plugin_is_imported_only_where_it_is_needed(path, tmp_path):
    write = (
        "import h5py, hdf5plugin; h5py.File('x.h5', 'w').create_dataset("
        "'x', data=range(99), **hdf5plugin.Zstd())"
    )
    read = (
        "import sys; from pathlib import Path; from pipeline.base.untrusted import hdf5\n"
        "with hdf5.writing(Path('y.h5')) as file: file['x'] = range(99)\n"
        "hdf5.check_source(Path('y.h5'), ['x'], ''); assert 'hdf5plugin' not in sys.modules\n"
        "hdf5.check_source(Path('x.h5'), ['x'], '')\n"
        "with hdf5.reading(Path('x.h5'), '') as file: assert file['x'][98] == 98"
    )
    for program in (write, read):
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            check=True,
        )
