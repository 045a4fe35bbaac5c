"""How the datasets of an HDF5 file are stored: filters, text, numbers and sizes."""

import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, hdf5_storage

PIXELS = np.random.default_rng(0).integers(0, 40, (20, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 3
REMEDY = "save it again"
pytestmark = pytest.mark.usefixtures("one_inspector")


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
        {"shuffle": True, "fletcher32": True},
    ],
    ids=str,
)
def test_filters_of_h5py_are_read(check, chunks, options):
    assert (check(chunks=chunks, **options) == PIXELS).all()


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
        (with_filter(300), r"/x needs the filter without a name \(number 300\); gzip, lzf and .*"),
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


def test_many_chunks_get_more_time_as_they_are_found(path, monkeypatch):
    given = []
    monkeypatch.setattr(hdf5_storage, "MANY", 5)
    monkeypatch.setattr(hdf5_storage, "more_time", lambda: given.append("a second"))
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=LABELS, chunks=(1,)).id
        chunks = hdf5_storage.check("/x", dataset, text=False, file_size=2**20, memory=2**20)
    assert [info.chunk_offset for info in chunks] == [(row,) for row in range(len(LABELS))]
    assert len(given) == len(LABELS) / 5 + 1


def outside(places):
    places[1]["size"] = 2**30


def twice(places):
    places[1]["offset"] = places[0]["offset"]


def beyond(places):
    places[2]["offset"][0] = 24


def overlapping(places):
    places["address"] = places["address"].min()
    places["size"] = 3500


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (outside, "chunks that lie outside the file, or are of another size than they claim"),
        (twice, "a chunk twice, or in no place of its shape"),
        (beyond, "a chunk twice, or in no place of its shape"),
        (overlapping, r"chunks that overlap: 10,500 bytes of them"),
    ],
)
def test_chunks_that_are_not_where_they_should_be_are_refused(path, damage, message):
    with h5py.File(path, "w", libver="earliest") as file:
        noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, dtype=np.uint8)
        file.create_dataset("x", data=noise, chunks=(8, 3, 8, 8), compression="gzip")
    content = bytearray(path.read_bytes())
    tree = content.index(b"TREE\1\0\3\0") + 24  # the B-tree of three chunks
    kind = np.dtype([("size", "<u4"), ("mask", "<u4"), ("offset", "<u8", 5), ("address", "<u8")])
    damage(np.frombuffer(content, kind, 3, tree))
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"x.h5: refused: /x has {message}; save it again$"):
        hdf5.check_source(path, ["x"], REMEDY)
