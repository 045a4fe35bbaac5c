"""Chunks of HDF5 files that do not unpack to what they should."""

import zlib

import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, hdf5_bounds, hdf5_chunks

DATA = np.cumsum(np.random.default_rng(0).integers(0, 2, (300, 4)), axis=1)
REMEDY = "save it again"
pytestmark = pytest.mark.usefixtures("one_inspector")
GZIP, SHUFFLE, FLETCHER32, SZIP, LZF = 1, 2, 3, 4, 32000
PACKED = {
    "gzip": [GZIP],
    "gzip-shuffle": [SHUFFLE, GZIP, FLETCHER32],
    "checksum first": [FLETCHER32, SHUFFLE, GZIP],
    "lzf": [LZF],
    "lzf-shuffle": [SHUFFLE, LZF, FLETCHER32],
    "shuffle": [SHUFFLE],
    "checksum": [FLETCHER32],
}


def create(file, data, filters):
    """Create a dataset of one chunk with filters in this order, without its values."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(data.shape)
    for number in filters:
        if number == SZIP:
            plan.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, 8)
        else:
            flag = h5py.h5z.FLAG_OPTIONAL if number == LZF else h5py.h5z.FLAG_MANDATORY
            plan.set_filter(number, flag, (6,) if number == GZIP else ())
    kind, space = h5py.h5t.py_create(data.dtype), h5py.h5s.create_simple(data.shape)
    return h5py.Dataset(h5py.h5d.create(file.id, b"x", kind, space, plan))


def written(path, filters, data, change=lambda raw: raw):
    """Write a dataset of one chunk, whose bytes a function changes; return their number."""
    with h5py.File(path, "w") as file:
        dataset = create(file, data, filters)
        dataset[...] = data
        mask, raw = dataset.id.read_direct_chunk((0,) * data.ndim)
        dataset.id.write_direct_chunk((0,) * data.ndim, change(raw), mask)
    return len(raw)


@pytest.mark.parametrize("kind", ["u1", "i8"])
@pytest.mark.parametrize("filters", PACKED.values(), ids=PACKED)
def test_chunks_that_are_cut_short_are_refused(tmp_path, filters, kind):
    path, data = tmp_path / "x.h5", DATA.astype(kind)
    n_bytes = written(path, filters, data)
    hdf5.check_source(path, ["x"], REMEDY)
    for length in (1, 5, 21, n_bytes // 3, n_bytes // 2, n_bytes - 20, n_bytes - 3, n_bytes - 1):
        written(path, filters, data, lambda raw, length=length: raw[:length])
        with pytest.raises(InputError, match="refused: .* damaged chunk, .*; save it"):
            hdf5.check_source(path, ["x"], REMEDY)


@pytest.mark.parametrize("filters", PACKED.values(), ids=PACKED)
def test_a_chunk_with_a_changed_byte_is_refused_or_unpacks_whole(tmp_path, filters):
    path, data = tmp_path / "x.h5", DATA.astype("u1")
    n_bytes, n_read = written(path, filters, data), 0
    for place in range(0, n_bytes, max(1, n_bytes // 40)):

        def flipped(raw, place=place):
            return raw[:place] + bytes([raw[place] ^ 65]) + raw[place + 1 :]

        written(path, filters, data, flipped)
        if accepted(path):
            with h5py.File(path) as file:
                assert (file["x"][...] == file["x"][...]).all()
            n_read += 1
    assert not n_read or FLETCHER32 not in filters, "a checksum finds every change"


def accepted(path):
    try:
        hdf5.check_source(path, ["x"], REMEDY)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("n_values", [1, 7, 1000, 300_000])
def test_lzf_is_measured_as_libhdf5_unpacks_it(tmp_path, n_values):
    rng = np.random.default_rng(n_values)
    kinds = {
        "equal": np.zeros(n_values, "u1"),
        "random": rng.integers(0, 256, n_values, "u1"),
        "few": rng.choice(np.array([0, 0, 0, 9], "u1"), n_values),
        "repeated": np.resize(rng.integers(0, 256, 700, "u1"), n_values),
    }
    for data in kinds.values():
        written(tmp_path / "x.h5", [LZF], data)
        hdf5.check_source(tmp_path / "x.h5", ["x"], REMEDY)


@pytest.mark.parametrize(
    ("filters", "problem"),
    [
        ([SZIP], "needs the filter szip .number 4.; gzip, lzf and shuffle are read"),
        ([GZIP, GZIP], "was packed more than once"),
        ([GZIP, LZF], "was packed more than once"),
        ([GZIP, SHUFFLE], "or before its bytes were shuffled"),
        ([SHUFFLE, SHUFFLE], "was packed more than once"),
    ],
)
def test_other_filters_are_refused(tmp_path, filters, problem):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        create(file, DATA, filters)
    with pytest.raises(InputError, match=f"x.h5: refused: /x .*{problem}.*; save it again$"):
        hdf5.check_source(tmp_path / "x.h5", ["x"], REMEDY)


def repeated(times):
    """Pack one MiB that often, but compress it only twice: a flush makes each independent."""
    part, packer, checksum = b"x" * 2**20, zlib.compressobj(), 1
    first, next_one = (packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    for _ in range(times):
        checksum = zlib.adler32(part, checksum)
    return first + next_one * (times - 1) + b"\3\0" + checksum.to_bytes(4)


def test_a_repeated_part_unpacks():
    assert zlib.decompress(repeated(3)) == b"x" * (3 * 2**20)


@pytest.mark.parametrize(
    "content",
    [
        lambda: zlib.compress(b"x" * 10),
        lambda: zlib.compress(b"x" * 10**6),
        lambda: repeated(2**11),
        lambda: b"not gzip",
    ],
    ids=["short", "long", "bomb", "other"],
)
def test_gzip_chunks_of_another_size_are_refused(tmp_path, content):
    written(tmp_path / "x.h5", [GZIP], np.arange(1000), lambda _: content())
    message = "refused: /x has a damaged chunk, which does not unpack to 8,000 bytes; save it again"
    with pytest.raises(InputError, match=f"x.h5: {message}$"):
        hdf5.check_source(tmp_path / "x.h5", ["x"], REMEDY)


def test_text_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "MAX_TEXT", 50)
    monkeypatch.setattr(hdf5_chunks, "more_time", lambda: None)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = ["ten digits"] * 5
        hdf5_chunks.read("/x", file["x"].id, [])
        file["y"] = ["ten digits"] * 6
        with pytest.raises(hdf5_bounds.Refusal, match="/y holds more than 50 bytes of text"):
            hdf5_chunks.read("/y", file["y"].id, [])


def test_damaged_text_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["x"] = ["a word"] * 3
        place = file["x"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 4 : place + 12] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.h5: (not a readable|refused: ).*; save it again$"):
        hdf5.check_source(path, ["x"], REMEDY, texts=["x"])
