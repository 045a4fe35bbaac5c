"""The way to a dataset of an HDF5 file, and the list of its datasets."""

import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, hdf5_links

REMEDY = "save it again"
pytestmark = pytest.mark.usefixtures("one_inspector")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


@pytest.fixture
def check(path):
    """Check the dataset `a/b` of a file that a function writes."""

    def run(write):
        with h5py.File(path, "w") as file:
            write(file)
        hdf5.check_source(path, ["a/b"], REMEDY)

    return run


def whole(file):
    file["a/b"] = np.arange(6)


def dimension_scales(file):
    whole(file)
    file["rows"] = np.arange(6)
    file["rows"].make_scale("rows")
    file["a/b"].dims[0].attach_scale(file["rows"])


def second_hard_link(file):
    whole(file)
    file["c"] = file["a"]


def circle(file):
    whole(file)
    file["a/up"] = file["/"]


def soft_links(file):
    file["data/b"] = np.arange(6)
    file["a"] = h5py.SoftLink("also")
    file["also"] = h5py.SoftLink("/./data//")


def soft_link_beside(file):
    file["a/c"] = np.arange(6)
    file["a/b"] = h5py.SoftLink("c")


def odd_datasets(file):
    whole(file)
    file["references"] = np.array([file.ref], dtype=h5py.ref_dtype)
    file["compound"] = np.zeros(3, dtype=[("x", "i4"), ("y", "f8")])
    file["empty"] = h5py.Empty("f4")
    file.create_dataset("outside", (6,), "u1", external=[("/etc/passwd", 0, 6)])
    layout = h5py.VirtualLayout((6,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6,))
    file.create_virtual_dataset("virtual", layout)


def odd_links(file):
    whole(file)
    file["out"] = h5py.ExternalLink("/etc/passwd", "/x")
    file["nowhere"] = h5py.SoftLink("/../outside")


def odd_attributes(file):
    whole(file)
    file["a/b"].attrs["reference"] = file.ref
    for number in range(3):
        file["a/b"].attrs[f"large {number}"] = np.zeros(30_000, dtype="u1")


def nothing(file):
    file["other"] = np.arange(6)


def group(file):
    file.create_group("a/b")


@pytest.mark.parametrize(
    "write",
    [
        whole,
        dimension_scales,
        second_hard_link,
        circle,
        soft_links,
        soft_link_beside,
        odd_datasets,
        odd_links,
        odd_attributes,
        nothing,
        group,
    ],
)
def test_what_is_not_read_does_not_matter(check, write):
    check(write)


def test_what_is_read_through_soft_links_is_checked(check):
    def write(file):
        file["text"] = ["x"] * 6
        file["a/b"] = h5py.SoftLink("/text")

    with pytest.raises(InputError, match="x.h5: refused: /a/b is no array of numbers; save it"):
        check(write)


def linked(name, link):
    def write(file):
        file[name] = link

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            linked("a", h5py.ExternalLink("other.h5", "/a")),
            "/a is an external link, into another file",
        ),
        (
            linked("a/b", h5py.ExternalLink("other.h5", "/a")),
            "/a/b is an external link, into another file",
        ),
        (
            linked("a", h5py.SoftLink("/../outside")),
            "/a is a soft link out of the file, or to nothing in it",
        ),
        (linked("a", h5py.SoftLink("a")), "/a leads through more than 16 soft links"),
        (linked("a/b", h5py.SoftLink("../a/b")), "/a/b is a soft link out of the file, or to"),
    ],
)
def test_links_that_lead_elsewhere_are_refused(check, write, message):
    with pytest.raises(InputError, match=f"x.h5: refused: {message}.*; save it again$"):
        check(write)


def test_user_defined_links_are_refused(check, path):
    with h5py.File(path, "w", libver="earliest") as file:
        file["a"] = h5py.ExternalLink("other.h5", "/a")
    content = path.read_bytes()
    assert content.count(b"\x08\x40\x01a") == 1  # the type of an external link, 64, and its name
    path.write_bytes(content.replace(b"\x08\x40\x01a", b"\x08\x41\x01a"))
    with pytest.raises(InputError, match="x.h5: refused: /a is a user-defined link; save it"):
        hdf5.check_source(path, ["a/b"], REMEDY)


def test_a_missing_dataset_is_left_to_its_reader(check, path):
    check(nothing)
    assert list(hdf5.contents(path, REMEDY)) == ["other"]


def test_contents_name_shapes_and_kinds(path):
    with h5py.File(path, "w") as file:
        odd_datasets(file)
        odd_links(file.create_group("more"))
        file["images"] = np.zeros((2, 3, 8, 8), dtype="u1")
        file["floats"], file["flags"] = np.zeros(2, ">f4"), np.array([True, False])
        file["words"], file["bytes"] = ["a", "bc"], np.array([b"a", b"bc"])
        file["scalar"] = 7
        file.create_dataset("lists", (2,), h5py.vlen_dtype("i4"))
    assert hdf5.contents(path, REMEDY) == {
        "a/b": ((6,), "int64"),
        "more/a/b": ((6,), "int64"),
        "references": ((1,), "references"),
        "compound": ((3,), "compound"),
        "empty": ((), "empty"),
        "outside": ((6,), "uint8"),
        "virtual": ((6,), "uint8"),
        "images": ((2, 3, 8, 8), "uint8"),
        "floats": ((2,), "float32"),
        "flags": ((2,), "bool"),
        "words": ((2,), "text"),
        "bytes": ((2,), "text"),
        "scalar": ((), "int64"),
        "lists": ((2,), "lists of different lengths"),
    }


def test_contents_can_be_printed(path):
    with h5py.File(path, "w") as file:
        for name in (b"\x1b[31mred", b"\xff\xfe", b"x" * 300, "ä".encode()):
            h5py.h5d.create(file.id, name, h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((2,)))
    found = hdf5.contents(path, REMEDY)
    assert sorted(found) == ["\\x1b[31mred", "\\xff\\xfe", "x" * 200 + "…", "ä"]


def test_contents_are_bounded(path, monkeypatch):
    monkeypatch.setattr(hdf5_links, "more_time", lambda: None)
    monkeypatch.setattr(hdf5_links, "MAX_LISTED", 5)
    monkeypatch.setattr(hdf5_links, "MAX_DEPTH", 3)
    with h5py.File(path, "w") as file:
        file["1/2/3/found"] = file["1/2/3/4/deeper"] = 1
        file["1/root"] = file["/"]
        assert list(hdf5_links.contents(file)) == ["1/2/3/found"]
        for number in range(9):
            file[f"x{number}"] = 1
        assert len(hdf5_links.contents(file)) == 5
        monkeypatch.setattr(hdf5_links, "MAX_OBJECTS", 3)
        assert len(hdf5_links.names(file.id)) == 3


def test_contents_of_a_damaged_file(path):
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="x.h5: not a readable HDF5 file, .*; save it again$"):
        hdf5.contents(path, REMEDY)
    path.unlink()
    with pytest.raises(InputError, match="x.h5: no such file; save it again$"):
        hdf5.contents(path, REMEDY)
