"""The look of every figure, and where figures and tables of a recipe are written.

Figures are SVG with a fixed salt and no date: drawn again from the same records they are equal
byte by byte.
"""

import io
import itertools
import json
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.typing import RcKeyType

from ..errors import UserError
from ..files import with_sha256, write_atomically
from .recipes import Recipe

# One colour each, in every figure and on every page (report/common.typ has the same three). They
# differ for colour-blind readers (blue and orange) and in greyscale (lightness 29, 61 and 45).
TEACHER, STUDENT, PAPER = "#14457F", "#DD7A00", "#6B6B6B"

# What belongs to neither: parts of a whole, from dark to light.
SHADES = ["#3D3D3D", "#5E5E5E", "#808080", "#A3A3A3", "#C4C4C4", "#E0E0E0", "#FFFFFF"]
MARKS = "^vDpX*<>Ph"  # of models that are neither the teacher nor the student
FULL = 6.7  # inches: text width of the report

STYLE: dict[RcKeyType, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 10.5,  # 24 points on the poster
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.prop_cycle": cycler(color=[STUDENT, TEACHER, PAPER]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,  # words are wider in FACE than as measured
    "figure.dpi": 110,
    "svg.hashsalt": "distilbert",
    "svg.fonttype": "none",  # text stays text, set in FACE
}

# The report's face. Typst has it, matplotlib does not and measures with one of nearly its widths.
FACE = "Libertinus Serif"


def use_style() -> None:
    """Draw all figures of this process in the one style."""
    mpl.rcParams.update(STYLE)


def model_looks(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """How matplotlib draws each model of a recipe: colour, marker and filling, in all figures.

    Teacher and student are filled, in their colours. The others are black and hollow, and told
    apart by their markers.
    """
    marks = itertools.cycle(MARKS)
    looks = {
        name: {"color": "k", "marker": next(marks), "mfc": "white"}
        for name in recipe.models
        if name not in (recipe.teacher, recipe.student)
    }
    looks[recipe.teacher] = {"color": TEACHER, "marker": "o"}
    looks[recipe.student] = {"color": STUDENT, "marker": "s"}
    return looks


def save_figure(figure: Figure, recipe: Recipe, name: str) -> None:
    """Write `results/<recipe>/figures/<name>.svg`, its text in the report's face."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue().replace("'STIXGeneral'", f"'{FACE}', 'STIXGeneral', serif")
    write_atomically(recipe.folder / "figures" / f"{name}.svg", text)


def save_table(recipe: Recipe, name: str, content: dict) -> None:
    """Write `results/<recipe>/tables/<name>.json`, which report and poster read.

    Numbers have 12 digits: the last ones of a sum depend on the processor.
    """
    plain = json.dumps(content, allow_nan=False)
    content = json.loads(plain, parse_float=lambda digits: float(f"{float(digits):.12g}"))
    text = json.dumps(with_sha256(content), indent=1, ensure_ascii=False)
    write_atomically(recipe.folder / "tables" / f"{name}.json", text + "\n")


def check_tables(recipe: Recipe) -> None:
    """Raise UserError for a table that is no longer as `save_table` wrote it."""
    for path in sorted((recipe.folder / "tables").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content != with_sha256(content):
                raise ValueError("its SHA-256 is missing or another")
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); run `make notebooks RECIPE={recipe.name}`"
            ) from None
