import h5py
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.prepare import sources
from pipeline.prepare.params import Hdf5

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
ROWS = np.array([1, 4, 5])


@pytest.fixture
def data(settings):
    return settings.data.model_copy(
        update={"image_size": 8, "hdf5": Hdf5(images="x/images", labels="y")}
    )


def npz(data, path, **arrays):
    np.savez(path / "x.npz", **arrays)
    return sources.open_source(
        data.model_copy(update={"source": "npz", "path": str(path / "x.npz")})
    )


def hdf5(data, path, images=IMAGES, labels=LABELS):
    with h5py.File(path / "x.h5", "w") as file:
        file["x/images"], file["y"] = images, labels
    return sources.open_source(
        data.model_copy(update={"source": "hdf5", "path": str(path / "x.h5")})
    )


@pytest.mark.parametrize("write", [npz, hdf5])
def test_both_channel_orders_are_read(data, tmp_path, write):
    first = write(data, tmp_path, images=IMAGES, labels=LABELS.astype(np.uint8))
    assert (first.read(ROWS) == IMAGES[ROWS]).all()
    last = write(data, tmp_path, images=IMAGES.transpose(0, 2, 3, 1), labels=LABELS)
    assert (last.read(ROWS) == IMAGES[ROWS]).all()
    assert first.labels.dtype == np.int64
    assert (first.labels == LABELS).all()
    assert first.class_names == ("0", "1", "2")
    assert first.sha256 != last.sha256


def test_class_names_of_an_npz(data, tmp_path):
    assert npz(
        data, tmp_path, images=IMAGES, labels=LABELS, class_names=np.array(["a", "b", "c"])
    ).class_names == ("a", "b", "c")


def test_nine_classes_are_nine(data, tmp_path):
    source = npz(data, tmp_path, images=np.repeat(IMAGES, 3, axis=0), labels=np.arange(18) % 9)
    assert len(source.class_names) == 9


