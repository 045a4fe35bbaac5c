"""Turn figures and numbers into what a page may hold."""

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure on the page: its URL, its size in pixels, and what it shows, in words."""

    url: str
    width: int
    height: int
    alt: str


def picture(figure: "Figure", alt: str) -> Picture:
    """Return a figure as an SVG inside the page."""
    width, height = (round(96 * size) for size in figure.get_size_inches())
    return Picture(
        url=data_url("image/svg+xml", figures.svg(figure)), width=width, height=height, alt=alt
    )


def data_url(kind: str, content: bytes) -> str:
    """Return a URL that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
