"""How figures look: one colour, marker and hatch a contender, and the layouts that figures share.

Colours are Okabe and Ito's, told apart by the colour-blind; markers and hatches are told apart in
grey. Figures are made without pyplot: no window, no display, no state between figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from utils.probes.baselines import Look
from utils.results.comparison import TITLES

RC: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,
    "svg.hashsalt": "fixed",
    "text.parse_math": False,  # a dataset may have two dollar signs in its name
}
LOOKS = {
    "quiver_baselines": Look("#0072B2", "o", ""),
    "logreg": Look("#56B4E9", "s", "//"),
    "sae_only": Look("#D55E00", "^", "\\\\"),
    "quiver_with_sae": Look("#009E73", "D", ".."),
    "twin_sae": Look("#E69F00", "v", "--"),
    "random_sae": Look("#8C8C8C", "x", "xx"),
    "raw_dims": Look("#000000", "+", "++"),
    "pca_dims": Look("#CC79A7", "*", "**"),
    "text_only": Look("#F0E442", "P", "O"),
    "soft_frozen": Look("#555555", "1", "x."),
    "reconstruction": Look("#882255", "<", "o"),
    "error": Look("#AA4499", ">", "||"),
    "shuffled": Look("#BBBBBB", "2", "oo"),
}
SAE_MARKERS = ("^", "v", "<", ">", "d", "p", "h", "o")
SAE_COLORS = (
    "#E69F00", "#D55E00", "#CC79A7", "#882255", "#661100", "#AA4499", "#44AA99", "#332288",
)  # fmt: skip
CHANCE = 0.5


class NoData(Exception):
    """A figure is left out; the message says what is lacking."""


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def panels_in_a_row(n: int, left: float, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of n panels side by side that share their y axis; ``left``: inches for its label."""
    figure = Figure(figsize=(left + width * n, height))
    return figure, list(figure.subplots(1, n, sharey=True, squeeze=False)[0])


def bar_look(name: str) -> dict[str, Any]:
    """How a contender's bars are drawn."""
    return {"color": LOOKS[name].color, "hatch": LOOKS[name].hatch, "edgecolor": "white"}


def line_look(name: str) -> dict[str, Any]:
    """How a contender's line is drawn, with its name in the legend."""
    return {"color": LOOKS[name].color, "marker": LOOKS[name].marker, "label": TITLES[name]}


def draw_chance(axes: Axes, vertical: bool = False, in_legend: bool = True) -> None:
    """The line on which a probe that knows nothing lies."""
    line = axes.axvline if vertical else axes.axhline
    label = "chance" if in_legend else None
    line(CHANCE, color="black", linewidth=0.8, linestyle=":", label=label)


def log2_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A base 2 x axis with these ticks alone."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def small_multiples(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """n panels of one size in a grid of fixed margins, which share their axes.

    Laying out a hundred panels by trial takes half a minute.
    """
    columns = min(4, n) if n <= 24 else 8
    rows = -(-n // columns)
    wide, high = 2.3 * columns + 0.6, height * rows + 0.8
    margins = {
        "left": 0.6 / wide,
        "right": 1 - 0.1 / wide,
        "bottom": 0.55 / high,
        "top": 1 - 0.25 / high,
    }
    figure = Figure(figsize=(wide, high))
    spaces = {"wspace": 0.1, "hspace": 0.38, **margins}
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=spaces
    )
    panels = list(grid.flat)
    for axes in panels[n:]:
        axes.set_axis_off()
    return figure, panels[:n]


def shared_labels(figure: Figure, panels: list[Axes], x: str, y: str) -> None:
    """One label an axis for all panels, and one legend above them."""
    columns = min(4, len(panels)) if len(panels) <= 24 else 8
    for axes in panels[-columns:]:  # the last of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel(x, fontsize=10, y=0.05 / figure.get_figheight())
    figure.supylabel(y, fontsize=10, x=0.05 / figure.get_figwidth())
    shared_legend(figure, panels[0], 4)


def shared_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """One legend for all panels, above them, taken from one of them."""
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    figure.legend(handles, labels, ncols=columns, frameon=False, fontsize=8, **place)


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend above the panel."""
    figure.tight_layout()
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.01)}
    axes.legend(ncols=columns, frameon=False, fontsize=8, **place)


def plotted(figure: Figure) -> pd.DataFrame:
    """The numbers that a figure shows, a row a point, bar or cell: panel, series, x, y, and of
    cells their value. Where an axis has words, a place is the nearest word. Lines across a whole
    panel are no numbers.
    """
    rows: list[dict[str, Any]] = []
    words: dict[str, dict[float, str]] = {"x": {}, "y": {}}
    for number, axes in enumerate(figure.axes):
        panel = axes.get_title() or axes.get_title(loc="left") or str(number + 1)
        # panels that share an axis have its words on the first alone
        words = {"x": _words(axes.xaxis), "y": _words(axes.yaxis) or words["y"]}

        def row_of(artist: Any, x: Any, y: Any) -> dict[str, Any]:
            name = str(artist.get_label())
            series = "" if name.startswith("_") else name
            return {"panel": panel, "series": series, "x": x, "y": y}  # noqa: B023

        found: list[dict[str, Any]] = []
        for line in axes.get_lines():
            if line.get_transform() == axes.transData:
                points = zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
                found += [row_of(line, x, y) for x, y in points]
        for bars in (one for one in axes.containers if isinstance(one, BarContainer)):
            for bar in bars:
                x, y = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height()
                if bars.orientation == "horizontal":
                    x, y = bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2
                found.append(row_of(bars, x, y))
        for image in axes.get_images():
            cells: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array()), np.nan)
            found += [
                {**row_of(image, x, y), "value": value} for (y, x), value in np.ndenumerate(cells)
            ]
        for dots in (one for one in axes.collections if isinstance(one, PathCollection)):
            found += [row_of(dots, x, y) for x, y in np.asarray(dots.get_offsets())]
        rows += [
            {**row, **{axis: _named(words[axis], row[axis]) for axis in "xy"}} for row in found
        ]
    columns = ["panel", "series", "x", "y"]
    has_cells = any("value" in row for row in rows)
    return pd.DataFrame(rows, columns=[*columns, "value"] if has_cells else columns)


def _words(axis: Any) -> dict[float, str]:
    """{place: word} of an axis whose ticks have words; {} where they are numbers."""
    labels = [tick.get_text() for tick in axis.get_majorticklabels()]
    places = map(float, axis.get_majorticklocs())
    words = {place: label for place, label in zip(places, labels) if label}
    return {} if all(map(_is_number, words.values())) else words


def _is_number(text: str) -> bool:
    return text.startswith("$") or re.fullmatch(r"[\d.,\u2212-]+[kM]?", text) is not None


def _named(words: dict[float, str], value: Any) -> Any:
    """The word that stands nearest, half a step away at most; the number where there is none."""
    place = float(value)
    nearest = min(words, key=lambda known: abs(known - place), default=None)
    if nearest is None or abs(nearest - place) > 0.5:
        return place
    return words[nearest].replace("\n", " ")
