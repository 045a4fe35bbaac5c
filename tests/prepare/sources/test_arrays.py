import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare import sources
from pipeline.prepare.params import Arrays
from pipeline.prepare.sources import hdf5_arrays, normaliser
from pipeline.prepare.sources.common import Found, Stack

pytestmark = pytest.mark.usefixtures("one_inspector")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
ROWS = np.array([1, 4, 5])


@pytest.fixture
def data(settings):
    return settings.data.model_copy(update={"image_size": 8})


def write_npz(path, arrays):
    np.savez(path / "x.npz", **arrays)
    return path / "x.npz"


def write_npy(path, arrays):
    (path / "x").mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / "x" / f"{name}.npy", array)
    return path / "x"


def write_hdf5(path, arrays):
    with h5py.File(path / "x.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = [text.encode() for text in array] if array.dtype.kind == "U" else array
    return path / "x.h5"


WRITERS = {"npz": write_npz, "npy": write_npy, "hdf5": write_hdf5}


@pytest.fixture(params=WRITERS)
def brought(request, data, tmp_path):
    """Write arrays by their names in every kind of file, and open them as a source."""

    def opened(contents, /, **changes):
        path = WRITERS[request.param](tmp_path, contents)
        update = {"source": request.param, "path": str(path), **changes}
        return sources.open_source(data.model_copy(update=update))

    return opened


def npz(data, path, **arrays):
    update = {"source": "npz", "path": str(write_npz(path, arrays))}
    return sources.open_source(data.model_copy(update=update))


def test_plain_arrays_are_read_as_they_are(brought):
    source = brought({"images": IMAGES, "labels": LABELS})
    assert (source.read(ROWS) == IMAGES[ROWS]).all()
    assert (source.labels == LABELS).all()
    assert source.labels.dtype == np.int64
    assert (source.class_names, source.ids.tolist()) == (("0", "1", "2"), [0, 1, 2, 3, 4, 5])
    assert (source.notes, source.split) == ({}, None)


LAST = IMAGES.transpose(0, 2, 3, 1)
OPAQUE = np.full((6, 1, 8, 8), 255, dtype=np.uint8)
FORMS = {
    "channels last": LAST,
    "Fortran order": np.asfortranarray(LAST),
    "RGBA": np.concatenate([IMAGES, OPAQUE], axis=1),
    "RGBA last": np.concatenate([LAST, OPAQUE.transpose(0, 2, 3, 1)], axis=3),
    "floats": IMAGES / 255,
    "float32": (IMAGES / 255).astype("f4"),
    "float16": (IMAGES / 255).astype("f2"),
    "whole floats": LAST.astype("f4"),
    "int64": IMAGES.astype(">i8"),
    "int16": IMAGES.astype("i2"),
    "uint16 within 0-255": IMAGES.astype("u2"),
    "16 bits": IMAGES.astype("u2") * 257,
    "16 bits, big-endian": (IMAGES.astype("u2") * 257).astype(">u2"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_gives_the_same_pixels(brought, form):
    source = brought({"images": FORMS[form], "labels": LABELS})
    assert (source.read(ROWS) == IMAGES[ROWS]).all()
    assert set(source.notes.values()) <= {6}
    assert bool(source.notes) == (form not in ("channels last", "Fortran order"))


@pytest.mark.parametrize("grey", [IMAGES[:, 0], IMAGES[:, :1], LAST[..., :1]])
def test_grey_of_every_layout_becomes_three_channels(brought, grey):
    source = brought({"images": grey, "labels": LABELS})
    assert (source.read(ROWS) == np.repeat(IMAGES[ROWS, :1], 3, axis=1)).all()
    assert source.notes == {"images made RGB from grey": 6}


def test_bool_images_are_black_and_white(brought):
    source = brought({"images": IMAGES[:, 0] > 127, "labels": LABELS})
    assert (source.read(ROWS) == np.where(IMAGES[ROWS, :1] > 127, 255, 0)).all()


def test_transparency_is_put_on_white(data, tmp_path):
    images = np.concatenate([IMAGES, OPAQUE // 2], axis=1)
    source = npz(data, tmp_path, images=images, labels=LABELS)
    assert np.abs(source.read(ROWS) - (IMAGES[ROWS] / 2 + 128)).max() <= 2
    with pytest.raises(InputError, match="found every pixel transparent; save it without its alp"):
        npz(data, tmp_path, images=np.concatenate([IMAGES, OPAQUE * 0], axis=1), labels=LABELS)


def test_other_sizes_are_cut_and_resized(brought):
    source = brought({"images": np.repeat(IMAGES, 2, axis=2), "labels": LABELS})
    assert source.read(ROWS).shape == (3, 3, 8, 8)
    assert source.notes == {"images cut to the largest square in the middle": 6}
    whole = np.kron(IMAGES, np.ones((2, 2), dtype=np.uint8))
    source = brought({"images": whole, "labels": LABELS})
    assert source.read(ROWS).shape == (3, 3, 8, 8)
    assert source.notes == {"images resized to 8 x 8": 6}


def test_image_size_null_keeps_the_size(brought):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    source = brought({"images": images, "labels": LABELS}, image_size=None)
    assert (source.read(ROWS)[:, 0] == images[ROWS]).all()
    assert source.image_size == 28
    with pytest.raises(InputError, match="squares .* found 28 x 27; set data.image_size"):
        brought({"images": images[..., 1:], "labels": LABELS}, image_size=None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:, :2], r"expected shape .* with 1, 3 or 4 channels, found \(6, 2, 8, 8\)$"),
        (IMAGES.reshape(6, -1), r"found \(6, 192\); save images.reshape\(-1, 3, 8, 8\)$"),
        (IMAGES[:, 0].reshape(6, -1), r"found \(6, 64\); save images.reshape\(-1, 8, 8\)$"),
        (IMAGES[:, 0, :, :3].reshape(6, -1), r"found \(6, 24\)$"),
        (IMAGES.transpose(2, 3, 1, 0), r"save images.transpose\(3, 0, 1, 2\)$"),
        (IMAGES[:, :, :, :3], "the channels may be first or last; transpose them$"),
        (IMAGES[:0], r"expected some, of a pixel or more, found shape \(0, 3, 8, 8\); save them a"),
        (
            IMAGES[:, :, :0],
            r"images: expected some, of a pixel or more, found shape \(6, 3, 0, 8\)",
        ),
        (IMAGES[..., :0] / 255, r"expected some, of a pixel or more, found shape \(6, 3, 8, 0\)"),
        (IMAGES / 127.5 - 1, "found float64 from -1 to 1; map black to 0 and white to 255, round"),
        (IMAGES / 255 + 0.5, "found float64 from 0.5 to 1.5; map black to 0"),
        (IMAGES.astype("u2") * 16, "found uint16 from 0 to 4,080; map black to 0"),
        (IMAGES.astype("i4") - 1, "found int32 from -1 to 254; map black to 0"),
        (np.where(IMAGES > 9, np.nan, 0.5), "found float64 from nan to nan; replace NaN, map blac"),
        (np.where(IMAGES > 9, np.inf, 0.5), "found float64 from 0.5 to inf; map black to 0"),
        (IMAGES // 128, "expected levels from 0 to 255, found none above 1; scale them so that w"),
    ],
)
def test_images_that_are_not_plain_are_refused(brought, images, message):
    with pytest.raises(InputError, match=message):
        brought({"images": images, "labels": LABELS[: len(images)]})


def test_distant_rows_of_hdf5_are_not_read_together(data, tmp_path, monkeypatch):
    images = np.arange(200, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    path = write_hdf5(tmp_path, {"images": images, "labels": np.arange(200) % 2})
    source = sources.open_source(data.model_copy(update={"source": "hdf5", "path": str(path)}))
    monkeypatch.setattr(hdf5_arrays, "SPAN_ROWS", 8)
    spans, span = [], hdf5_arrays._span

    def counting(dataset, rows):
        spans.append(rows.max() - rows.min() + 1)
        return span(dataset, rows)

    monkeypatch.setattr(hdf5_arrays, "_span", counting)
    rows = np.arange(0, 200, 3)
    assert source.read(rows)[:, 0, 0, 0].tolist() == rows.tolist()
    assert max(spans) <= 8


def test_dark_images_are_said(data, tmp_path):
    assert npz(data, tmp_path, images=IMAGES // 16, labels=LABELS).notes == {
        "images with no level above 15 of 255, taken as they are": 6
    }


def matlab(path, **arrays):
    """A file of MATLAB's `save -v7.3`, in which the axes of an array are reversed."""
    with h5py.File(path / "x.mat", "w") as file:
        for name, array in arrays.items():
            file[name] = array.T
            file[name].attrs["MATLAB_class"] = np.bytes_(array.dtype.name)
    return path / "x.mat"


TURNED = "images of MATLAB whose height and width were exchanged back"


@pytest.mark.parametrize("channels", [3, None])
def test_images_of_matlab_keep_their_height_and_width(data, tmp_path, channels):
    images = LAST.transpose(1, 2, 3, 0) if channels else LAST[..., 0].transpose(1, 2, 0)
    path = matlab(tmp_path, X=images, y=LABELS[:, None] + 1.0)
    source = sources.open_source(
        data.model_copy(update={"source": "hdf5", "path": str(path), "image_size": 8})
    )
    assert (source.read(ROWS)[:, 0] == IMAGES[ROWS, 0]).all()
    assert source.labels.tolist() == LABELS.tolist()
    assert source.notes[TURNED] == 6


def test_parts_of_matlab_are_turned_together(data, tmp_path):
    last = np.repeat(LAST, 2, axis=1).transpose(1, 2, 3, 0)  # 16 x 8
    path = matlab(tmp_path, **dict.fromkeys(("x_train", "x_test"), last), **MATLAB_LABELS)
    update = {"source": "hdf5", "path": str(path), "n_test": "from_source"}
    source = sources.open_source(data.model_copy(update=update))
    assert (source.read(np.array([1, 7])) == IMAGES[[1, 1]].repeat(2, axis=2)[:, :, 4:12]).all()
    assert source.notes[TURNED] == 12


MATLAB_LABELS = dict.fromkeys(("y_train", "y_test"), LABELS[:, None])
PAIRS = [
    ("images", "labels"),
    ("X", "y"),
    ("x", "Y"),
    ("data", "target"),
    ("Data", "Labels"),
    ("image", "label"),
    ("arr_0", "arr_1"),
]


@pytest.mark.parametrize("names", PAIRS)
def test_usual_names_are_known(brought, names):
    images, labels = names
    source = brought({images: IMAGES, labels: LABELS, "others": np.ones(3)})
    assert (source.read(ROWS) == IMAGES[ROWS]).all()


def test_of_several_pairs_the_first_is_taken(brought):
    source = brought({"X": IMAGES[::-1], "y": LABELS, "images": IMAGES, "labels": LABELS})
    assert (source.read(ROWS) == IMAGES[ROWS]).all()


def test_named_arrays_are_read(brought):
    arrays = {"pixels": IMAGES, "kinds": LABELS, "images": IMAGES[::-1], "labels": LABELS}
    source = brought(arrays, arrays=Arrays(images="pixels", labels="kinds"))
    assert (source.read(ROWS) == IMAGES[ROWS]).all()
    with pytest.raises(InputError, match="expected an array named 'x', found .*pixels 6 x 3 x 8 x"):
        brought(arrays, arrays=Arrays(images="x", labels="kinds"))


def test_a_refusal_lists_what_is_there(brought):
    with pytest.raises(
        InputError,
        match="found kinds 6 int64, pixels 6 x 3 x 8 x 8 uint8; set data.arrays: {images: …, label",
    ):
        brought({"kinds": LABELS, "pixels": IMAGES})


def test_two_spellings_of_one_name_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="expected one array of each kind, found X and x; set dat"):
        npz(data, tmp_path, X=IMAGES, x=IMAGES, y=LABELS)


MEDMNIST = {
    "train_images": IMAGES[:, 0],
    "train_labels": LABELS[:, None].astype("u1"),
    "val_images": IMAGES[::-1, 0],
    "val_labels": LABELS[::-1, None].astype("u1"),
    "test_images": IMAGES[:3, 0],
    "test_labels": LABELS[:3, None].astype("u1"),
}
KERAS = {"x_train": LAST, "y_train": LABELS, "x_test": LAST[::-1], "y_test": LABELS[::-1]}


def test_the_training_part_alone_is_read(brought):
    source = brought(MEDMNIST)
    assert (source.read(ROWS)[:, 0] == IMAGES[ROWS, 0]).all()
    assert source.notes["parts of the data set left out (val, test)"] == 2
    assert source.split is None


@pytest.mark.parametrize(("arrays", "left_out"), [(MEDMNIST, "test"), (KERAS, "")])
def test_the_file_s_own_split_is_used_on_request(brought, arrays, left_out):
    source = brought(arrays, n_val="from_source")
    assert source.split.tolist() == [0] * 6 + [1] * 6
    assert source.labels.tolist() == [*LABELS, *LABELS[::-1]]
    assert (source.read(np.array([11, 0, 6]))[:, 0] == IMAGES[[0, 0, 5], 0]).all()
    noted = [words for words in source.notes if "left out" in words]
    assert noted == ([f"parts of the data set left out ({left_out})"] if left_out else [])


def test_the_file_s_own_test_part_is_used_on_request(brought):
    source = brought(MEDMNIST, n_val="from_source", n_test="from_source")
    assert source.split.tolist() == [0] * 6 + [1] * 6 + [2] * 3
    assert (source.read(np.array([14, 0, 6]))[:, 0] == IMAGES[[2, 0, 5], 0]).all()
    assert not [words for words in source.notes if "left out" in words]
    source = brought(MEDMNIST, n_test="from_source")
    assert source.split.tolist() == [0] * 6 + [2] * 3
    assert source.notes["parts of the data set left out (val)"] == 1
    names = Arrays(images="x_train", labels="y_train", test_images="x_test", test_labels="y_test")
    assert brought(KERAS, n_test="from_source", arrays=names).split.tolist() == [0] * 6 + [2] * 6
    with pytest.raises(InputError, match="expected val_images and val_labels for n_val: from_sour"):
        brought(KERAS, n_val="from_source", n_test="from_source", arrays=names)


def test_a_named_split_is_used(brought):
    names = Arrays(images="x_train", labels="y_train", val_images="x_test", val_labels="y_test")
    assert brought(KERAS, n_val="from_source", arrays=names).split.sum() == 6
    with pytest.raises(InputError, match="n_val: expected the arrays of a validation part for fro"):
        brought(KERAS, n_val="from_source", n_test="from_source")
    assert brought(KERAS, arrays=names).split is None
    with pytest.raises(InputError, match="data.arrays: expected val_images and val_labels for n_v"):
        brought(KERAS, n_val="from_source", arrays=Arrays(images="x_train", labels="y_train"))


def test_a_split_that_is_not_there_is_refused(brought):
    with pytest.raises(InputError, match="expected the arrays of a validation or test part for fr"):
        brought({"images": IMAGES, "labels": LABELS}, n_val="from_source")
    other = {**KERAS, "x_test": KERAS["x_test"][:, :5]}
    with pytest.raises(InputError, match=r"images: expected the same form in all parts, found u"):
        brought(other, n_val="from_source")


PARTS = Arrays(images="a", labels="b", val_images="c", val_labels="d")
CUT = {"a": IMAGES[:4], "b": LABELS[:4], "c": IMAGES[4:], "d": LABELS[4:]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"b": CUT["d"], "d": CUT["b"]},
            r"labels: expected one for each of 4 images to train, found shape \(2,\); set data.arr",
        ),
        ({"d": LABELS[:3]}, r"one for each of 2 images to validate, found shape \(3,\)"),
        ({"d": np.array(1)}, r"2 images to validate, found shape \(\)|d is no array of numbers"),
        (
            {"d": np.eye(3)[CUT["d"]]},
            r"labels: expected the same form in all parts, found numbers to train and numbers "
            r"\(3,\) to validate",
        ),
        ({"b": np.eye(3)[CUT["b"]], "d": np.eye(4)[CUT["d"]]}, r"found numbers \(3,\) to train"),
        (
            {"d": np.array(["1", "2"])},
            "same form in all parts, found numbers to train and (text|bytes) to validate",
        ),
        (
            {"c": IMAGES[:0], "d": LABELS[:0]},
            r"images: expected some to validate, found shape \(0,",
        ),
    ],
)
def test_parts_whose_labels_do_not_fit_are_refused(brought, changes, message):
    with pytest.raises(InputError, match=message):
        brought({**CUT, **changes}, n_val="from_source", arrays=PARTS)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 1, 1, 1)])
