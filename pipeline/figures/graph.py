"""Draw which stage reads what which other stage wrote."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1.75, 0.62  # inches from one stage to the next


def graph(needs: Mapping[str, Sequence[str]]) -> "Figure":
    """Draw stages as boxes, with an arrow from each stage to those that need it.

    `needs` has the names of the stages that a stage needs directly, by its own name. A stage is
    drawn right of all that it needs.
    """
    depth: dict[str, int] = {}

    def deep(stage: str) -> int:
        if stage not in depth:
            depth[stage] = 1 + max((deep(other) for other in needs[stage]), default=-1)
        return depth[stage]

    columns: dict[int, list[str]] = {}  # as seen from the left; arrows pass behind the boxes
    for stage in needs:
        columns.setdefault(deep(stage), []).append(stage)
    tallest = max(map(len, columns.values()))
    place = {
        stage: (WIDTH * column, HEIGHT * (row - (len(stages) - 1) / 2))
        for column, stages in columns.items()
        for row, stage in enumerate(stages)
    }
    figure = style.figure(WIDTH * len(columns), HEIGHT * tallest + 0.3)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-WIDTH / 2, WIDTH * (len(columns) - 0.5))
    axes.set_ylim(HEIGHT * tallest / 2, -HEIGHT * tallest / 2)
    box = {"boxstyle": "round,pad=0.4", "facecolor": "#eaf2f8", "edgecolor": style.BLUE}
    for stage, (x, y) in place.items():
        axes.text(
            x, y, stage.replace("@", "\n"), ha="center", va="center", fontsize=8, bbox=box, zorder=3
        )
        for other in needs[stage]:
            start = place[other]
            axes.annotate(
                "",
                (x - 0.55, y),
                (start[0] + 0.55, start[1]),
                zorder=1,
                arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkA": 0, "shrinkB": 0},
            )
    return figure
