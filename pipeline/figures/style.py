"""Define the style of all figures, and write figures as PNG or SVG."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#000000",
)
MARKERS, LINES = "osD^vP*", ("-", "--", "-.", ":")
DPI = 120  # of a PNG; text of 10 points is then 17 pixels high
LAYOUT: Literal["constrained"] | None = "constrained"  # makes room for every label


def figure(width: float, height: float) -> "Figure":
    """Return an empty figure of that many inches.

    It needs neither a screen nor pyplot's global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, layout=LAYOUT)
    FigureCanvasAgg(made)
    return made


def png(made: "Figure") -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(made: "Figure") -> bytes:
    """Return a figure as SVG without fonts, links or scripts."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "offline-hardening", "svg.fonttype": "path"}):
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def in_pixels(eps: float) -> str:
    """Return an eps or alpha as people write it.

    A whole number of steps between stored pixels is written as 8/255, any other as a decimal, and
    the whole range of a pixel as 1.
    """
    if eps in (0, 1):
        return f"{eps:g}"
    return f"{eps * 255:.0f}/255" if abs(eps * 255 - round(eps * 255)) < 1e-3 else f"{eps:g}"


def images(counts: Iterable[int]) -> str:
    """Return on how many images a figure rests, as `n = 297` or `n = 220 to 297`."""
    low, high = min(found := list(counts)), max(found)
    return f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"


def plain(axes: "Axes") -> None:
    """Leave only the axes that carry numbers, with a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)