def test_labels_of_parts_may_have_different_axes(brought, shape):
    arrays = {**CUT, "d": CUT["d"].reshape(shape)}
    source = brought(arrays, n_val="from_source", arrays=PARTS)
    assert source.labels.tolist() == LABELS.tolist()


def test_one_hot_rows_of_parts_are_joined(brought):
    arrays = {**CUT, "b": np.eye(3)[CUT["b"]], "d": np.eye(3)[CUT["d"]]}
    assert brought(arrays, n_val="from_source", arrays=PARTS).labels.tolist() == LABELS.tolist()


WHOLE = {"X": IMAGES, "y": LABELS}
HALVES = {
    "X_train": IMAGES[:3],
    "y_train": LABELS[:3],
    "X_test": IMAGES[3:],
    "y_test": LABELS[3:],
}


def test_the_training_part_goes_before_the_whole(brought):
    source = brought({**WHOLE, **HALVES}, n_test="from_source")
    assert source.split.tolist() == [0, 0, 0, 2, 2, 2]
    assert (source.read(np.arange(6)) == IMAGES).all()
    assert source.notes == {"parts of the data set left out (X)": 1}
    source = brought({**WHOLE, **HALVES})
    assert (len(source.labels), source.split) == (6, None)
    assert source.notes == {"parts of the data set left out (train, test)": 2}


