"""Chunks of HDF5 files that do not unpack to what they should."""

import importlib.util
import zlib

import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, hdf5_bounds, hdf5_chunks

DATA = np.cumsum(np.random.default_rng(0).integers(0, 2, (300, 4)), axis=1)
REMEDY = "save it again"
HAS_PLUGIN = importlib.util.find_spec("hdf5plugin") is not None
FILTERS = {
    "gzip": {"compression": "gzip"},
    "gzip-shuffle": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "lzf-shuffle": {"compression": "lzf", "shuffle": True},
    "szip": {"compression": "szip"},
    "scaleoffset": {"scaleoffset": 0},
    "scaleoffset-gzip": {"scaleoffset": 0, "compression": "gzip"},
    "shuffle": {"shuffle": True},
    "nbit": {},
    "Zstd": {},
    "Blosc": {},
    "Blosc2": {},
    "LZ4": {},
    "Bitshuffle": {},
}


def options_of(name):
    if not name[0].isupper():
        return FILTERS[name]
    if not HAS_PLUGIN:
        pytest.skip("hdf5plugin is not installed")
    import hdf5plugin

    return getattr(hdf5plugin, name)()


def written(path, name, data, change=lambda raw: raw):
    """Write a dataset of one chunk, whose bytes a function changes; return their number."""
    with h5py.File(path, "w") as file:
        if name == "nbit":
            plan, kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5t.NATIVE_INT64.copy()
            plan.set_chunk(data.shape)
            plan.set_filter(5)
            kind.set_precision(40)
            dataset = h5py.Dataset(
                h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple(data.shape), plan)
            )
            dataset[...] = data
        else:
            dataset = file.create_dataset("x", data=data, chunks=data.shape, **options_of(name))
        mask, raw = dataset.id.read_direct_chunk((0,) * data.ndim)
        changed = change(raw)
        dataset.id.write_direct_chunk((0,) * data.ndim, changed, mask)
    return len(raw)


@pytest.mark.parametrize("kind", ["u1", "i8"])
@pytest.mark.parametrize("name", FILTERS)
def test_chunks_that_are_cut_short_are_refused(tmp_path, name, kind):
    path, data = tmp_path / "x.h5", DATA if name == "nbit" else DATA.astype(kind)
    n_bytes = written(path, name, data)
    for length in (1, 5, 21, n_bytes // 3, n_bytes // 2, n_bytes - 20, n_bytes - 3, n_bytes):
        written(path, name, data, lambda raw, length=length: raw[:length])
        if length < n_bytes - 3:
            with pytest.raises(InputError, match="refused: .*(damaged|unpacks|crash).*; save it"):
                hdf5.check_source(path, ["x"], REMEDY)
        elif accepted(path):  # the last bytes of a packed chunk may be padding
            with h5py.File(path) as file:
                assert (file["x"][...] == data).all()
        else:
            assert length < n_bytes


def accepted(path):
    try:
        hdf5.check_source(path, ["x"], REMEDY)
    except InputError:
        return False
    return True


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
    ("content", "message"),
    [
        (lambda: zlib.compress(b"x" * 10), "has a chunk that unpacks to 10 bytes, not to 8,000"),
        (
            lambda: zlib.compress(b"x" * 10**6),
            "has a chunk that unpacks to 1,000,000 bytes, not to 8,000",
        ),
        (lambda: repeated(2**11), "has a damaged chunk|takes libhdf5 too long"),
        (lambda: b"not gzip", "has a damaged chunk, which does not unpack"),
    ],
    ids=["short", "long", "bomb", "other"],
)
def test_gzip_chunks_of_another_size_are_refused(tmp_path, content, message):
    written(tmp_path / "x.h5", "gzip", np.arange(1000), lambda _: content())
    with pytest.raises(InputError, match=f"x.h5: refused: .*({message}).*; save it again$"):
        hdf5.check_source(tmp_path / "x.h5", ["x"], REMEDY)


def test_a_filter_made_for_another_dataset_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        dataset = file.create_dataset("x", data=np.arange(999), chunks=(999,), scaleoffset=0)
        values = dataset.id.get_create_plist().get_filter(0)[2]
    stored, content = np.array(values[:5], "<u4").tobytes(), path.read_bytes()
    assert content.count(stored) == 1
    changed = np.array([*values[:2], 500, *values[3:5]], "<u4").tobytes()
    path.write_bytes(content.replace(stored, changed))
    with pytest.raises(InputError, match="/x has a filter made for another kind of dataset; save"):
        hdf5.check_source(path, ["x"], REMEDY)


def test_values_that_vary_are_refused(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=np.arange(9), chunks=(9,), compression="gzip")
        with pytest.raises(hdf5_bounds.Refusal, match="unpacks to other values each time"):
            hdf5_chunks._compare("/x", dataset.id, (0,), np.arange(9) + 1)
    hdf5_bounds.no_timer()


def test_text_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "MAX_TEXT", 50)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = ["ten digits"] * 5
        hdf5_chunks.read("/x", file["x"].id)
        file["y"] = ["ten digits"] * 6
        with pytest.raises(hdf5_bounds.Refusal, match="/y holds more than 50 bytes of text"):
            hdf5_chunks.read("/y", file["y"].id)
    hdf5_bounds.no_timer()


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
