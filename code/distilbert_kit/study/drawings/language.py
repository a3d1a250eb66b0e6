"""Figures of language understanding: scores, errors, and what distillation loses."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data.tasks import get_task
from ..figures import FULL, PAPER, STUDENT, TEACHER, model_looks
from ..recipes import Recipe
from .shared import grid, interval, metric_label, name_rows, task_label


def scores(recipe: Recipe, rows: list[dict]) -> Figure:
    """A panel a task: the mean over the seeds, its interval, and the seeds as ticks."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    looks = model_looks(recipe)
    figure, panels = grid(len(tasks), 0.6 + 0.2 * len(models), columns=4, sharey=True)
    for axes, task in zip(panels, tasks):
        for row in (row for row in rows if row["task"] == task):
            place = models.index(row["model"])
            each = [100 * value for value in row["values"]]
            axes.plot(each, [place] * len(each), "|", color="k", ms=4)
            interval(axes, row["interval"], place, looks[row["model"]])
        axes.set(title=get_task(task).title, xlabel=f"{metric_label(task)}, percent")
        name_rows(axes, [recipe.models[model].label for model in models])
        axes.tick_params(axis="y", labelsize=9)
    return figure


def gaps(recipe: Recipe, compared: list[dict], printed: dict[str, float]) -> Figure:
    """Each model's score minus its teacher's by task; `printed` are the paper's gaps in points."""
    tasks = [task for task in recipe.tasks if any(row["task"] == task for row in compared)]
    models = list(dict.fromkeys(row["model"] for row in compared))
    looks, known = model_looks(recipe), [task for task in tasks if task in printed]
    lanes = len(models) + bool(known)  # of a row
    figure, axes = plt.subplots(figsize=(FULL, 1 + max(0.8, (0.1 + 0.065 * lanes) * len(tasks))))
    axes.axvline(0, color=TEACHER, lw=1.6, label="the teacher")
    for lane, model in enumerate(models):
        aside = 0.8 * ((lane + 0.5) / lanes - 0.5)
        for row in (row for row in compared if row["model"] == model):
            interval(axes, row["gap"], tasks.index(row["task"]) + aside, looks[model])
        axes.plot([], [], **looks[model], label=recipe.models[model].label)
    if known:
        places = [tasks.index(task) + 0.4 - 0.4 / lanes for task in known]
        points = [printed[task] for task in known]
        axes.plot(points, places, "D", color=PAPER, label="the paper, its own scale")
    name_rows(axes, [get_task(task).title for task in tasks], bands=True)
    left, right = axes.get_xlim()
    axes.set(xlabel="model minus teacher, points", xlim=(left, max(right, -0.06 * left)))
    if models:
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def phenomena(recipe: Recipe, errors: list[dict]) -> Figure:
    """Errors in percent by phenomenon, with their intervals."""
    kinds = list(dict.fromkeys(row["phenomenon"] for row in errors))
    examples = {row["phenomenon"]: row["examples"] for row in errors}
    figure, axes = plt.subplots(figsize=(FULL, 2.3))
    dodge(axes, recipe, errors, "phenomenon", kinds)
    axes.set_xticks(range(len(kinds)), [f"{kind}\n(n = {examples[kind]})" for kind in kinds])
    axes.set_ylabel("errors, percent")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def length_errors(recipe: Recipe, rows: list[dict]) -> Figure:
    """Errors by length, one panel per task."""
    places = list(dict.fromkeys((row["task"], row["split"]) for row in rows))
    figure, panels = grid(len(places), 1.55)
    for axes, place in zip(panels, places):
        here = [row for row in rows if (row["task"], row["split"]) == place]
        groups = list(dict.fromkeys(row["tokens"] for row in here))
        dodge(axes, recipe, here, "tokens", groups)
        axes.set_xticks(range(len(groups)), groups, fontsize=9)
        axes.set(title=task_label(*place), xlabel="tokens")
    figure.supylabel("errors, percent", size="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def dodge(axes: Axes, recipe: Recipe, rows: list[dict], group: str, groups: list) -> None:
    """Errors with their intervals by `group`, the models side by side in each."""
    looks = model_looks(recipe)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for shift, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        spread = [
            [100 * max(row["error"] - row["low"], 0) for row in own],
            [100 * max(row["high"] - row["error"], 0) for row in own],
        ]
        axes.errorbar(
            [groups.index(row[group]) + 0.2 * (shift - (len(models) - 1) / 2) for row in own],
            [100 * row["error"] for row in own],
            yerr=spread,
            ls="",
            capsize=2,
            elinewidth=1.2,
            label=recipe.models[model].label,
            **looks[model],
        )
    axes.set_ylim(0, None)
    axes.grid(axis="x", visible=False)


def confusion(recipe: Recipe, rows: list[dict]) -> Figure:
    """Confusion matrices: rows are references, columns predictions, shaded by the row's share."""
    figure, panels = grid(len(rows), 1.9, columns=4)
    for axes, row in zip(panels, rows):
        counts = pd.DataFrame(row["counts"])
        axes.imshow(counts.div(counts.sum(axis=1), axis=0), cmap="Greys", vmin=0, vmax=1)
        for i, values in enumerate(row["counts"]):
            for j, count in enumerate(values):
                ink = "w" if count > counts.loc[i].sum() / 2 else "k"
                axes.text(j, i, count, ha="center", va="center", color=ink)
        names = [label.replace("_", " ") for label in row["labels"]]
        axes.set_xticks(range(len(counts)), names, fontsize=8)
        axes.set_yticks(range(len(counts)), names, fontsize=8, rotation=90, va="center")
        axes.set_title(f"{row['label']}\n{task_label(row['task'], row['split'])}", fontsize=8)
        axes.grid(visible=False)
    return figure


def cross(recipe: Recipe, rows: list[dict]) -> Figure:
    """Scores of models fine-tuned on one task (rows) on others (columns); in grey, guessing's."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    tested = list(dict.fromkeys(row["tested_on"] for row in rows))  # those of one label together
    trained = [task for task in tested if any(row["trained_on"] == task for row in rows)]
    figure, panels = grid(len(models), 0.6 + 0.55 * len(trained), sharey=True)
    for axes, model in zip(panels, models):
        own = [row for row in rows if row["model"] == model]
        matrix = pd.DataFrame(own).pivot(index="trained_on", columns="tested_on", values="score")
        axes.imshow(matrix.loc[trained, tested], cmap="Greys", vmin=0.3, vmax=2.5, aspect="auto")
        for row in own:
            x, y = tested.index(row["tested_on"]), trained.index(row["trained_on"])
            weight = "bold" if row["tested_on"] == row["trained_on"] else "normal"
            centred: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(x, y - 0.12, f"{100 * row['score']:.1f}", weight=weight, **centred)
            axes.text(
                x, y + 0.27, f"{100 * row['guessing']:.1f}", color="#4A4A4A", size=8, **centred
            )
        count = {row["tested_on"]: row["examples"] for row in own}
        names = [f"{get_task(task).title}\nn = {count[task]:,}" for task in tested]
        axes.set_xticks(range(len(tested)), names, fontsize=8)
        axes.set_yticks(range(len(trained)), [get_task(task).title for task in trained])
        axes.set(title=recipe.models[model].label, xlabel="tested on")
        axes.grid(visible=False)
    panels[0].set_ylabel("fine-tuned on")
    return figure


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "both": ("both right", {"color": "#DEDEDE", "ec": "#9A9A9A"}),
    "only_teacher": ("only the teacher", {"color": TEACHER}),
    "only_student": ("only the model", {"color": STUDENT}),
    "neither": ("both wrong", {"color": "w", "ec": "#9A9A9A"}),
}


def lost_split(recipe: Recipe, rows: list[dict]) -> Figure:
    """Who is right, in percent of the examples: one panel per model, one bar per task."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    examples = {(row["task"], row["split"]): row["examples"] for row in rows}
    figure, panels = grid(len(models), 0.5 + 0.23 * len(examples), sharey=True)
    for axes, model in zip(panels, models):
        own = {(row["task"], row["split"]): row for row in rows if row["model"] == model}
        for y, place in enumerate(examples):
            if place in own:
                split_bar(axes, y, own[place]["shares"])
            else:
                axes.text(2, y, "not run", va="center")
        axes.set(xlabel="examples, percent", xlim=(0, 128), xticks=range(0, 101, 25))
        name_rows(axes, [f"{task_label(*place)}, n = {n:,}" for place, n in examples.items()])
        axes.set_title(recipe.models[model].label)
        axes.grid(visible=False)
        axes.spines["bottom"].set_bounds(0, 100)
    for label, look in WAYS.values():
        panels[0].barh(0, 0, lw=0.5, label=label, **look)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def split_bar(axes: Axes, y: float, shares: dict[str, float]) -> None:
    """A bar of `lost_split`; the shares of its coloured parts, which may be small, stand beside."""
    left = 0.0
    for way, (_, look) in WAYS.items():
        share, aside = 100 * shares[way], {"only_teacher": 108, "only_student": 121}.get(way)
        axes.barh(y, share, left=left, height=0.74, lw=0.5, **look)
        label: dict[str, Any] = {"ha": "center", "va": "center"}
        if aside:
            label["color"] = "w" if way == "only_teacher" else "k"
            axes.barh(y, 12, left=aside - 6, height=0.74, **look)
        if aside or share >= 4:
            axes.text(aside or left + share / 2, y, f"{share:.0f}", **label)
        left += share


SPARSE = 20  # examples: the accuracy of fewer says little


def reliability(recipe: Recipe, rows: list[dict]) -> Figure:
    """Accuracy against the probability of the predicted class, one panel per task.

    The area of a point is the share of the examples in its bin; bins of fewer than `SPARSE` are
    left out.
    """
    looks = model_looks(recipe)
    columns = 6 if len(rows) == 6 else 4
    figure, panels = grid(len(rows), 1.6, columns, sharex=True, sharey=True)
    for axes, row in zip(panels, rows):
        axes.plot([0, 1], [0, 1], color="k", lw=0.8, ls=":")
        for side, model in (("teacher", recipe.teacher), ("model", row["model"])):
            bins, look = pd.DataFrame(row["calibration"][side]["bins"]), looks[model]
            total, shown = bins["count"].sum(), bins.where(bins["count"] >= SPARSE)
            x, y, area = shown["confidence"], shown["accuracy"], 8 + 40 * shown["count"] / total
            axes.plot(x, y, color=look["color"], lw=1, alpha=0.6)
            axes.scatter(x, y, area, look["color"], marker=look["marker"], alpha=0.7, lw=0)
        axes.text(1.02, 0.03, f"n = {total:,}", ha="right")
        axes.set(title=task_label(row["task"], row["split"]), ylim=(-0.04, 1.04))
    panels[0].set_ylabel("accuracy")
    figure.supxlabel("probability of the predicted class", size="medium")
    first = min(1 / get_task(row["task"]).num_labels for row in rows)
    panels[0].set_xlim(first - 0.03, 1.03)
    for model in (recipe.teacher, recipe.student):
        panels[0].plot([], [], ls="-", **looks[model], label=recipe.models[model].label)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
