"""How many images the page has room for."""

import pytest

from pipeline.report import gallery
from tests.conftest import write_set


@pytest.mark.parametrize(
    ("room", "n_classes", "n_sets", "n_refreshed", "expected"),
    [
        (292, 10, 2, 2, (10, 3)),  # the quickstart
        (73, 10, 2, 2, (3, 3)),  # larger images: refreshed ones take room from the others
        (73, 10, 2, 0, (4, 0)),
        (40, 10, 2, 2, (2, 1)),
        (292, 2, 2, 2, (2, 2)),
        (5, 10, 6, 6, (1, 1)),  # there is always one
    ],
)
def test_refreshed_images_count_in_the_budget(room, n_classes, n_sets, n_refreshed, expected):
    assert gallery._shared_out(room, n_classes, n_sets, n_refreshed) == expected
    n_shown, shown = expected
    pictures = n_shown * (1 + n_sets) * (1 + 2 * n_sets) + shown * (1 + 2 * (n_sets + n_refreshed))
    assert pictures <= room or expected == (1, 1)


def test_only_the_shards_of_the_first_images_are_read(monkeypatch, tmp_path, block):
    images = write_set(tmp_path / "set", block, shard_rows=4)
    monkeypatch.setattr(gallery, "SEARCHED", 3)
    expected = images.load("train").images[:3]
    for shard in sorted((tmp_path / "set").rglob("*.h5"))[3:]:
        shard.write_bytes(b"damaged")
    assert (gallery._first(images, "train").images == expected).all()
