"""The look of every figure, and where figures and tables of a recipe are written.

Figures are SVG with a fixed salt and no date: drawn again from the same records they are equal
byte by byte.
"""

import itertools
import json

import matplotlib as mpl
from matplotlib.figure import Figure

from ..files import write_atomically
from .recipes import Recipe

# The Okabe-Ito colours (jfly.uni-koeln.de/color): safe for colour-blind readers.
CYCLE = [mpl.color_sequences["okabe_ito"][i] for i in (5, 6, 3, 7, 1, 2)]


BLUE, ORANGE, GREEN, PINK = CYCLE[:4]


GREY = "#6B6B6B"


FULL, HALF = 6.7, 3.3  # inches: text width of the report, and half of it


STYLE = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "svg.hashsalt": "distilbert",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Draw all figures of this process in the one style."""
    mpl.rcParams.update(STYLE)


def model_colours(recipe: Recipe) -> dict[str, str]:
    """A colour for each model of a recipe, the same in all figures; side rows share some."""
    names = dict.fromkeys([*recipe.main_models, *recipe.models])
    return dict(zip(names, itertools.cycle(CYCLE)))


def save_figure(figure: Figure, recipe: Recipe, name: str) -> None:
    """Write `results/<recipe>/figures/<name>.svg`."""
    path = recipe.folder / "figures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def save_table(recipe: Recipe, name: str, content: dict) -> None:
    """Write `results/<recipe>/tables/<name>.json`, which report and poster read."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(recipe.folder / "tables" / f"{name}.json", text + "\n")
