"""Draw a model's accuracies as pictures for people.

The same numbers give the same bytes, so Git shows a change only where there is one.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Row = dict[str, Any]
AXES = {
    "eps": "eps, in units of pixels in [0, 1]",
    "steps": "steps of PGD",
    "restarts": "restarts of PGD",
}


def heat_map(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write a PNG of a grid's accuracies, with a line per guess and a column per eps.

    Without rows, the picture shows only the title.
    """
    columns = sorted({row["eps"] for row in rows})
    cells: dict[str, dict[float, float]] = {}
    for row in rows:
        cells.setdefault(row["guess"], {})[row["eps"]] = 100 * row["accuracy"]
    lines = list(cells)
    figure = _figure(max(4.0, 2.5 + 0.5 * len(columns)), 1.3 + 0.25 * max(1, len(lines)))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    if rows:
        values = [[cells[line].get(column, float("nan")) for column in columns] for line in lines]
        axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                axes.text(
                    x,
                    y,
                    f"{value:.0f}" if value == value else "",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="black" if value > 60 else "white",
                )
        axes.set_xticks(
            range(len(columns)), [_level(column) for column in columns], fontsize=6, rotation=60
        )
        axes.set_yticks(range(len(lines)), lines, fontsize=6)
        axes.set_xlabel("eps", fontsize=7)
    else:
        axes.set_axis_off()
    _write(path, figure)


def curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write a PNG of the accuracy with its 95 % interval against eps, steps and restarts."""
    figure = _figure(9, 3)
    figure.suptitle(title, fontsize=9)
    for place, (name, label) in enumerate(AXES.items(), 1):
        points = [row for row in rows if row["curve"] == name]
        axes = figure.add_subplot(1, 3, place)
        values = [point["value"] for point in points]
        accuracy, low, high = (
            [100 * point[key] for point in points] for key in ("accuracy", "low95", "high95")
        )
        axes.plot(values, accuracy, marker="o", markersize=3, linewidth=1)
        axes.fill_between(values, low, high, alpha=0.2)
        axes.set_ylim(0, 100)
        axes.set_xlabel(label, fontsize=7)
        axes.tick_params(labelsize=6)
        if name == "restarts":
            axes.set_xticks(values)
        if name == "eps":
            axes.set_xscale("symlog", linthresh=1 / 255)
            axes.set_xlim(0, 1)
            axes.set_ylabel("accuracy in %", fontsize=7)
    _write(path, figure)


def _level(eps: float) -> str:
    """Return an eps as people write it.

    A whole number of steps between stored pixels is written as 8/255, any other eps as a decimal.
    """
    return f"{eps * 255:.0f}/255" if abs(eps * 255 - round(eps * 255)) < 1e-3 else f"{eps:g}"


def _figure(width: float, height: float) -> "Figure":
    """Return an empty figure of that many inches.

    It needs neither a screen nor pyplot's global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(path: Path, figure: "Figure") -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
