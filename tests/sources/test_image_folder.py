import numpy as np
import pytest
from PIL import Image

from pipeline import sources
from pipeline.errors import InputError
from pipeline.sources import image_folder


@pytest.fixture
def folder(tmp_path):
    """Two classes; sizes, modes and formats as they come."""
    for name, colour in (("cat", 250), ("dog", 10)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), (colour, 0, 0)).save(tmp_path / name / "a.png")
        Image.new("L", (16, 64), colour).save(tmp_path / name / "b.jpg")
        Image.new("RGBA", (5, 5), (colour, colour, 0, 255)).save(tmp_path / name / "c.webp", lossless=True)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def data(settings, folder):
    return settings.data.model_copy(update={"source": "image_folder", "path": str(folder), "image_size": 16})


def test_images_of_any_size_and_mode_become_one_shape(data):
    source = sources.open_source(data)
    images = source.read(np.arange(6))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.shape == (6, 3, 16, 16)
    assert images[0, :, 5, 5].tolist() == [250, 0, 0]
    assert np.abs(images[4].astype(int) - 10).max() <= 2
    assert images[5, :, 0, 0].tolist() == [10, 10, 0]


def test_the_hash_covers_names_and_contents(data, folder):
    before = sources.open_source(data).sha256
    (folder / "cat" / "a.png").rename(folder / "cat" / "z.png")
    assert sources.open_source(data).sha256 != before


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_a_corrupt_image_is_named_with_its_path(data, folder, content):
    path = folder / "dog" / "a.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=r"dog/a.png: not an image that can be read \(.+\); mend or remove it"):
        sources.open_source(data).read(np.arange(6))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(data, folder, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match=r"cat/a.png: expected at most 1,000 pixels, found 40 x 30"):
        sources.open_source(data).read(np.arange(1))


def test_folders_without_classes_or_images(data, tmp_path, folder):
    with pytest.raises(InputError, match="a subfolder of images for each class"):
        sources.open_source(data.model_copy(update={"path": str(tmp_path / "nowhere")}))
    with pytest.raises(InputError, match="a subfolder of images for each class"):
        sources.open_source(data.model_copy(update={"path": str(folder / "cat")}))
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        sources.open_source(data)
