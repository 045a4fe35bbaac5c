"""Draw all pictures of one model's evaluation, from the rows of its grid and of its curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import figures
from pipeline.base import files

NAMES = ("grid.png", "curves.png")
Row = Mapping[str, Any]


def draw(folder: Path, model: str, grid: Sequence[Row], curves: Sequence[Row], threat: str) -> None:
    """Write the pictures of a model into a folder.

    `threat` is the name of the threat that the curves vary. The same rows give the same pixels.
    """
    title = f"{model}: fresh attacks" if grid else "no grid: evaluate.grid is null"
    drawn = (figures.heat_map(grid, title), figures.curves({model: curves}, threat))
    for name, figure in zip(NAMES, drawn, strict=True):
        files.write_bytes(folder / name, figures.png(figure))
