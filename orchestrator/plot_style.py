"""The style of plots: for print, readable when small, distinguishable without colours."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib

# Okabe and Ito, Color Universal Design, 2008 (jfly.uni-koeln.de/color), without the yellow, which
# is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style."""
    with matplotlib.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "legend.frameon": False,
            "savefig.dpi": 160,
            "svg.fonttype": "none",
        }
    ):
        yield
