"""Draw tables of numbers as coloured cells."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
MOST_NUMBERS = 20  # classes; the cells of more are too small for a number
NAME = 14  # letters of a class name that a figure shows
RIGHT_TO_LEFT = 0x590  # the first letter after Latin, Greek, Cyrillic and Armenian ones


def heat_map(rows: Sequence[Row], title: str) -> "Figure":
    """Draw the accuracies of a grid of attacks, with a line per guess and a column per eps.

    Rows have `guess`, `eps`, `n` and `accuracy`. The lowest accuracy of a single guess is framed.
    Without rows, the figure shows only the title.
    """
    columns = sorted({row["eps"] for row in rows})
    cells: dict[str, dict[float, float]] = {}
    for row in rows:
        cells.setdefault(row["guess"], {})[row["eps"]] = 100 * row["accuracy"]
    lines = list(cells)
    figure = style.figure(3.2 + 0.62 * max(2, len(columns)), 1.2 + 0.32 * max(1, len(lines)))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    if not rows:
        axes.set_axis_off()
        return figure
    values = [[cells[line].get(column, float("nan")) for column in columns] for line in lines]
    _cells(axes, values, 100)
    axes.set_xticks(range(len(columns)), [style.in_pixels(column) for column in columns])
    axes.tick_params(axis="x", labelsize=9, rotation=45)
    axes.set_yticks(range(len(lines)), lines, fontsize=9)
    axes.set_xlabel(f"eps; accuracy in %, {style.images(int(row['n']) for row in rows)}")
    lowest = min((row for row in rows if row["steps"] or row["guess"] == "FGSM"), key=_accuracy)
    _frame(axes, columns.index(lowest["eps"]), lines.index(lowest["guess"]))
    return figure


def _accuracy(row: Row) -> float:
    return float(row["accuracy"])


def _frame(axes: "Axes", x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=2.5)
    )


def confusion(rows: Sequence[Row], class_names: Sequence[str], title: str) -> "Figure":
    """Draw how many images of each class (line) were given each class (column).

    Rows have `actual` and `predicted`, one row per image.
    """
    place = {name: number for number, name in enumerate(class_names)}
    counts = [[0.0] * len(class_names) for _ in class_names]
    for row in rows:
        counts[place[row["actual"]]][place[row["predicted"]]] += 1
    side = 1.6 + min(0.36 * len(class_names), 6)
    figure = style.figure(side, side)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    _cells(axes, counts, max(map(max, counts)), numbers=len(class_names) <= MOST_NUMBERS)
    if len(class_names) <= 2 * MOST_NUMBERS:
        names = [_short(name) or f"class {number}" for number, name in enumerate(class_names)]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"predicted class; images, n = {len(rows):,}")
    axes.set_ylabel("true class")
    return figure


def _short(name: str) -> str:
    """Return a class name that fits an axis.

    The result is empty for a name that the figures' font cannot draw from left to right.
    """
    if not all(letter.isprintable() and ord(letter) < RIGHT_TO_LEFT for letter in name):
        return ""
    short = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
    return short.replace("$", r"\$")  # otherwise, matplotlib reads a formula


def _cells(
    axes: "Axes", values: Sequence[Sequence[float]], greatest: float, *, numbers: bool = True
) -> None:
    axes.imshow(values, cmap="viridis", vmin=0, vmax=max(greatest, 1), aspect="auto")
    if not numbers:
        return
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                dark = value > 0.6 * greatest
                text = f"{value:.0f}"
                colour = "black" if dark else "white"
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
