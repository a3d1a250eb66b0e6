"""What the figures share: panels, intervals, names of tasks and rows.

Each function of this package draws rows that the tables of a recipe hold, and returns the figure.
Teacher, student and paper have their own colours everywhere (study/figures.py). Shares and scores
come as fractions and are drawn in percent.
"""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data.tasks import get_task
from ..figures import FULL


def task_label(task: str, split: str) -> str:
    """A task's title, with its split where it has several."""
    found = get_task(task)
    several = len(found.eval_splits) > 1
    return f"{found.title}, {split.removeprefix('validation_')}" if several else found.title


def pretty(label: str) -> str:
    """A model's label, its loss terms set as mathematics: "without L_ce"."""
    return re.sub(r"L_(\w+)", r"$L_{\1}$", label)


def metric_label(task: str) -> str:
    """The metric that counts, as it is written."""
    names = {"f1": "F1", "matthews": "Matthews", "pearson": "Pearson"}
    return names.get(get_task(task).primary, get_task(task).primary.replace("_", " "))


def printed_mean(scores: dict[str, float], tasks: Sequence[str]) -> float:
    """Mean of what the paper printed over tasks; its own mean if it lacks one, or for none."""
    if tasks and set(tasks) <= set(scores):
        return sum(scores[task] for task in tasks) / len(tasks)
    return scores["score"]


def grid(count: int, height: float, columns: int = 3, **options) -> tuple[Figure, list[Axes]]:
    """A figure of the report's width with `count` panels, each `height` inches high."""
    across = min(count, columns) or 1
    lines = -(-count // across) or 1
    figure, panels = plt.subplots(
        lines, across, squeeze=False, figsize=(FULL, 0.5 + height * lines), **options
    )
    for axes in panels.flat[count:]:
        axes.axis("off")
    return figure, list(panels.flat[:count])


def interval(axes: Axes, found: dict, place: float, look: dict) -> None:
    """A point and its interval in percent, from {"estimate", "low", "high"}, lying at `place`."""
    low, high = 100 * found["low"], 100 * found["high"]
    axes.plot([low, high], [place, place], color=look["color"], lw=1.4)
    axes.plot(100 * found["estimate"], place, ls="", **look)


def name_rows(axes: Axes, names: Sequence[str], bands: bool = False) -> None:
    """Rows from top to bottom; `bands` instead of lines, for rows of several marks."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if bands:
        axes.grid(axis="y", visible=False)
        for place in range(0, len(names), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#F3F3F3", lw=0, zorder=0)