@pytest.mark.parametrize("write", [npz, hdf5])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": IMAGES / 255, "labels": LABELS},
            "images.*: expected uint8, 0 to 255, found float64 from 0 to 1; save numpy.rint",
        ),
        (
            {"images": IMAGES[:, :1], "labels": LABELS},
            r"images: expected shape \(N, 3, 8, 8\) or \(N, 8, 8, 3\), found \(6, 1, 8, 8\)",
        ),
        ({"images": IMAGES[..., :4], "labels": LABELS}, "data.image_size is 8"),
        (
            {"images": IMAGES, "labels": LABELS[:5]},
            "labels: expected one for each of 6 images, found shape",
        ),
        ({"images": IMAGES, "labels": LABELS / 1}, "labels: expected whole numbers, found float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels: expected 0 or more, found -1"),
        ({"images": IMAGES, "labels": LABELS * 2}, "without gaps, found 0, 2, 4"),
        ({"images": IMAGES, "labels": LABELS * 0}, "at least two classes"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "found no images at all"),
    ],
)
def test_arrays_of_another_kind_are_refused(data, tmp_path, write, arrays, message):
    with pytest.raises(InputError, match=message):
        write(data, tmp_path, **arrays)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected an array named 'labels', found images"),
        (
            {"images": IMAGES * np.nan, "labels": LABELS},
            "found float64 from nan to nan; replace NaN, map black to 0",
        ),
        (
            {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])},
            "class_names: expected one name for each of 3 classes",
        ),
        (
            {"images": np.array([None]), "labels": LABELS},
            "images: refused: an array of object, which is no array of numbers or text",
        ),
    ],
)
def test_npz_of_another_kind_is_refused(data, tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        npz(data, tmp_path, **arrays)


def test_missing_datasets_are_named_with_those_there_are(data, tmp_path):
    other = data.model_copy(update={"hdf5": Hdf5(images="pixels", labels="y")})
    with pytest.raises(
        InputError, match="expected a dataset named 'pixels', found x, y; set data.hdf5"
    ):
        hdf5(other, tmp_path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [(npz, "npz", "cannot be read as .npz"), (hdf5, "h5", "not a readable HDF5 file")],
)
def test_missing_and_broken_files(data, tmp_path, write, name, message):
    path = tmp_path / f"x.{name}"
    of_file = data.model_copy(update={"source": {"h5": "hdf5"}.get(name, name), "path": str(path)})
    with pytest.raises(InputError, match="no such file; set data.path"):
        sources.open_source(of_file)
    write(data, tmp_path, images=IMAGES, labels=LABELS)
    for content in (b"", b"hello", path.read_bytes()[:900]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            sources.open_source(of_file)


@pytest.mark.parametrize("write", [npz, hdf5])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            IMAGES / 255,
            r"found float64 from 0 to 1; save numpy.rint\(images \* 255.0\).astype\(numpy.uint8\)$",
        ),
        (
            IMAGES.astype("f4"),
            r"found float32 from 0 to 255; save numpy.rint\(images\).astype\(numpy.uint8\)$",
        ),
        (IMAGES.astype(">i8"), r"found >i8 from 0 to 255; save images.astype\(numpy.uint8\)$"),
        (
            IMAGES > 127,
            r"found bool from 0 to 1; save numpy.rint\(images \* 255.0\).astype\(numpy.uint8\)$",
        ),
        (
            IMAGES.astype("u2") * 257,
            "found uint16 from 0 to 65535; map black to 0 and white to 255, round, and save as "
            "uint8$",
        ),
        (
            IMAGES / 127.5 - 1,
            "found float64 from -1 to 1; map black to 0 and white to 255, round, and save as "
            "uint8$",
        ),
        (
            np.where(IMAGES > 9, np.nan, 0.5),
            "found float64 from nan to nan; replace NaN, map black to 0",
        ),
    ],
)
def test_other_types_are_refused_with_their_remedy(data, tmp_path, write, images, message):
    with pytest.raises(InputError, match=message):
        write(data, tmp_path, images=images, labels=LABELS)


@pytest.mark.parametrize("write", [npz, hdf5])
@pytest.mark.parametrize("kind", [">i8", "<i2", ">u4", "u8", "i1"])
def test_labels_of_every_whole_type_are_read(data, tmp_path, write, kind):
    assert (
        write(data, tmp_path, images=IMAGES, labels=LABELS.astype(kind)).labels.tolist()
        == LABELS.tolist()
    )


@pytest.mark.parametrize("write", [npz, hdf5])
def test_images_in_fortran_order_are_read(data, tmp_path, write):
    images = np.asfortranarray(IMAGES.transpose(0, 2, 3, 1))
    assert (write(data, tmp_path, images=images, labels=LABELS).read(ROWS) == IMAGES[ROWS]).all()


@pytest.mark.parametrize("write", [npz, hdf5])
def test_labels_beyond_63_bits_are_refused(data, tmp_path, write):
    with pytest.raises(InputError, match="without gaps, found 0, 1, 2, 18446744073709551615"):
        write(
            data, tmp_path, images=IMAGES, labels=np.array([0, 1, 2, 0, 1, 2**64 - 1], dtype="u8")
        )


@pytest.mark.parametrize("write", [npz, hdf5])
def test_images_stored_as_0_and_1_are_refused(data, tmp_path, write):
    with pytest.raises(
        InputError,
        match=(
            "images: expected levels from 0 to 255, found none above 1; scale them so that white "
            "is 255"
        ),
    ):
        write(data, tmp_path, images=IMAGES // 128, labels=LABELS)


def test_dark_images_are_said(data, tmp_path):
    assert npz(data, tmp_path, images=IMAGES // 16, labels=LABELS).notes == {
        "images with no level above 15 of 255, taken as they are": 6
    }
    assert npz(data, tmp_path, images=IMAGES, labels=LABELS).notes == {}