def test_a_pair_without_a_part_trains_beside_a_test_part(brought):
    arrays = {"images": IMAGES[:3], "labels": LABELS[:3]}
    arrays |= {"test_images": IMAGES[3:], "test_labels": LABELS[3:]}
    source = brought(arrays, n_test="from_source")
    assert source.split.tolist() == [0, 0, 0, 2, 2, 2]
    assert (source.read(np.arange(6)) == IMAGES).all()


@pytest.mark.parametrize("names", ["class_names", "classes", "list_classes"])
def test_class_names_are_read(brought, names):
    arrays = {"images": IMAGES, "labels": LABELS, names: np.array(["a", "b", "c"])}
    assert brought(arrays).class_names == ("a", "b", "c")


@pytest.mark.parametrize("names", [np.arange(3), np.array(3), np.array([1.5, 2.5])])
def test_class_names_that_are_numbers_are_ignored(brought, names):
    source = brought({"images": IMAGES, "labels": LABELS, "classes": names})
    assert (source.class_names, source.notes) == (("0", "1", "2"), {})


PER_IMAGE = "names of classes left out, because there is one for each image"


def test_a_name_for_each_image_of_a_part_names_no_class(brought):
    names = np.array(["c", "a", "b"])[np.array([2, 1, 0, 2])]
    source = brought({**CUT, "classes": names}, n_val="from_source", arrays=PARTS)
    assert source.class_names == ("0", "1", "2")
    assert source.notes == {PER_IMAGE: 4}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"class_names": np.array(["a"])},
            "class_names: expected one name for each of 3 classes, ",
        ),
        ({"class_names": np.array(["a", "b", "\n"])}, "class_names: expected names of 1 to"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(data, tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        npz(data, tmp_path, images=IMAGES, labels=LABELS, **arrays)


@pytest.mark.parametrize(
    ("images", "kind", "remedy"),
    [
        (np.array([None]), "object", r"save numpy.stack\(list\(images\)\) of images"),
        (IMAGES * 1j, "complex128", "save images.real"),
    ],
)
def test_arrays_of_other_types_are_refused(data, tmp_path, images, kind, remedy):
    about = f"images: refused: an array of {kind}, which is no array of numbers or text; {remedy}"
    with pytest.raises(InputError, match=about):
        npz(data, tmp_path, images=images, labels=LABELS)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [("npz", "x.npz", "cannot be read as .npz"), ("hdf5", "x.h5", "not a readable HDF5 file")],
)
def test_missing_and_broken_files(data, tmp_path, kind, name, message):
    path = tmp_path / name
    of_file = data.model_copy(update={"source": kind, "path": str(path)})
    with pytest.raises(InputError, match="no such file; set data.path"):
        sources.open_source(of_file)
    WRITERS[kind](tmp_path, {"images": IMAGES, "labels": LABELS})
    for content in (b"", b"hello", path.read_bytes()[:900]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            sources.open_source(of_file)


def test_missing_and_broken_npy_files(data, tmp_path):
    of_folder = data.model_copy(update={"source": "npy", "path": str(tmp_path / "x")})
    with pytest.raises(InputError, match="expected a folder with images.npy and labels.npy, found"):
        sources.open_source(of_folder)
    write_npy(tmp_path, {"images": IMAGES, "labels": LABELS})
    path = tmp_path / "x" / "images.npy"
    for content in (b"", b"hello", path.read_bytes()[:900], path.read_bytes() + b"x"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="images"):
            sources.open_source(of_folder)


def test_npy_files_that_are_not_needed_do_not_matter(data, tmp_path):
    folder = write_npy(tmp_path, {"images": IMAGES, "labels": LABELS})
    of_folder = data.model_copy(update={"source": "npy", "path": str(folder)})
    before = sources.open_source(of_folder)
    for name in ("._images.npy", "broken.npy", ".npy"):
        (folder / name).write_bytes(b"")
    np.save(folder / "objects.npy", np.array([None]))
    after = sources.open_source(of_folder)
    assert (after.sha256, after.notes) == (before.sha256, before.notes)
    (folder / "labels.npy").unlink()
    with pytest.raises(
        InputError, match="found broken that cannot be read, images 6 .* objects that cannot be re"
    ):
        sources.open_source(of_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.npy: cannot be read as .npy .*; save it again with numpy.save$"),
        (b"\x93NUMPY\x03\0" + b" " * 80, "version .*, expected 1.0 or 2.0; save it again as numbe"),
    ],
)
def test_errors_about_npy_files_say_so(data, tmp_path, content, message):
    folder = write_npy(tmp_path, {"images": IMAGES, "labels": LABELS})
    (folder / "labels.npy").write_bytes(content)
    with pytest.raises(InputError, match=message):
        sources.open_source(data.model_copy(update={"source": "npy", "path": str(folder)}))


def test_floats_may_exceed_one_by_rounding(brought):
    source = brought({"images": IMAGES / 255 * (1 + 1e-6), "labels": LABELS})
    assert (source.read(ROWS) == IMAGES[ROWS]).all()
    with pytest.raises(InputError, match="floats from 0 to 1 .* found float64 from 0 to 1.00001;"):
        brought({"images": IMAGES / 255 * (1 + 1e-5), "labels": LABELS})


def test_arrays_that_are_not_read_need_no_memory(data, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: IMAGES.nbytes)
    source = npz(data, tmp_path, images=IMAGES, labels=LABELS, other=np.zeros(10_000))
    assert (source.read(ROWS) == IMAGES[ROWS]).all()
    monkeypatch.setattr(limits, "available_memory", lambda: IMAGES.nbytes - 1)
    with pytest.raises(
        InputError, match=r"x.npz: refused: [\d,]+ bytes that unpack to 1,152, more"
    ):
        npz(data, tmp_path, images=IMAGES, labels=LABELS)


def test_the_hash_of_npy_files_is_of_those_read(data, tmp_path):
    of_folder = data.model_copy(
        update={"source": "npy", "path": str(write_npy(tmp_path, {"X": IMAGES, "y": LABELS}))}
    )
    before = sources.open_source(of_folder).sha256
    write_npy(tmp_path, {"other": LABELS})
    assert sources.open_source(of_folder).sha256 == before
    write_npy(tmp_path, {"y": LABELS[::-1]})
    assert sources.open_source(of_folder).sha256 != before


def written(images, form):
    """Return images, uint8 (N, 3, H, W), in another form that means the same."""
    if form["rgba"]:
        images = np.concatenate([images, np.full_like(images[:, :1], 255)], axis=1)
    if form["last"]:
        images = images.transpose(0, 2, 3, 1)
    if form["dtype"] in ("f2", "f4", "f8") and form["unit"]:
        return (images / 255).astype(form["dtype"])
    return images.astype(form["dtype"])


@given(
    st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(8, 20))),
    st.fixed_dictionaries(
        {
            "rgba": st.booleans(),
            "last": st.booleans(),
            "unit": st.booleans(),
            "dtype": st.sampled_from(["u1", "i2", ">u4", "i8", "f2", "f4", "f8"]),
        }
    ),
    st.integers(0, 9),
)
def test_any_accepted_form_gives_the_plain_set(shape, form, seed):
    n_images, size = shape
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n_images, 3, size, size), dtype=np.uint8)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 255, 0
    array = written(images, form)
    found = Found(
        images=Stack(shape=array.shape, dtype=array.dtype, read=array.__getitem__),
        labels=np.arange(n_images) % 2,
        sha256="",
    )
    source = normaliser.normalised("x", found, None)
    assert (source.read(np.arange(n_images)) == images).all()
