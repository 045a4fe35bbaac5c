"""Draw accuracies: the gap between models, curves against an attack's strength, and trainings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
LEGEND: dict[str, Any] = {"loc": "outside upper center", "frameon": False}
KINDS = {"clean": style.BLUE, "transfer": style.ORANGE, "robust": style.VERMILLION}
LEVELS = (0, 1 / 255, 4 / 255, 16 / 255, 64 / 255, 1)  # of eps
AXES = {
    "eps": "eps, pixels being in [0, 1]",
    "steps": "steps of PGD",
    "restarts": "restarts of PGD",
}


def gap(models: Mapping[str, Sequence[tuple[str, str, Row]]]) -> "Figure":
    """Draw every model's clean, transfer and robust accuracies as points with 95 % intervals.

    A point is its kind (`clean`, `transfer` or `robust`), its name, and its result with
    `accuracy`, `low95`, `high95` and `n`.
    """
    height = sum(len(points) for points in models.values())
    figure = style.figure(8, 1.3 + 0.24 * height + 0.42 * len(models))
    axes = figure.add_subplot()
    y, ticks = 0.0, []
    for model, points in models.items():
        axes.text(1, y, model, weight="bold", va="center")
        for kind, name, result in points:
            y += 1
            _point(axes, y, kind, result)
            ticks.append((y, kind if name == kind else f"{kind}: {name}"))
        y += 1.6
    axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=9)
    for kind, colour in KINDS.items():
        axes.plot([], [], color=colour, marker=_marker(kind), linestyle="", label=kind)
    axes.set_ylim(y - 1, -0.8)
    axes.set_xlim(0, 100)
    counts = [result["n"] for points in models.values() for *_, result in points]
    axes.set_xlabel(f"accuracy in %, with 95 % intervals, {style.images(counts)}")
    figure.legend(ncols=len(KINDS), **LEGEND)
    style.plain(axes)
    return figure


def _point(axes: "Axes", y: float, kind: str, result: Row) -> None:
    accuracy, low, high = (100 * result[key] for key in ("accuracy", "low95", "high95"))
    axes.plot([low, high], [y, y], color=KINDS[kind], linewidth=2, alpha=0.6)
    axes.plot(accuracy, y, color=KINDS[kind], marker=_marker(kind), markersize=6)


def _marker(kind: str) -> str:
    return dict(zip(KINDS, style.MARKERS, strict=False))[kind]


def curves(models: Mapping[str, Sequence[Row]], attack: str) -> "Figure":
    """Draw the accuracy of every model against eps, steps and restarts of a fresh attack.

    Rows have `curve`, `value`, `n`, `accuracy`, `low95` and `high95`.
    """
    figure = style.figure(10, 3.6)
    parts = figure.subplots(1, len(AXES), sharey=True)
    for (name, label), axes in zip(AXES.items(), parts, strict=True):
        for place, (model, rows) in enumerate(models.items()):
            _curve(axes, place, model, [row for row in rows if row["curve"] == name])
        axes.set_xlabel(label)
        axes.set_ylim(0, 100)
        style.plain(axes)
    parts[0].set_xscale("symlog", linthresh=1 / 255)
    parts[0].set_xlim(0, 1)
    parts[0].set_xticks(LEVELS, [style.in_pixels(level) for level in LEVELS], rotation=45)
    levels = sorted({row["value"] for rows in models.values() for row in rows if row["value"] >= 1})
    parts[2].set_xticks([value for value in levels if value <= _greatest(models, "restarts")])
    counts = [int(row["n"]) for rows in models.values() for row in rows]
    parts[0].set_ylabel(f"accuracy in %, {style.images(counts)}")
    figure.legend(
        *parts[0].get_legend_handles_labels(),
        ncols=4,
        title=f"fresh {attack} attacks on each model, 95 % intervals",
        **LEGEND,
    )
    return figure


def _greatest(models: Mapping[str, Sequence[Row]], curve: str) -> float:
    return max(
        float(row["value"]) for rows in models.values() for row in rows if row["curve"] == curve
    )


def _curve(axes: "Axes", place: int, model: str, rows: Sequence[Row]) -> None:
    look: dict[str, Any] = {
        "color": style.COLOURS[place % len(style.COLOURS)],
        "marker": style.MARKERS[place % len(style.MARKERS)],
        "linestyle": style.LINES[place % len(style.LINES)],
    }
    values = [row["value"] for row in rows]
    accuracy, low, high = (
        [100 * row[key] for row in rows] for key in ("accuracy", "low95", "high95")
    )
    axes.plot(values, accuracy, markersize=4, linewidth=1.4, label=model, **look)
    axes.fill_between(values, low, high, color=look["color"], alpha=0.12, linewidth=0)


def histories(models: Mapping[str, tuple[Sequence[Row], int]]) -> "Figure":
    """Draw the validation accuracies of every training, and mark the epoch that was kept.

    A model has the rows of its history, with `epoch` and columns whose names begin with `val_` or
    `train_accuracy`, and its kept epoch.
    """
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = style.figure(3.4 * columns, 0.6 + 2.7 * lines)
    parts = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes, (model, (rows, kept)) in zip(parts, models.items(), strict=False):
        axes.set_title(f"{model}: epoch {kept} of {len(rows)} kept", fontsize=10)
        names = [name for name in rows[0] if name.startswith(("train_accuracy", "val_"))]
        for place, name in enumerate(names):
            axes.plot(
                [row["epoch"] for row in rows],
                [100 * row[name] for row in rows],
                color=style.COLOURS[place % len(style.COLOURS)],
                marker=style.MARKERS[place % len(style.MARKERS)],
                linestyle=style.LINES[place % len(style.LINES)],
                markersize=3.5,
                linewidth=1.2,
                label=name,
            )
        axes.axvline(kept, color="#666666", linewidth=1, linestyle=":")
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 100)
        axes.legend(fontsize=8, loc="lower right", framealpha=0.8)
        style.plain(axes)
    for axes in parts[len(models) :]:
        axes.set_axis_off()
    figure.axes[0].set_ylabel("accuracy in %")
    return figure
