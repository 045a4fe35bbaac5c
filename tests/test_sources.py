import numpy as np
import pytest

from pipeline import sources
from pipeline.errors import InputError


@pytest.fixture
def data(settings):
    return settings.data


def npz(data, tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return sources.open_source(data.model_copy(update={"source": "npz", "path": str(tmp_path / "x.npz"), "image_size": 8}))


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_digits_are_the_real_ones_enlarged(data):
    source = sources.open_source(data)
    images = source.read(np.arange(1797))
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == np.uint8
    assert (images[:, 0] == images[:, 2]).all()
    assert images.max() == 255
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_npz_in_both_channel_orders(data, tmp_path):
    first = npz(data, tmp_path, images=IMAGES, labels=LABELS.astype(np.uint8))
    last = npz(data, tmp_path, images=IMAGES.transpose(0, 2, 3, 1), labels=LABELS, class_names=np.array(["a", "b", "c"]))
    rows = np.array([4, 1])
    assert (first.read(rows) == IMAGES[rows]).all()
    assert (last.read(rows) == IMAGES[rows]).all()
    assert first.labels.dtype == np.int64
    assert first.class_names == ("0", "1", "2")
    assert last.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected an array named 'labels', found images"),
        ({"images": IMAGES / 255, "labels": LABELS}, "images: expected uint8, 0 to 255, found float64; scale"),
        ({"images": IMAGES * np.nan, "labels": LABELS}, "found float64 with NaN"),
        ({"images": IMAGES[:, :1], "labels": LABELS}, r"images: expected shape \(N, 3, 8, 8\) or \(N, 8, 8, 3\), found \(6, 1, 8, 8\)"),
        ({"images": IMAGES[..., :4], "labels": LABELS}, "data.image_size is 8"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "labels: expected one for each of 6 images, found shape"),
        ({"images": IMAGES, "labels": LABELS / 1}, "labels: expected whole numbers, found float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels: expected 0 or more, found -1"),
        ({"images": IMAGES, "labels": LABELS * 2}, "without gaps, found 0, 2, 4"),
        ({"images": IMAGES, "labels": LABELS * 0}, "at least two classes"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "found no images at all"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])}, "class_names: expected one name for each of 3 classes"),
        ({"images": np.array([None]), "labels": LABELS}, "cannot be read as .npz"),
    ],
)
def test_npz_with_other_arrays_is_refused(data, tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        npz(data, tmp_path, **arrays)


def test_missing_and_broken_files(data, tmp_path):
    path = tmp_path / "x.npz"
    of_file = data.model_copy(update={"source": "npz", "path": str(path)})
    with pytest.raises(InputError, match="no such file; set data.path"):
        sources.open_source(of_file)
    np.savez(path, images=IMAGES, labels=LABELS)
    for content in (b"", b"hello", path.read_bytes()[:900]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as .npz"):
            sources.open_source(of_file)
