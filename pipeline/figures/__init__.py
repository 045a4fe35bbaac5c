"""Draw what the pipeline measured, in one style.

Figures show units, the number of images and 95 % intervals. Colours are those of Okabe and Ito
(https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart. Markers and line
styles differ too. The same numbers give the same bytes.
"""

from pipeline.figures.accuracies import curves, gap, histories
from pipeline.figures.graph import graph
from pipeline.figures.matrices import confusion, heat_map
from pipeline.figures.style import in_pixels, png, svg

__all__ = [
    "confusion",
    "curves",
    "gap",
    "graph",
    "heat_map",
    "histories",
    "in_pixels",
    "png",
    "svg",
]
