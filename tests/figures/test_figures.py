import io

import pytest
from PIL import Image

from pipeline import figures
from pipeline.figures.matrices import _short

GRID = [
    {"guess": guess, "eps": eps, "steps": steps, "n": 32, "accuracy": accuracy}
    for guess, steps, accuracy in (("FGSM", None, 0.5), ("PGD, alpha eps/4, 10 steps", 10, 0.25))
    for eps in (8 / 255, 0.05)
]
CURVES = [
    {"curve": curve, "value": value, "n": 40, "accuracy": 0.5, "low95": 0.4, "high95": 0.6}
    for curve in ("eps", "steps", "restarts")
    for value in (1.0, 2.0)
]
RESULT = {"accuracy": 0.5, "low95": 0.4, "high95": 0.6, "n": 40}
HISTORY = [{"epoch": 1.0, "train_accuracy": 0.4, "val_accuracy": 0.3, "lr": 0.1}]
DRAWN = {
    "gap": lambda: figures.gap({"a": [("clean", "clean", RESULT), ("robust", "pgd", RESULT)]}),
    "curves": lambda: figures.curves({"a": CURVES, "b": CURVES}, "pgd"),
    "histories": lambda: figures.histories(dict.fromkeys("abcd", (HISTORY, 1))),
    "heat_map": lambda: figures.heat_map(GRID, "title"),
    "confusion": lambda: figures.confusion(
        [{"actual": "$x", "predicted": "y"}], ["$x", "y"], "title"
    ),
    "graph": lambda: figures.graph({"a": [], "b@x": ["a"], "c": ["a", "b@x"]}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_give_the_same_bytes(name):
    png, svg = figures.png(DRAWN[name]()), figures.svg(DRAWN[name]())
    assert (png, svg) == (figures.png(DRAWN[name]()), figures.svg(DRAWN[name]()))
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size[0] > 200
        assert not {"Software", "Creation Time"} & picture.info.keys()
    assert b"<script" not in svg
    assert b"<dc:date>" not in svg


@pytest.mark.parametrize("n_models", [1, 3, 4, 5])
def test_every_model_has_one_plot_of_its_history(n_models):
    drawn = figures.histories(dict.fromkeys("abcde"[:n_models], (HISTORY, 1)))
    assert [axes.axison for axes in drawn.axes].count(True) == n_models


def test_heat_maps_follow_the_grid_and_may_be_empty():
    other = [{**row, "accuracy": 0.9} for row in GRID]
    drawn = [figures.png(figures.heat_map(rows, "title")) for rows in ([], GRID, other)]
    assert len(set(drawn)) == 3


def test_the_worst_single_guess_is_framed():
    worst = {"guess": "worst of them", "eps": 0.05, "steps": None, "n": 32, "accuracy": 0.0}
    (frame,) = figures.heat_map([*GRID, worst], "title").axes[0].patches
    assert frame.get_xy() == (-0.5, 0.5)  # the first eps, under PGD


def test_points_and_intervals_are_where_the_numbers_are():
    axes = DRAWN["gap"]().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["clean", "robust: pgd"]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[40, 60], [50]]
    assert axes.get_xlabel().endswith("n = 40")


def test_levels_are_written_as_people_write_them():
    assert [figures.in_pixels(eps) for eps in (0, 8 / 255, 0.031373, 0.03, 1.0)] == [
        "0",
        "8/255",
        "8/255",
        "0.03",
        "1",
    ]


def test_class_names_fit_their_axis_or_become_numbers():
    assert [_short(name) for name in ("cat", "$a$", "x" * 99, "חתול", "猫", "a\u202eb")] == [
        "cat",
        r"\$a\$",
        "x" * 13 + "…",
        "",
        "",
        "",
    ]
