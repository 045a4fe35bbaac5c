from PIL import Image

from pipeline.evaluate import plots

GRID = [
    {"guess": guess, "eps": eps, "accuracy": accuracy}
    for guess, accuracy in (("FGSM", 0.5), ("PGD, alpha eps/4, 10 steps", 0.25))
    for eps in (8 / 255, 0.05)
]
CURVES = [
    {"curve": curve, "value": value, "accuracy": 0.5, "low95": 0.4, "high95": 0.6}
    for curve in ("eps", "steps", "restarts")
    for value in (1, 2)
]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for draw, rows in ((plots.heat_map, GRID), (plots.curves, CURVES)):
        for name in ("a", "b"):
            draw(tmp_path / f"{name}.png", rows, "title")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size[0] > 400
            assert not {"Software", "Creation Time"} & picture.info.keys()


def test_heat_maps_follow_the_grid_and_may_be_empty(tmp_path):
    plots.heat_map(tmp_path / "off.png", [], "no grid")
    plots.heat_map(tmp_path / "on.png", GRID, "title")
    plots.heat_map(tmp_path / "other.png", [{**row, "accuracy": 0.9} for row in GRID], "title")
    assert len({(tmp_path / name).read_bytes() for name in ("off.png", "on.png", "other.png")}) == 3


def test_levels_are_written_as_people_write_them():
    assert [plots._level(eps) for eps in (8 / 255, 0.031373, 0.03, 1.0)] == [
        "8/255",
        "8/255",
        "0.03",
        "255/255",
    ]
