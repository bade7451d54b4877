"""A table of shares as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float | None],
) -> bytes:
    """Draw shares in percent; what is None stays empty.

    Parameters
    ----------
    title : str
        Heading.
    rows, columns : sequence of str
        Names of rows and columns.
    values : mapping of (row, column) to float or None
        Shares from 0 to 1.

    Returns
    -------
    bytes
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = np.array(
        [[np.nan if (v := values[r, c]) is None else 100 * v for c in columns] for r in rows]
    )
    figure = Figure(
        figsize=(2.2 + 0.5 * len(columns), 1.5 + 0.32 * len(rows)), dpi=130, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "black" if value > 55 else "white"
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
